"""The evaluations in a run's work directory: answers, examples, and by which engine, none of them by one that failed.

An evaluation counts only beside what its engine's check found (shared/evaluation/engine_check.py): one without, as an earlier
version wrote it, is made again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from shared.errors import SyncError
from shared.evaluation.answers import Answer, write_answers
from shared.storage import files

WHEN = ("before", "after")


def answers_file(workdir: Path, when: str) -> Path:
    """Where the answers are."""
    return workdir / "evaluation" / f"{when}.parquet"


def is_done(workdir: Path, when: str) -> bool:
    """Whether the answers are there, and of an engine that was checked."""
    return answers_file(workdir, when).is_file() and when in _read(workdir, "engines", {})


def write(
    workdir: Path, when: str, answers: Sequence[Answer], examples: Sequence[dict[str, Any]], checked: dict[str, Any]
) -> None:
    """Keep an evaluation. `checked`: what was found of its engine."""
    files.write_json(_file(workdir, "examples"), _others(workdir, when) + [{**each, "when": when} for each in examples])
    files.write_json(_file(workdir, "engines"), _read(workdir, "engines", {}) | {when: checked})
    write_answers(answers_file(workdir, when), answers)


@contextlib.contextmanager
def dropped_with(engine: str, workdir: Path, *, first: bool) -> Iterator[None]:
    """Where SyncError comes out of the block, what this engine has answered is removed, by the first process; a run that
    goes on with another engine asks again."""
    try:
        yield
    except SyncError:
        held = _read(workdir, "engines", {}) if first else {}
        for when in [when for when in WHEN if held.get(when, {}).get("engine") == engine]:
            answers_file(workdir, when).unlink(missing_ok=True)
            files.write_json(_file(workdir, "examples"), _others(workdir, when))
            del held[when]
            files.write_json(_file(workdir, "engines"), held)
        raise


def _others(workdir: Path, when: str) -> list[dict[str, Any]]:
    """The examples of the other evaluation."""
    return [example for example in _read(workdir, "examples", []) if example["when"] != when]


def _file(workdir: Path, name: str) -> Path:
    return workdir / "evaluation" / f"{name}.json"


def _read(workdir: Path, name: str, default: Any) -> Any:
    path = _file(workdir, name)
    return files.read_json(path) if path.is_file() else default
