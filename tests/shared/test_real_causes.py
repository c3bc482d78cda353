"""What hospitals' tables have wrong, each with a message that names the real cause."""

from __future__ import annotations

import openpyxl
import pytest

from shared.cohorts import custom
from shared.cohorts.custom.codes import mixed_answers
from shared.cohorts.custom.problems import Problems
from shared.cohorts.custom.table import read_data
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation.prepare import prepare

HEAD = "column,display_name,section,kind,coding\n"


def registry(folder, table, *lines):
    """A folder with a table and the lines of its codebook."""
    (folder / "data.csv").write_text(table, encoding="utf-8")
    (folder / "codebook.csv").write_text(HEAD + "".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def refused(folder, words):
    with pytest.raises(InputError, match=words) as caught:
        custom.read(folder)
    assert "\n" not in str(caught.value)


def column(cells, kind="category", coding=""):
    """A table of an id and one column x, and its lines."""
    rows = "".join(f"P{row},{cell}\n" for row, cell in enumerate(cells))
    return f"id,x\n{rows}", "id,,,id,", f"x,,,{kind},{coding}"


def test_ids_of_sixteen_digits_in_a_workbook(tmp_path):
    registry(tmp_path, "", "id,,,id,", "x,,,number,")
    (tmp_path / "data.csv").unlink()
    book = openpyxl.Workbook()
    for row in (["id", "x"], [1234567890123450, 1], [1234567890123460, 2]):
        book.active.append(row)
    book.save(tmp_path / "data.xlsx")
    refused(tmp_path, "row 2, column id: an id of 16 digits.*Excel keeps 15 digits of a number; store ids as texts")


def test_ids_that_a_workbook_rounded_before_they_became_text(tmp_path):
    registry(tmp_path, "id,x\n1234567890123450,1\n2234567890123460,2\n", "id,,,id,", "x,,,number,")
    refused(tmp_path, "column id: all ids of more than 15 digits end in 0, as where Excel rounded them")
    registry(tmp_path, "id,x\n1234567890123451,1\n2234567890123460,2\n", "id,,,id,", "x,,,number,")
    assert custom.read(tmp_path).ids == ["1234567890123451", "2234567890123460"]


@pytest.mark.parametrize(
    ("cells", "kind", "coding", "values", "said"),
    [
        (["1.0", "2.0", ""], "category", "1=Male; 2=Female", ["Male", "Female", None], "'1.0' as '1', '2.0' as '2'"),
        (["1", "2", ""], "category", "1.0=Male; 2.0=Female", ["Male", "Female", None], "'1' as '1.0', '2' as '2.0'"),
        (["1", "2", ""], "category", "01=Male; 02=Female", ["Male", "Female", None], "'1' as '01'"),
        (["999.0", "4.5", "7"], "number", "999=", [None, 4.5, 7.0], "'999.0' as '999'"),
        (["1.0", "2.0", "2"], "category", "", ["1", "2", "2"], "whole numbers written with decimals, such as 1.0"),
        (["1.5", "2.0", "x"], "text", "", ["1.5", "2.0", "x"], ""),
    ],
)
def test_a_code_written_in_another_way_is_the_same_and_said(tmp_path, cells, kind, coding, values, said):
    raw = custom.read(registry(tmp_path, *column(cells, kind, coding)))
    assert raw.columns[0].values == values
    assert said in " ".join(raw.notes) and bool(raw.notes) == bool(said)


def test_a_code_that_may_be_two_is_refused(tmp_path):
    refused(
        registry(tmp_path, *column(["1.0", "1"], coding="1=Male; 01=Female")),
        "row 2, column x: may be any of the codes 1, 01",
    )


def merged_header(folder, cells):
    book = openpyxl.Workbook()
    for row in (
        ["Patient", None, "Laboratory", None],
        ["id", "age", "na", "k"],
        ["P1", 50, 140, 4.1],
        ["P2", 60, 141, 4.2],
    ):
        book.active.append(row)
    for merged in cells:
        book.active.merge_cells(merged)
    book.save(folder / "data.xlsx")
    return folder / "data.xlsx"


def test_merged_header_rows(tmp_path):
    words = "cells A1:B1 of its first row are merged, as in a header of two rows; one row must name every column"
    with pytest.raises(InputError, match=words):
        read_data(merged_header(tmp_path, ["A1:B1"]))
    with pytest.raises(InputError, match="a header of two rows: row 1 names 2 of 4 columns and row 2 reads like names"):
        read_data(merged_header(tmp_path, []))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "Registry of 2024,,\nid,age,sex\nP1,3,m\n",
            "row 1 has one cell only, as a title has, and row 2 reads like names",
        ),
        ("Patient,,Lab,\nid,age,na,k\nP1,50,140,4.1\n", "row 1 names 2 of 4 columns and row 2 reads like names"),
        (
            "id,age,na\nPatient,Age,Sodium\n1,50,140\n2,51,141\n3,52,142\n",
            "row 2 holds texts in 3 columns that hold numbers",
        ),
        (
            "id,age,na\n,(years),mmol/L\n1,50,140\n2,51,141\n3,52,142\n",
            "row 2 holds texts in 2 columns .* delete row 2",
        ),
        (",,\nid,age,na\n", "its first row is blank, its first row should name the columns"),
    ],
)
def test_headers_of_two_rows_and_titles(tmp_path, text, words):
    (tmp_path / "data.csv").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_data(tmp_path / "data.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "id,age,na\nP1,NA,unknown\nP2,50,140\nP3,51,141\nP4,52,142\n",
        "id,age,na\nP1,<18,>150\nP2,50,140\nP3,51,141\nP4,52,142\n",
        "id,age,na\n1,not done,pending\n2,50,140\n3,51,141\n4,52,142\n",  # the first patient: the id is a number
        "id,sex,town\nP1,male,Bonn\nP2,female,Ulm\nP3,male,Kiel\n",
        ",id,age\n0,P1,50\n1,P2,51\n",
    ],
)
def test_a_first_patient_is_no_second_header(tmp_path, text):
    (tmp_path / "data.csv").write_text(text)
    assert read_data(tmp_path / "data.csv").rows == text.count("\n") - 1


