"""The paper's cohorts from files whose names, ids and numbers are written in another way than the golden ones."""

from __future__ import annotations

import csv

import pandas as pd
import pytest

from shared.cohorts.catalogue import COHORTS
from shared.cohorts.hospitalized import layout, placed, words
from shared.cohorts.stroke.coding import UnknownCode, decode
from shared.cohorts.tables import read_rows
from shared.errors import InputError
from shared.registry.build import build
from tests.support.golden_registry import needs_golden
from tests.support.raw_workbooks import RAW, sheets, write

pytestmark = pytest.mark.slow

DATA = {"sepsis": "data", "stroke": "data", "hospitalized": "data_processed"}


def read(folder, cohort, tables):
    write(folder, cohort, tables)
    return COHORTS[cohort].read(folder, cohort=cohort)


def columns(raw):
    return [
        (column.name, column.display_name, [value for value in column.values if value == value])
        for column in raw.columns
    ]


def changed(cohort, edit, name=None):
    """The raw files with one of them edited: `edit` takes its rows."""
    found = {key: [list(row) for row in rows] for key, rows in sheets(cohort).items()}
    edit(found[name or DATA[cohort]])
    return found


@needs_golden
@pytest.mark.parametrize("cohort", DATA)
def test_names_match_whatever_their_blanks(cohort, tmp_path):
    def edit(rows):
        rows[0] = [f" {name}\u00a0" if place % 2 else f"\ufeff{name}\u200b" for place, name in enumerate(rows[0])]

    found = read(tmp_path / "a", cohort, changed(cohort, edit))
    expected = read(tmp_path / "b", cohort, sheets(cohort))
    assert columns(found) == columns(expected) and list(found.ids) == list(expected.ids) and not found.notes


@needs_golden
@pytest.mark.parametrize("cohort", ["sepsis", "stroke"])
def test_a_registry_as_csv_is_the_same_registry(cohort, tmp_path):
    """Where codes are texts, too: who belongs to the cohort of strokes hangs on some."""
    tables = changed(cohort, lambda rows: None)
    if cohort == "stroke":
        rows = tables["data"]
        place = [str(name).lower() for name in rows[0]].index("ind_str")
        kinds = [row[place] for row in rows[1:]]
        rows[1 + kinds.index(1)][place] = 2  # a haemorrhage
    write(tmp_path / "a", cohort, tables)
    expected = COHORTS[cohort].read(tmp_path / "a", cohort=cohort)
    for path in (tmp_path / "a").glob("*.xlsx"):
        with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as stream:
            csv.writer(stream).writerows(read_rows(path))
        path.unlink()
    found = COHORTS[cohort].read(tmp_path / "a", cohort=cohort)
    registries = [build(each, valid_patients=2, seed=1) for each in (found, expected)]
    pd.testing.assert_frame_equal(registries[0].train, registries[1].train)
    assert list(found.ids) == list(expected.ids) and registries[0].features == registries[1].features


def test_a_tick_box_that_nobody_can_read_is_refused():
    assert [decode("tia", value, None) for value in (1, "1", "Yes", 1.0)] == ["Yes"] * 4
    assert [decode("tia", value, None) for value in ("", None, 0, "0", "no", 2)] == ["No"] * 6
    for value in ("Y", "예", "TRUE", "１"):
        with pytest.raises(UnknownCode):
            decode("tia", value, None)


ID = {"sepsis": "subjectno", "stroke": "고유번호", "hospitalized": "id"}


def place_of(cohort, column):
    return [str(name).strip().lower() for name in sheets(cohort)[DATA[cohort]][0]].index(column)


def identifier(cohort):
    return layout(RAW[cohort])["identifier"].lower() if cohort == "hospitalized" else ID[cohort]


@needs_golden
@pytest.mark.parametrize("cohort", DATA)
def test_an_id_with_a_fraction_is_refused_with_its_row(cohort, tmp_path):
    place = place_of(cohort, identifier(cohort))

    def edit(rows):
        for row in rows[3:]:
            row[place] = 200000.6

    with pytest.raises(InputError, match=r"column .*, row \d+: an id with a fraction"):
        read(tmp_path / "a", cohort, changed(cohort, edit))


@needs_golden
@pytest.mark.parametrize("value", ["12_3", "inf", "1,000", "１２"])
def test_what_pandas_takes_for_a_number_is_refused(value, tmp_path):
    plan = layout(RAW["hospitalized"])
    raw = sheets("hospitalized")
    header, icu, excluded = raw["data_processed"][0], plan["icu"], plan["excluded"]
    number = next(name for name in placed(plan) if name not in words(plan))

    def is_patient(row):
        return float(row[header.index(icu)]) == 1 and float(row[header.index(excluded)]) == 0

    mask = raw["data_missing_processed"]
    row = next(
        place for place, cells in enumerate(raw["data_processed"]) if place and is_patient(cells)
        and float(mask[place][mask[0].index(number)]) != 0
    )  # fmt: skip

    def edit(rows):
        rows[row][header.index(number)] = value

    with pytest.raises(InputError, match=f"data column {number}, row {row + 1}: the cell is no number"):
        read(tmp_path / "a", "hospitalized", changed("hospitalized", edit))


@needs_golden
@pytest.mark.parametrize("value", ["yes", "2", "1_0", "１", "inf"])
def test_a_patient_is_not_left_out_for_a_flag_that_is_misspelt(value, tmp_path):
    raw = sheets("hospitalized")
    plan = layout(RAW["hospitalized"])

    def edit(rows):
        rows[3][rows[0].index(plan["icu"])] = value

    with pytest.raises(InputError, match=f"column {plan['icu']}, row 4: .* is neither 1 nor 0"):
        read(tmp_path / "a", "hospitalized", changed("hospitalized", edit))

    def empty(rows):
        rows[3][rows[0].index(plan["icu"])] = ""

    found = read(tmp_path / "b", "hospitalized", changed("hospitalized", empty))
    assert found.notes == [f"data_processed.csv: 1 rows without {plan['icu']} or {plan['excluded']} are left out"]
    assert len(found.ids) <= len(raw["data_processed"]) - 2


@needs_golden
@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_before_the_hospitalised_table_are_left_out_and_said(name, tmp_path):
    def edit(rows):
        for number, row in enumerate(rows):
            row.insert(0, name if number == 0 else number - 1)

    found = read(tmp_path / "a", "hospitalized", changed("hospitalized", edit))
    assert columns(found) == columns(read(tmp_path / "b", "hospitalized", sheets("hospitalized")))
    (note,) = found.notes
    assert "data_processed.csv: its first column" in note and "is left out" in note


@needs_golden
def test_columns_that_differ_in_case_only_are_refused(tmp_path):
    def edit(rows):
        name = str(rows[0][-1])
        rows[0].append(name.upper() if name != name.upper() else name.lower())
        for row in rows[1:]:
            row.append(1)

    for cohort in ("sepsis", "stroke"):
        with pytest.raises(InputError, match="occur twice .apart from upper and lower case."):
            read(tmp_path / cohort, cohort, changed(cohort, edit))
