"""The original's cases and artefacts of the three registries, read from the golden folder."""

from __future__ import annotations

import functools
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from shared.paper.denoising import Material
from shared.paper.records import Place
from shared.paper.values import from_json

GOLDEN = Path(os.environ.get("CREASON_GOLDEN", Path(__file__).resolve().parents[2].parent / "shared" / "golden"))
FOLDER = GOLDEN / "registry"
STYLES = {"sepsis": "sections", "stroke": "lines", "aki": "days"}
needs_golden = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden data at {FOLDER}")


def lines(name: str) -> list[dict[str, Any]]:
    """The records of a file of lines; none where it is absent."""
    path = FOLDER / name
    if not path.is_file():
        return []
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def cases(name: str) -> list[Any]:
    """One parameter for each record, or one skipped parameter."""
    found = lines(name)
    if not found:
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no golden data at {FOLDER / name}"))]
    return [pytest.param(case, id=str(number)) for number, case in enumerate(found)]


def read(name: str) -> Any:
    """A JSON file."""
    with gzip.open(FOLDER / name, "rt", encoding="utf-8") as stream:
        return json.load(stream)


@functools.cache
def rows(registry: str, split: str = "valid") -> list[dict[str, Any]]:
    """The original's table as it read it back from CSV, a dictionary for each row."""
    table = pd.read_csv(FOLDER / registry / f"{split}.csv.gz")
    columns = [table[name].tolist() for name in table.columns]
    return [dict(zip(table.columns, row, strict=True)) for row in zip(*columns, strict=True)]


@functools.cache
def places(registry: str) -> dict[str, Place]:
    """How each column is shown."""
    return {entry[0]: Place(*entry[1:]) for entry in read(f"{registry}/col_mapper.json.gz")}


@functools.cache
def choices(registry: str) -> dict[str, Any]:
    """The distribution of each column."""
    return {name: from_json(value) for name, value in read(f"{registry}/choices.json.gz").items()}


@functools.cache
def matrix(registry: str) -> pd.DataFrame:
    """Mutual information: column = target, row = feature."""
    return pd.read_csv(FOLDER / registry / "mi_matrix.csv.gz", index_col=0)


def material(registry: str, *, mi_cutoff: float = 0.5, **options: Any) -> Material:
    """What the original made its questions from."""
    found = matrix(registry)
    hidden = {name: frozenset(found.index[found[name] > mi_cutoff]) for name in found.columns}
    return Material(STYLES[registry], places(registry), choices(registry), hidden, **options)