def test_one_patient_only(tmp_path):
    refused(registry(tmp_path, *column([1], "number")), "holds one patient only; questions need patients to learn from")
    registry(tmp_path, "id,x\nP1,1\nP1,2\nP1,3\n", "id,,,id,", "x,,,number,")
    refused(
        tmp_path, "column id holds one id in all of its 3 rows: one patient only, or not the column that names patients"
    )


def test_too_few_patients_to_split(tmp_path):
    registry(tmp_path, *column(range(9), "number"))
    data = DataConfig(cohort="custom", source=str(tmp_path), valid_patients=9, train_questions=5, valid_questions=5)
    with pytest.raises(InputError, match="9 patients are too few for valid_patients = 9: lower it to at most 8"):
        prepare(data, tmp_path / "out", seed=1, progress=False)
    assert not (tmp_path / "out" / "registry").exists()


def test_rows_that_are_visits(tmp_path):
    registry(tmp_path, "id,x\n" + "".join(f"P{row // 3},{row}\n" for row in range(30)), "id,,,id,", "x,,,number,")
    refused(tmp_path, "10 ids of column id in 30 rows: rows look like visits, and one row must be one patient")


def test_mixed_ways_to_write_yes_and_no(tmp_path):
    cells = ["Yes", "yes", "1", "Y", "no", "0", "NA"]
    words = "yes or no is written in several ways: 1, Y, Yes, yes and 0, no; give a coding that says which mean the same: `1=Yes;"
    refused(registry(tmp_path, *column(cells)), f"column x: {words}")
    coding = "Yes=Yes; yes=Yes; 1=Yes; Y=Yes; no=No; 0=No; NA="
    raw = custom.read(registry(tmp_path, *column(cells, coding=coding)))
    assert raw.columns[0].values == ["Yes", "Yes", "Yes", "Yes", "No", "No", None]
    for texts, coding, words in (
        (cells, "1=Yes; 0=No; NA=", "4 cells do not fit .*row 2, column x: a label of the codebook among codes"),
        (["1", "0", "Y"], "1=Yes; 0=No", "row 4, column x: another way to write yes or no than the coding has"),
        (["m", "M"], "m=Male", "row 3, column x: a code that the codebook has with other upper and lower case"),
        (["m", "x"], "m=Male", "row 3, column x: a code that the codebook does not have"),
    ):
        refused(registry(tmp_path, *column(texts, coding=coding)), words)


def test_values_that_differ_in_upper_and_lower_case_are_said(tmp_path):
    raw = custom.read(registry(tmp_path, *column(["Rome", "rome", "Oslo"])))
    assert "column x: 1 of its values also occur with other upper and lower case letters" in raw.notes[0]


@pytest.mark.parametrize(
    ("texts", "mixed"),
    [
        (["Yes", "No"], []),
        (["Yes", "0"], []),  # one way each
        (["1", "2", "0", "y"], []),  # no column of answers
        (["no", "No"], []),  # nobody says yes: left to the note on letters
        (["ja", "J", "nein", "unknown"], ["J", "ja", "nein"]),
        (["TRUE", "true", "F"], ["TRUE", "true", "F"]),
    ],
)
def test_answers_in_several_ways(texts, mixed):
    assert mixed_answers(texts) == mixed


def test_labels_in_place_of_codes_are_read_and_said(tmp_path):
    raw = custom.read(registry(tmp_path, *column(["Male", "Female", ""], coding="1=Male; 2=Female")))
    assert raw.columns[0].values == ["Male", "Female", None]
    assert raw.notes == ["column x: holds the labels of its codes in place of these"]
    with pytest.raises(Problems, match="row 4, column x: a label of the codebook among codes"):
        custom.read(registry(tmp_path, *column(["1", "2", "Male"], coding="1=Male; 2=Female")))
