"""Damaged raw files of every cohort: a registry or one clear line, whatever is in them."""

from __future__ import annotations

import datetime
import random
import shutil

import openpyxl
import pytest

from shared.cohorts import tables
from shared.cohorts.catalogue import COHORTS
from shared.errors import InputError
from tests.support.golden_registry import needs_golden
from tests.support.raw_workbooks import RAW, sheets, write

pytestmark = pytest.mark.slow

DAMAGES = 25  # for each cohort
CELLS = (
    "", " ", "NA", "nan", "inf", "1e999", "abc", "7", 7, 7.5, -3, True, 10**30, "9999", "2020-13-45", "a\nb", "1,2", "2,1,",
    datetime.datetime(2020, 1, 2), datetime.time(3, 4), "남", "é", "x" * (tables.MAX_CELL + 1),
)  # fmt: skip
KINDS = (
    "cell",
    "cell",
    "cell",
    "cell",
    "none",
    "header",
    "lost",
    "twice",
    "renamed",
    "blank",
    "short",
    "long",
    "again",
)
NO_TABLES = (b"", b"PK\x03\x04 cut off", "Größe,b\n1,2\n".encode("utf-16"), "Größe\n1\n".encode("latin-1"))


def damaged(rng, sheets):
    """One thing is wrong with one of the files; what it is."""
    name = rng.choice(sorted(sheets))
    rows = [list(row) for row in sheets[name]]
    row, column = rng.randrange(1, len(rows)), rng.randrange(len(rows[0]))
    kind = rng.choice(KINDS)
    if kind == "cell":
        rows[row] += [""] * (column + 1 - len(rows[row]))
        rows[row][column] = rng.choice(CELLS)
    elif kind in ("none", "header"):
        rows = rows[: kind == "header"]
    elif kind == "lost":
        rows = [cells[:column] + cells[column + 1 :] for cells in rows]
    elif kind == "twice":
        rows = [[*cells, *cells[column : column + 1]] for cells in rows]
    elif kind == "renamed":
        rows[0][column] = rng.choice(["", " ", "x", rows[0][column - 1], 5, "é"])
    elif kind == "blank":
        rows.insert(row, [""] * len(rows[0]))
    elif kind == "short":
        rows[row] = rows[row][:column]
    elif kind == "long":
        rows[row] = [*rows[row], "", "x"]
    else:
        rows.append(rows[row])
    return sheets | {name: rows}, f"{name}: {kind}, row {row}, column {column}"


@needs_golden
@pytest.mark.parametrize("cohort", RAW)
def test_any_damage_gives_a_registry_or_one_line(cohort, tmp_path):
    refused, first = 0, COHORTS[cohort]
    write(tmp_path / "whole", cohort, sheets(cohort))
    assert len(first.read(tmp_path / "whole", cohort=cohort).ids) > 0
    for number in range(DAMAGES):
        rng = random.Random(f"{cohort} {number}")
        rows, what = damaged(rng, sheets(cohort))
        source = tmp_path / str(number)
        write(source, cohort, rows)
        try:
            first.read(source, cohort=cohort)
        except InputError as error:
            refused += 1
            assert len(" ".join(str(error).split())) < 1_500 and "x" * 100 not in str(error), what
        except Exception as error:
            raise AssertionError(f"damage {number} ({what}) ended with {error!r}") from error
        shutil.rmtree(source)
    assert 2 < refused


@needs_golden
@pytest.mark.parametrize("cohort", RAW)
def test_files_that_are_no_tables(cohort, tmp_path):
    source = tmp_path / "raw"
    write(source, cohort, sheets(cohort))
    for path in sorted(source.iterdir()):
        whole = path.read_bytes()
        for content in NO_TABLES:
            path.write_bytes(content)
            with pytest.raises(InputError, match=path.name) as caught:
                COHORTS[cohort].read(source, cohort=cohort)
            assert "\n" not in str(caught.value)
        path.write_bytes(whole)


def test_a_workbook_without_a_sheet_of_cells(tmp_path):
    book = openpyxl.Workbook()
    book.remove(book.active)
    book.create_chartsheet()
    book.save(tmp_path / "data.xlsx")
    with pytest.raises(
        InputError, match=r"data\.xlsx: (this workbook has no sheet of cells|not a readable Excel workbook)"
    ):
        tables.read_table(tmp_path / "data.xlsx")


def test_a_message_repeats_codes_and_no_text():
    assert [tables.shown_code(value) for value in (7, "12", "B3", "1, 2", "NA")] == [
        "'7'",
        "'12'",
        "'B3'",
        "'1, 2'",
        "'NA'",
    ]
    assert tables.shown_code("Kim, born 1950") == "a text of 14 characters"
