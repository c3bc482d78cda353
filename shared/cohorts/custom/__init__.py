"""A user's own registry: one table and its codebook (docs/custom.md).

The source folder holds a table, `data.csv` (or .tsv, .txt, .parquet, .xlsx, .xls, .sav, .dta, .sas7bdat, .xpt), and
`codebook.csv` (or .xlsx) with one line for each column of the table. All cells that do not match the codebook are listed, with
row and column.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from shared.cohorts import tables
from shared.cohorts.custom.cells import read_column, read_ids
from shared.cohorts.custom.codebook import CODEBOOK, Line, codebook_table, lines_of, read_codebook
from shared.cohorts.custom.exclusions import without
from shared.cohorts.custom.problems import Problem, Problems
from shared.cohorts.custom.table import check_decided, find_files, read_data
from shared.cohorts.tables import RawTable
from shared.errors import InputError
from shared.registry.build import RawRegistry

FEWEST = 2  # patients: at least one for training and one for validation


def digests(source: Path) -> dict[str, str]:
    """The checksum of each raw file in `source`, by file name. Raises InputError if the table or the codebook is missing."""
    files = find_files(source)
    _codebook(source, files.codebook)
    return {path.name: tables.digest(path) for path in files.all}


def read(
    source: Path,
    *,
    cohort: str = "custom",
    encoding: str = "",
    delimiter: str = "",
    decimal: str = "",
    exclude: str = "",
) -> RawRegistry:
    """Read the table and its codebook.

    `encoding`, `delimiter` and `decimal` describe the table, if they cannot be recognised from the file. `exclude` is a file
    with the ids of patients to leave out. Raises InputError if the table and the codebook have different columns, or a line of
    the codebook is wrong; raises Problems, which lists all of them, if cells do not match the codebook.
    """
    files = find_files(source)
    codebook = _codebook(source, files.codebook)
    data = read_data(files.data, encoding=encoding, delimiter=delimiter, decimal=decimal, catalogue=files.catalogue)
    codebook_cells = codebook_table(codebook, encoding=encoding)
    lines = lines_of(codebook_cells, data.labels)
    data = _with_row_numbers(data, lines)
    _same_columns(codebook, lines, data)
    name = next(line.column for line in lines if line.kind == "id")
    left_out, notes = 0, list[str]()
    if exclude:
        data, left_out, notes = without(data, name, Path(exclude))
    _check_rows(data, left_out)
    check_decided(data, [line.column for line in lines if line.kind == "number"])
    problems: list[Problem] = []
    lines_used = [line for line in lines if line.kind not in ("id", "ignore")]
    ids = read_ids(name, data, problems)
    pairs = [read_column(line, data, problems) for line in lines_used]
    if problems:
        raise Problems(files.data, sorted(problems))
    columns = [column for column, _ in pairs]
    roles = {line.role: line.column for line in lines_used if line.role}
    return RawRegistry(
        cohort=cohort,
        ids=ids,
        columns=columns,
        ordered={line.column: tuple(line.labels) for line in lines_used if line.kind == "ordinal"},
        reference=roles.get("time")
        if any(c.name == roles.get("time") and c.kind == "datetime" for c in columns)
        else None,
        roles=roles,
        digests=digests(source),
        notes=[*data.notes, *codebook_cells.notes, *notes, *(note for _, of_column in pairs for note in of_column)],
        left_out=left_out,
    )


def codebook_of(source: Path, encoding: str = "") -> list[Line]:
    """The lines of the codebook in `source`. Raises InputError if it is missing or wrong."""
    return read_codebook(_codebook(source, find_files(source).codebook), encoding=encoding)


def _codebook(source: Path, path: Path | None) -> Path:
    if path is None:
        raise InputError(f"{source}: missing {CODEBOOK} or codebook.xlsx; --draft_codebook writes a first one")
    return path


def _check_rows(data: RawTable, left_out: int) -> None:
    if not data.rows:
        raise InputError(
            f"{data.path}: "
            + ("every patient is left out (--exclude)" if left_out else "there is no row below the first")
        )
    if data.rows < FEWEST:
        raise InputError(f"{data.path}: holds one patient only{' who is not left out' if left_out else ''}; questions need "
                         f"patients to learn from and others to hold out, one row each")  # fmt: skip


def _with_row_numbers(data: RawTable, lines: Sequence[Line]) -> RawTable:
    """The table, with its column of row numbers put back if the codebook describes that column."""
    described = {line.column for line in lines}
    if not set(data.row_numbers) & described:
        return data
    notes_on_index = set(tables.left_out(data.path, data.row_numbers))
    notes = [note for note in data.notes if note not in notes_on_index]
    return dataclasses.replace(data, columns={**data.row_numbers, **data.columns}, notes=notes)


def _same_columns(codebook: Path, lines: Sequence[Line], data: RawTable) -> None:
    names = list(data.columns)
    described = {line.column for line in lines}
    only_in_codebook, only_in_data = sorted(described - set(names)), sorted(set(names) - described)
    if only_in_codebook or only_in_data:
        raise InputError(
            f"{codebook} and {data.path} name different columns; only in the codebook: "
            f"{', '.join(only_in_codebook[:10]) or 'none'}; only in the data: {', '.join(only_in_data[:10]) or 'none'} (a line "
            "of kind `ignore` leaves a column out)" + "".join(f"; {note}" for note in data.notes)
        )
