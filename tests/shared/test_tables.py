"""What workbooks and CSV files may hold that reads as something else: sizes, sheets, formulas, names, ids."""

from __future__ import annotations

import re
import shutil
import unicodedata
import zipfile
from pathlib import Path

import openpyxl
import openpyxl.chart
import pandas as pd
import pytest

from launch.prepare import draft_codebook
from shared.cohorts import custom, tables
from shared.cohorts.custom.codebook import read_codebook, write_codebook
from shared.cohorts.custom.drafting import draft
from shared.cohorts.custom.problems import Problems
from shared.cohorts.custom.table import read_data
from shared.cohorts.stroke.cleaning import joined
from shared.cohorts.tables import RawTable, plain_name, read_table
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation import prepare, summary
from shared.questions.record import read_questions
from tests.support.custom_tables import EXAMPLE, edit

DATA_ROWS = [["id", "age", "site"], *[[f"P{i:02}", 20 + i, "AB"[i % 2]] for i in range(60)]]


def workbook(path, sheets, *, states=None):
    """A workbook of sheets by name, each a list of rows."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for name, rows in sheets.items():
        sheet = book.create_sheet(name)
        for row in rows:
            sheet.append(row)
        sheet.sheet_state = (states or {}).get(name, "visible")
    book.save(path)
    return path


def patched(path, edit_xml, part="xl/worksheets/sheet1.xml"):
    """Change the XML of one part of a workbook."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    before = parts[part].decode()
    parts[part] = edit_xml(before).encode()
    assert parts[part].decode() != before
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("dimension", ["A1:A1", "A1:B41", "A1", "A1:XFD1048576", "B7:C9", None])
def test_the_size_that_a_sheet_claims_does_not_count(tmp_path, dimension):
    path = workbook(tmp_path / "data.xlsx", {"Sheet": DATA_ROWS})
    claim = f'<dimension ref="{dimension}"/>' if dimension else ""
    patched(path, lambda xml: re.sub(r"<dimension [^>]*/>", claim, xml))
    table = read_table(path)
    assert table.rows == 60 and list(table.columns) == ["id", "age", "site"]
    assert table.columns["age"] == [20 + i for i in range(60)] and table.columns["site"][59] == "B"


@pytest.mark.parametrize("state", ["hidden", "veryHidden"])
def test_the_first_visible_sheet_is_read_and_said(tmp_path, state):
    sheets = {"Old": [["id", "age"], ["X", 1]], "Data": DATA_ROWS, "Notes": [["text"]]}
    table = read_table(workbook(tmp_path / "data.xlsx", sheets, states={"Old": state}))
    assert table.rows == 60 and table.columns["id"][0] == "P00"
    assert table.notes == ["data.xlsx: read from sheet 'Data'; not read: 'Old' (hidden), 'Notes'"]
    one = read_table(workbook(tmp_path / "one.xlsx", {"Data": DATA_ROWS}))
    assert one.rows == 60 and not one.notes


def test_a_chart_sheet_before_the_table_is_no_sheet_of_cells(tmp_path):
    book = openpyxl.Workbook()
    for row in DATA_ROWS:
        book.active.append(row)
    chart = openpyxl.chart.LineChart()
    chart.add_data(openpyxl.chart.Reference(book.active, min_col=2, min_row=1, max_row=9))
    book.create_chartsheet("Chart", 0).add_chart(chart)
    book.save(tmp_path / "data.xlsx")
    assert read_table(tmp_path / "data.xlsx").rows == 60


def test_hidden_sheets_only_are_refused(tmp_path):
    path = workbook(tmp_path / "data.xlsx", {"A": DATA_ROWS, "B": DATA_ROWS}, states={"B": "hidden"})
    patched(path, lambda xml: xml.replace('name="A" sheetId="1" state="visible"', 'name="A" sheetId="1" state="hidden"'),
            "xl/workbook.xml")  # fmt: skip
    with pytest.raises(InputError, match=r"data\.xlsx: every sheet of cells is hidden \('A', 'B'\)"):
        read_table(path)


FORMULA = [["id", "age", "double"], ["P1", 30, "=B2*2"], ["P2", 40, "=B3*2"]]


def test_formulas_without_values_are_refused(tmp_path):
    path = workbook(tmp_path / "data.xlsx", {"Data": FORMULA})
    with pytest.raises(
        InputError, match=r"data\.xlsx, sheet 'Data': cell C2 and 1 more are formulas that were never"
    ) as caught:
        read_table(path)
    assert "\n" not in str(caught.value)
    patched(path, lambda xml: xml.replace("<f>B2*2</f><v />", "<f>B2*2</f><v>60</v>"))
    with pytest.raises(InputError, match="cell C3 is a formula that was never calculated"):
        read_table(path)


