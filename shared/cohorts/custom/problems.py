"""The list of all cells that do not match the codebook: row, column and reason, but never the content of the cell."""

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
    """What is wrong with one cell. `row` is the line number in the file, where the header has 1."""

    row: int
    column: str
    problem: str


class Problems(InputError):
    """Cells do not match the codebook. `problems` lists all of them."""

    def __init__(self, path: Path, problems: Sequence[Problem]) -> None:
        first = problems[0]
        super().__init__(
            f"{path}: {len(problems):,} cells do not fit the codebook; the first is row {first.row}, column {first.column}: "
            f"{first.problem}; {REPORT} in the --out folder lists all"
        )
        self.problems = list(problems)


def write_report(path: Path, problems: Sequence[Problem]) -> None:
    """Write the problems as a CSV file with row, column and problem, readable by its owner only."""
    with files.replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["row", "column", "problem"])
        writer.writerows(dataclasses.astuple(problem) for problem in problems)
