"""The original's cases and artefacts of the three registries, read from the golden folder."""

from __future__ import annotations

import functools
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from shared.paper.denoising import Material
from shared.paper.records import Place
from shared.paper.values import from_json
from tests.support import golden_folder
from tests.support.golden_folder import GOLDEN

FOLDER = GOLDEN / "registry"
STYLES = {"sepsis": "sections", "stroke": "lines", "aki": "days"}
needs_golden = golden_folder.needs("registry")


def lines(name: str) -> list[dict[str, Any]]:
    """The records of a file of lines; none where it is absent."""
    return golden_folder.lines(FOLDER / name)


def cases(name: str) -> list[Any]:
    """One parameter for each record."""
    return golden_folder.parameters(lines(name), FOLDER / name)


def read(name: str) -> Any:
    """A JSON file."""
    return golden_folder.document(FOLDER / name)


def dictionary(registry: str) -> dict[str, str]:
    """The registry's own words in English."""
    return dict(json.loads((FOLDER / registry / "raw" / "kor_to_eng.json").read_text(encoding="utf-8")))


@functools.cache
def patients(registry: str) -> dict[str, int]:
    """How many patients the original's tables hold, by split."""
    return {split: len(rows(registry, split)) for split in ("train", "valid") if table_path(registry, split).is_file()}


def table_path(registry: str, split: str) -> Path:
    """The original's table of a split; the hospitalised have no `train`."""
    return FOLDER / registry / f"{split}.csv.gz"


def read_table(registry: str, split: str) -> pd.DataFrame:
    """A table as the original read it: in parts, each with types of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pd.errors.DtypeWarning)
        return pd.read_csv(table_path(registry, split))


@functools.cache
def rows(registry: str, split: str = "valid") -> list[dict[str, Any]]:
    """The original's table as it read it back from CSV, a dictionary for each row."""
    table = read_table(registry, split)
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