def test_formulas_with_values_are_read(tmp_path):
    path = workbook(tmp_path / "data.xlsx", {"Data": FORMULA})
    patched(path, lambda xml: xml.replace("<f>B2*2</f><v />", "<f>B2*2</f><v>60</v>")
            .replace('<c r="C3"><f>B3*2</f><v />', '<c r="C3" t="str"><f>B3*2</f><v></v>'))  # fmt: skip
    assert read_table(path).columns["double"] == [60, ""]  # a formula may give an empty text


def test_formulas_that_a_program_filled_with_zeros_are_refused(tmp_path):
    path = workbook(tmp_path / "data.xlsx", {"Data": FORMULA})
    patched(path, lambda xml: re.sub(r"</f><v />", "</f><v>0</v>", xml))
    with pytest.raises(InputError, match="never calculated"):
        read_table(path)
    patched(path, lambda xml: xml.replace('fullCalcOnLoad="1"', 'fullCalcOnLoad="0"'), "xl/workbook.xml")
    assert read_table(path).columns["double"] == [0, 0]  # Excel's own file, where zeros are results


def reversed_rows(xml):
    rows = re.findall("<row .*?</row>", xml)
    return xml.replace("".join(rows), "".join(rows[:1] + rows[:0:-1]))


@pytest.mark.parametrize(
    "edit_xml",
    [
        reversed_rows,
        lambda xml: xml.replace('<row r="3"', '<row r="2"').replace("C3", "C2").replace("B3", "B2").replace("A3", "A2"),
        lambda xml: re.sub('(<c r="A2".*?</c>)(<c r="B2".*?</c>)', r"\2\1", xml),
    ],
    ids=["rows", "a row twice", "cells"],
)
def test_rows_and_cells_out_of_order_are_refused(tmp_path, monkeypatch, edit_xml):
    """openpyxl leaves out a row or a cell that comes behind a later one."""
    path = workbook(tmp_path / "data.xlsx", {"Sheet": DATA_ROWS})
    patched(path, edit_xml)
    for chunk in (2**20, 100):  # whatever part of the file a tag stands in
        monkeypatch.setattr("shared.cohorts.workbook.CHUNK", chunk)
        with pytest.raises(InputError, match="sheet 'Sheet': row [0-9]+ comes behind row [0-9]+, or its cells are not"):
            read_table(path)


def test_merged_cells_are_found_however_the_file_quotes_them(tmp_path):
    path = workbook(tmp_path / "data.xlsx", {"Data": [["id", "site"], ["P1", "A"], ["P2", None]]})
    patched(
        path, lambda xml: xml.replace("</sheetData>", "</sheetData><mergeCells><mergeCell ref='B2:B3'/></mergeCells>")
    )
    with pytest.raises(InputError, match="cells B2:B3 are merged"):
        read_table(path)


def test_merged_cells_are_refused_in_data_and_blank_in_metadata(tmp_path):
    path = workbook(tmp_path / "data.xlsx", {"Data": DATA_ROWS})
    book = openpyxl.load_workbook(path)
    book.active.merge_cells("C3:C5")
    book.save(path)
    with pytest.raises(InputError, match=r"data\.xlsx, sheet 'Data': cells C3:C5 are merged, so that only the first"):
        read_table(path)
    assert read_table(path, merged=True).columns["site"][:5] == ["A", "B", "", "", "A"]


@pytest.mark.parametrize("value", ["#N/A", "#DIV/0!", "#REF!", "#VALUE!"])
def test_error_values_are_no_texts(tmp_path, value):
    rows = [list(row) for row in DATA_ROWS]
    rows[7][2] = value
    path = workbook(tmp_path / "data.xlsx", {"Data": rows})
    with pytest.raises(InputError, match=rf"sheet 'Data': row 8, column 3 holds {re.escape(value)}"):
        read_table(path)
    (tmp_path / "data.csv").write_text("\n".join(",".join(map(str, row)) for row in rows))
    with pytest.raises(InputError, match=r"data\.csv: row 8, column 3"):
        read_table(tmp_path / "data.csv")


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(EXAMPLE, tmp_path / "source"))


