"""The two evaluations of a run: made, and held in its work directory with the name of the engine that answered.

An evaluation counts only beside the result of its engine's check (shared/evaluation/engine_check.py). One without that result,
as earlier versions wrote it, is made again; the answers of an engine that fails are removed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from shared.backend import Learner, RolloutEngine
from shared.errors import SyncError
from shared.evaluation.answering import Answered, answer_questions
from shared.evaluation.answers import Answer, write_answers
from shared.evaluation.engine_check import check_by_learner
from shared.questions.record import Question
from shared.runs.kept import Kept, digest, request_changes
from shared.runs.workdir import Job
from shared.storage import files
from shared.training import published

WHEN = ("before", "after")


def evaluate(
    when: str,
    job: Job,
    learner: Learner,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: Sequence[Question],
    prompts: Sequence[np.ndarray],
) -> None:
    """Let the learner's weights answer the questions, and write the answers; nothing where that is done.

    `prompts` are the token ids `[time]` of `questions`. Every process calls it. An interrupted evaluation goes on in its
    middle. Raises SyncError where the engine does not hold the learner's weights, or computes something else than they do.
    """
    # What process 0 sees counts: another process may see its files later, or have a work directory of its own.
    if job.backend.any_process(job.writes and is_done(job.workdir, when)):
        return
    published.publish(learner, engine, any_process=job.backend.any_process)
    checked = check_by_learner(job.config, job.backend, engine, prompts, learner)
    unfinished = _unfinished(when, job, questions, prompts)
    begin, count = time.perf_counter(), len(questions) - unfinished.done
    for part in answer_questions(
        job.config, engine, tokenizer, questions, prompts,
        done=unfinished.done, progress=job.progress, description=f"evaluation {when}",
    ):  # fmt: skip
        unfinished.add([answered.to_row() for answered in part])
    engine.seconds()  # so that they do not count as the next training step's
    if not job.writes:
        return
    checked |= {"seconds": time.perf_counter() - begin, "questions": count}
    all_answered = [Answered.from_row(row) for row in unfinished.rows]
    examples = [answered.text for answered in all_answered if answered.text is not None]
    write(job.workdir, when, [answered.answer for answered in all_answered], examples, checked)
    files.remove(unfinished.folder)


def _unfinished(when: str, job: Job, questions: Sequence[Question], prompts: Sequence[np.ndarray]) -> Kept:
    """The answers of an interrupted start of this evaluation. Those of another engine, or to other prompts, are removed."""
    folder = job.workdir / "evaluation" / f"{when}.unfinished"
    request = {
        "questions": digest(question.row() for question in questions),
        "prompts": digest(prompt.tolist() for prompt in prompts),
        "max_new_tokens": job.config.evaluation.max_new_tokens or job.config.rollout.max_new_tokens,
        "compute_dtype": job.config.learner.compute_dtype,
        "engine": job.backend.engine_kind(job.config),
    }
    changed = request_changes(folder, request) if job.writes else []
    if changed:
        tqdm.write(f"evaluation {when}: begun with other {', '.join(changed)}; it starts again from its first question")
        files.remove(folder)
    return Kept(folder, request, job.backend)


def answers_file(workdir: Path, when: str) -> Path:
    """The file of the answers before or after training."""
    return workdir / "evaluation" / f"{when}.parquet"


def is_done(workdir: Path, when: str) -> bool:
    """Whether the answers are there, and come from an engine that was checked."""
    return answers_file(workdir, when).is_file() and when in _read(workdir, "engines", {})


def write(
    workdir: Path, when: str, answers: Sequence[Answer], examples: Sequence[dict[str, Any]], checked: dict[str, Any]
) -> None:
    """Write an evaluation into the work directory. `checked`: the result of its engine's check."""
    own = [{**example, "when": when} for example in examples]
    files.write_json(_file(workdir, "examples"), _other_examples(workdir, when) + own)
    files.write_json(_file(workdir, "engines"), _read(workdir, "engines", {}) | {when: checked})
    write_answers(answers_file(workdir, when), answers)


@contextlib.contextmanager
def dropped_with(engine: str, workdir: Path, *, first: bool) -> Iterator[None]:
    """Where SyncError comes out of the block, the `first` process removes all answers of this engine.

    A run that goes on with another engine asks the questions again.
    """
    try:
        yield
    except SyncError:
        engines = _read(workdir, "engines", {}) if first else {}
        for when in [when for when in WHEN if engines.get(when, {}).get("engine") == engine]:
            answers_file(workdir, when).unlink(missing_ok=True)
            files.write_json(_file(workdir, "examples"), _other_examples(workdir, when))
            del engines[when]
            files.write_json(_file(workdir, "engines"), engines)
        raise


def _other_examples(workdir: Path, when: str) -> list[dict[str, Any]]:
    """The examples of the other evaluation."""
    return [example for example in _read(workdir, "examples", []) if example["when"] != when]


def _file(workdir: Path, name: str) -> Path:
    return workdir / "evaluation" / f"{name}.json"


def _read(workdir: Path, name: str, default: Any) -> Any:
    path = _file(workdir, name)
    return files.read_json(path) if path.is_file() else default
