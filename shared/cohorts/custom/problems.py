"""Cells that do not fit the codebook: all of them, with row and column, and never with what they hold."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from shared.errors import InputError
from shared.storage import files

REPORT = "problems.csv"


@dataclasses.dataclass(frozen=True, order=True)
class Problem:
    """What is wrong with a cell. `row` counts the first row of the file, with the names, as 1."""

    row: int
    column: str
    problem: str


class Problems(InputError):
    """Cells that do not fit; `found` lists every one."""

    def __init__(self, path: Path, found: Sequence[Problem]) -> None:
        first = found[0]
        super().__init__(
            f"{path}: {len(found):,} cells do not fit the codebook; the first is row {first.row}, column {first.column}: "
            f"{first.problem}; {REPORT} in the --out folder lists all"
        )
        self.found = list(found)


def write_report(path: Path, found: Sequence[Problem]) -> None:
    """Write a CSV of row, column and problem, readable by its owner only."""
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", "column", "problem"])
        writer.writerows(dataclasses.astuple(problem) for problem in found)