def test_error_values_and_dates_in_categories_are_problems_of_a_custom_registry(source):
    edit(source / "data.csv", 4, "hospital", "#N/A")
    edit(source / "data.csv", 6, "age", "#DIV/0!")
    edit(source / "data.csv", 7, "age", "12_3")
    edit(source / "data.csv", 8, "age", "1e30")
    with pytest.raises(Problems) as caught:
        custom.read(source)
    assert [(found.row, found.column, found.problem) for found in caught.value.problems] == [
        (4, "hospital", "an error value of a spreadsheet"),
        (6, "age", "an error value of a spreadsheet"),
        (7, "age", "not a number"),
        (8, "age", "a number of 1e+30 or more"),
    ]
    edit(source / "data.csv", 8, "age", "1e20")
    with pytest.raises(Problems) as caught:
        custom.read(source)
    assert caught.value.problems[-1].problem == "too large a number beside the others of its column"
    edit(source / "codebook.csv", 3, "coding", "#N/A=; A=A; B=B; C=C")  # a codebook may say what it means
    with pytest.raises(Problems) as caught:
        custom.read(source)
    assert [found.row for found in caught.value.problems] == [6, 7, 8]


def test_cells_of_a_workbook_keep_their_kinds(source):
    table = pd.read_csv(source / "data.csv", dtype=str, keep_default_na=False)
    rows = [list(table.columns), *table.to_numpy().tolist()]
    place = {name: rows[0].index(name) for name in rows[0]}
    for number, row in enumerate(rows[1:]):
        row[place["age"]] = int(row[place["age"]])
        row[place["lactate_high"]] = {"0": False, "1": True}.get(row[place["lactate_high"]], "")
        row[place["admitted"]] = (
            pd.Timestamp(row[place["admitted"]]).to_pydatetime() if row[place["admitted"]] else None
        )
        if number == 3:
            row[place["hospital"]] = pd.Timestamp("2024-03-01").to_pydatetime()  # "3-1" typed into Excel
    (source / "data.csv").unlink()
    workbook(source / "data.xlsx", {"Data": rows})
    with pytest.raises(Problems) as caught:
        custom.read(source)
    assert [(found.row, found.column, found.problem) for found in caught.value.problems] == [
        (5, "hospital", "a date, where the codebook says category")
    ]
    rows[4][place["hospital"]] = table["hospital"][3]
    workbook(source / "data.xlsx", {"Data": rows})
    found, expected = custom.read(source), custom.read(EXAMPLE)
    assert [list(column.values) for column in found.columns] == [list(column.values) for column in expected.columns]


def test_rows_are_counted_as_in_the_file(source):
    lines = (source / "data.csv").read_text().splitlines()
    lines[3:3] = ["", ",,,,,,,,,"]  # two rows without a cell
    (source / "data.csv").write_text("\n".join(lines))
    edit(source / "data.csv", 7, "age", "old")
    with pytest.raises(Problems) as caught:
        custom.read(source)
    assert [(found.row, found.column) for found in caught.value.problems] == [(7, "age")]


@pytest.mark.parametrize(
    "written",
    [" age ", "age\u00a0", "\ufeffage", "a\u200bge", "ａｇｅ", "\tage\n"],
)
def test_names_match_whatever_their_blanks_and_form(source, written):
    rows = (source / "data.csv").read_text(encoding="utf-8").splitlines()
    rows[0] = rows[0].replace(",age,", f',"{written}",')
    (source / "data.csv").write_text("\n".join(rows), encoding="utf-8")
    assert [c.values for c in custom.read(source).columns] == [c.values for c in custom.read(EXAMPLE).columns]
    shutil.copy(EXAMPLE / "data.csv", source / "data.csv")
    edit(source / "codebook.csv", 5, "column", written)  # and on the other side
    assert [c.values for c in custom.read(source).columns] == [c.values for c in custom.read(EXAMPLE).columns]


