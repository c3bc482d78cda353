"""Where the golden cases lie, and how their files are read. Every other golden helper begins here."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

OWN = Path(__file__).resolve().parents[1] / "golden"


def folder(environment: Mapping[str, str]) -> Path:
    """The folder that CREASON_GOLDEN names, or this repository's. Raises FileNotFoundError where there is none."""
    found = Path(environment.get("CREASON_GOLDEN") or OWN).resolve()
    if not found.is_dir():
        raise FileNotFoundError(f"CREASON_GOLDEN: there is no folder {found}")
    return found


GOLDEN = folder(os.environ)


def required(path: Path) -> Path:
    """`path`, which only another folder than this repository's own may lack. Raises FileNotFoundError."""
    if GOLDEN == OWN and not path.exists():
        raise FileNotFoundError(f"{path} is part of the repository")
    return path


def needs(part: str) -> pytest.MarkDecorator:
    """Skips a test where the folder that CREASON_GOLDEN names lacks a part, such as `registry`."""
    path = required(GOLDEN / part)
    return pytest.mark.skipif(not path.exists(), reason=f"the folder in CREASON_GOLDEN has no {part}")


def lines(path: Path) -> list[Any]:
    """The records of a compressed file of JSON lines; none where it is absent."""
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def document(path: Path) -> Any:
    """A compressed JSON file."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return json.load(stream)


def parameters(
    found: list[Any], path: Path, name: Callable[[int, Any], str] = lambda number, _: str(number)
) -> list[Any]:
    """One parameter for each of the records found at `path`; a skipped one where another folder has none."""
    if not found:
        required(path)
        return [
            pytest.param(None, marks=pytest.mark.skip(reason=f"the folder in CREASON_GOLDEN has none of {path.name}"))
        ]
    return [pytest.param(case, id=name(number, case)) for number, case in enumerate(found)]