@pytest.mark.parametrize(("one", "other"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFKD", "NFC")])
def test_hangul_and_accents_match_in_any_unicode_form(source, one, other):
    (source / "data.csv").write_text(
        unicodedata.normalize(
            one,
            "환자번호,나이 (세),구역,Größe\n"
            + "".join(f"{i},{30 + i},{'남' if i % 2 else '여'},1\n" for i in range(40)),
        ),
        encoding="utf-8",
    )
    (source / "codebook.csv").write_text(
        unicodedata.normalize(other, "column,display_name,section,kind,coding\n환자번호,,,id,\n나이  (세),,,number,\n"
                                     "구역,,,category,남=Male; 여=Female\nGröße,,,ignore,\n"),
        encoding="utf-8",
    )  # fmt: skip
    raw = custom.read(source)
    assert raw.columns[0].values[:2] == [30.0, 31.0] and raw.columns[1].values[:2] == ["Female", "Male"]


def test_names_that_become_one_are_refused(tmp_path):
    for content, words in (
        (
            "id,age,age \n1,2,3\n",
            r"these columns occur twice \(apart from blanks and the Unicode form of letters\): age",
        ),
        ("id,e\u0301,\u00e9\n1,2,3\n", "these columns occur twice: \u00e9"),
        ("id,age,age\n1,2,3\n", "these columns occur twice: age"),
    ):
        (tmp_path / "data.csv").write_text(content, encoding="utf-8")
        with pytest.raises(InputError, match=words):
            read_table(tmp_path / "data.csv")
    pd.DataFrame([[1, 2]], columns=["a", "a\u00a0"]).to_parquet(tmp_path / "data.parquet")
    with pytest.raises(InputError, match="occur twice"):
        read_table(tmp_path / "data.parquet")
    with pytest.raises(InputError, match="occur twice .apart from upper and lower case.: age"):
        tables.lower_names(RawTable(tmp_path, {"Age": [1], "age": [2]}))


def test_a_plain_name():
    assert (
        plain_name("  Age\u00a0\n(years) ") == "Age (years)"
        and plain_name(2020.0) == "2020"
        and plain_name("CO₂") == "CO2"
    )


@pytest.mark.parametrize("name", ["", '""', "Unnamed: 0"])
@pytest.mark.parametrize("start", [0, 1])
def test_a_column_of_row_numbers_is_left_out_and_said(source, name, start):
    lines = (source / "data.csv").read_text().splitlines()
    numbered = [f"{name},{lines[0]}", *(f"{i},{line}" for i, line in enumerate(lines[1:], start=start))]
    (source / "data.csv").write_text("\n".join(numbered))
    raw = custom.read(source)
    assert [c.values for c in raw.columns] == [c.values for c in custom.read(EXAMPLE).columns]
    (note,) = raw.notes
    assert note.startswith("data.csv: its first column") and "is left out" in note
    (source / "codebook.csv").unlink()
    write_codebook(source / "codebook.csv", draft(read_data(source / "data.csv")))
    assert read_codebook(source / "codebook.csv")[0].column == "patient_id"


def test_row_numbers_that_the_codebook_describes_are_kept(source):
    lines = (source / "data.csv").read_text().splitlines()
    lines = [f"Unnamed: 0,{lines[0]}", *(f"{i},{line}" for i, line in enumerate(lines[1:]))]
    (source / "data.csv").write_text("\n".join(lines))
    edit(source / "codebook.csv", 2, "kind", "ignore")
    with (source / "codebook.csv").open("a") as stream:
        stream.write("Unnamed: 0,,,id,,,,\n")
    raw = custom.read(source)
    assert list(raw.ids)[:3] == ["0", "1", "2"] and not raw.notes


@pytest.mark.parametrize("last", ["x", ""])
def test_names_shifted_by_row_names_are_refused(tmp_path, last):
    (tmp_path / "data.csv").write_text(f'"id","age"\n"1","P1",{last}\n"2","P2",{last}\n')
    with pytest.raises(
        InputError, match="row 2 has a cell in column 3, .* so has every row, as where R writes row names"
    ):
        read_table(tmp_path / "data.csv")


def test_a_named_index_of_parquet_is_a_column(tmp_path):
    pd.DataFrame({"age": [1, 2]}, index=pd.Index(["P1", "P2"], name="id")).to_parquet(tmp_path / "data.parquet")
    assert read_table(tmp_path / "data.parquet").columns == {"id": ["P1", "P2"], "age": [1, 2]}


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (200000.6, "an id with a fraction"),
        ("200000.6", "an id with a fraction"),
        (True, "TRUE or FALSE"),
        (float(2**53), "an id of 16 digits, of which a number in this file loses the last"),
        (1e20, "an id of 21 digits"),
        ("2.00001E+14", "shortened to a power of ten"),
        ("2E+14", "shortened to a power of ten"),
    ],
)
def test_ids_that_are_none(source, tmp_path, cell, words):
    table = RawTable(tmp_path / "data.csv", {"id": ["P1", cell]})
    with pytest.raises(InputError, match=rf"data\.csv: column id, row 3: .*{words}"):
        tables.identifiers(table, "id")
    if isinstance(cell, str):
        edit(source / "data.csv", 5, "patient_id", cell)
        with pytest.raises(Problems, match=rf"row 5, column patient_id: .*{words}"):
            custom.read(source)


@pytest.mark.parametrize(
    ("cell", "text"),
    [(200001.0, "200001"), ("200001.0", "200001"), (200001, "200001"), (" P 1 ", "P 1"), ("007", "007"), (2**60, str(2**60)),
     ("12345678901234567890", "12345678901234567890"), ("1-2", "1-2"), ("5e10", "5e10"), ("P１\u200b", "P1"),
     ("\ufeff7\u00a0", "7"), (None, ""), (float("nan"), "")],
)  # fmt: skip
def test_ids(tmp_path, cell, text):
    assert tables.identifiers(RawTable(tmp_path / "data.csv", {"id": [cell]}), "id") == [text]


def test_a_workbook_has_fifteen_digits_of_a_number(tmp_path):
    table = RawTable(tmp_path / "data.xlsx", {"id": [999999999999999, 1234567890123456]})
    with pytest.raises(InputError, match="row 3: an id of 16 digits"):
        tables.identifiers(table, "id")


def test_ids_are_joined_whatever_their_cells_hold(tmp_path):
    needed = ("edu1", "edu2", "ind_str", "3m_d", "dis_d", "cum_mve_1y", "cum_mve_1y_d", "mrs3mo", "arrival")
    data = RawTable(tmp_path / "data.xlsx", {"고유번호": [1, 2.0]} | {name: ["", ""] for name in needed})
    nihss = RawTable(tmp_path / "nihss.csv", {"고유번호": ["2", "1"], "score": ["b", "a"]})
    more = RawTable(tmp_path / "additional.csv", {"uni_num": ["1.0"], "more": ["m"]})
    found = joined(data, nihss, more)
    assert found["score"] == ["a", "b"] and found["more"] == ["m", None]
    with pytest.raises(
        InputError, match=r"nihss\.csv: no value of column 고유번호 is one of column 고유번호 in data\.xlsx"
    ):
        joined(data, RawTable(tmp_path / "nihss.csv", {"고유번호": ["A1"], "score": ["b"]}), more)


def test_a_csv_file_in_korean_is_read_and_said_or_by_its_encoding(source):
    text = (source / "data.csv").read_text().replace("made up note 0", "호흡 곤란")
    (source / "data.csv").write_bytes(text.encode("cp949"))
    found, given = custom.read(source), custom.read(source, encoding="cp949")
    for raw in (found, given):
        assert next(column for column in raw.columns if column.name == "note").values[0] == "호흡 곤란"
    assert "read as Korean (CP949), --encoding names another" in found.notes[0] and not given.notes
    with pytest.raises(InputError, match="not a readable CSV file in ascii"):
        custom.read(source, encoding="ascii")
    with pytest.raises(InputError, match="encoding = 'cp9499': no encoding of that name"):
        custom.read(source, encoding="cp9499")
    (source / "data.csv").write_bytes(text.replace("호흡 곤란", "мужчина").encode("cp1251"))
    with pytest.raises(
        InputError, match=r"data\.csv: not a readable CSV file in UTF-8.*name its encoding, such as --encoding=cp949"
    ):
        custom.read(source)


def test_a_draft_and_a_preparation_take_the_encoding(source, tmp_path):
    text = (source / "data.csv").read_text().replace("made up note", "호흡 곤란")
    (source / "data.csv").write_bytes(text.encode("cp949"))
    data = DataConfig(cohort="custom", source=str(source), encoding="cp949", valid_patients=20, train_questions=40,
                      valid_questions=10)  # fmt: skip
    prepare.prepare(data, tmp_path / "out", seed=1, progress=False)
    made = read_questions(tmp_path / "out" / "questions" / "train.parquet")
    assert any("호흡 곤란" in question.context for question in made)
    (source / "codebook.csv").unlink()
    assert "10 columns" in draft_codebook(source, encoding="cp949")
    with pytest.raises(InputError, match=r"encoding = 'cp949': goes with cohort = 'custom' only"):
        DataConfig(cohort="sepsis", source=str(source), encoding="cp949")


def test_what_was_left_out_is_kept_and_shown(source, tmp_path):
    table = pd.read_csv(source / "data.csv", dtype=str, keep_default_na=False)
    (source / "data.csv").unlink()
    workbook(source / "data.xlsx", {"Data": [list(table.columns), *table.to_numpy().tolist()], "Old": [["x"]]})
    data = DataConfig(cohort="custom", source=str(source), valid_patients=20, train_questions=40, valid_questions=10)
    prepare.prepare(data, tmp_path / "out", seed=1, progress=False)
    assert "note             data.xlsx: read from sheet 'Data'; not read: 'Old'" in summary.summary(tmp_path / "out")
