"""One table in every format that hospitals have: the same registry, whatever wrote it, and what is said about how it was read."""

from __future__ import annotations

import ctypes
import datetime
import gzip
import shutil
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pyreadstat
import pytest
import xlwt

from launch.prepare import draft_codebook
from shared.cohorts import custom
from shared.cohorts.custom.codebook import read_codebook
from shared.cohorts.custom.drafting import draft
from shared.cohorts.custom.problems import Problems
from shared.cohorts.custom.table import find_files, read_data
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation import prepare
from shared.questions.record import read_questions
from tests.support.custom_tables import EXAMPLE, formatted

NUMBERS = ("age", "sex", "lactate_high", "ecog")


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(EXAMPLE, tmp_path / "source"))


def example():
    """The documented table: numbers as such, blanks as none."""
    frame = pd.read_csv(EXAMPLE / "data.csv", dtype=str, keep_default_na=False).replace("", None)
    for name in NUMBERS:
        frame[name] = frame[name].astype("float64")
    return frame


def old_workbook(path, rows, *, formats=None, hidden=()):
    """A workbook of before 2007; `rows` by the name of a sheet."""
    book = xlwt.Workbook()
    styles = {kind: xlwt.easyxf(num_format_str=form) for kind, form in (formats or {}).items()}
    for name, cells in rows.items():
        sheet = book.add_sheet(name)
        sheet.visibility = int(name in hidden)
        for row, values in enumerate(cells):
            for column, value in enumerate(values):
                if value is not None and value == value:
                    sheet.write(row, column, value, *[styles[type(value)]] if type(value) in styles else [])
    book.save(str(path))
    return path


def as_rows(frame):
    return [list(frame.columns), *frame.to_numpy(dtype=object).tolist()]


WRITERS = {
    "DATA.CSV": lambda frame, path: frame.to_csv(path, index=False),
    "data.CSV.gz": lambda frame, path: path.write_bytes(gzip.compress(frame.to_csv(index=False).encode())),
    "data.tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "Data.txt": lambda frame, path: frame.to_csv(path, index=False, sep="|", encoding="utf-16"),
    "Data.XLSX": lambda frame, path: path.write_bytes(_xlsx(frame, path)),
    "data.xls": lambda frame, path: old_workbook(path, {"Data": as_rows(frame)}),
    "data.sav": lambda frame, path: pyreadstat.write_sav(frame, path),
    "data.zsav": lambda frame, path: pyreadstat.write_sav(frame, path, compress=True),
    "data.dta": lambda frame, path: pyreadstat.write_dta(frame, path),
}


def _xlsx(frame, path):
    frame.to_excel(path.with_name("other.xlsx"), index=False)
    content = path.with_name("other.xlsx").read_bytes()
    path.with_name("other.xlsx").unlink()
    return content


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_reads_alike(source, name):
    (source / "data.csv").unlink()
    WRITERS[name](example(), source / name)
    found, expected = custom.read(source), custom.read(EXAMPLE)
    assert [list(column.values) for column in found.columns] == [list(column.values) for column in expected.columns]
    assert list(found.ids) == list(expected.ids) and set(found.digests) == {name, "codebook.csv"}


def test_questions_are_equal_across_formats(source, tmp_path):
    made = {}
    for name in ("data.csv", "data.sav", "data.tsv", "data.xls"):
        folder = Path(shutil.copytree(EXAMPLE, tmp_path / name.replace(".", "_")))
        (folder / "data.csv").unlink()
        WRITERS.get(name, WRITERS["DATA.CSV"])(example(), folder / name)
        data = DataConfig(
            cohort="custom", source=str(folder), valid_patients=20, train_questions=40, valid_questions=10
        )
        prepare.prepare(data, folder / "out", seed=1, progress=False, salt="s")
        made[name] = read_questions(folder / "out" / "questions" / "train.parquet")
    assert made["data.csv"] and all(questions == made["data.csv"] for questions in made.values())


@pytest.mark.parametrize("ending", [".xlsx", ".XLSX", ".xls", ".txt"])
def test_a_codebook_may_be_a_workbook(source, ending):
    frame = pd.read_csv(source / "codebook.csv", dtype=str, keep_default_na=False)
    (source / "codebook.csv").unlink()
    path = source / f"Codebook{ending}"
    if ending == ".txt":
        frame.to_csv(path, sep=";", index=False)
    elif ending == ".xls":
        old_workbook(path, {"Codebook": as_rows(frame)})
    else:
        path.write_bytes(_xlsx(frame, path))
    assert read_codebook(path) == read_codebook(EXAMPLE / "codebook.csv")
    assert [c.values for c in custom.read(source).columns] == [c.values for c in custom.read(EXAMPLE).columns]
    with pytest.raises(InputError, match=rf"Codebook\{ending}: is there already; remove it"):
        draft_codebook(source)


def test_two_tables_none_and_one_of_another_name(source):
    shutil.copy(source / "data.csv", source / "DATA.TSV")
    with pytest.raises(InputError, match=r"holds DATA\.TSV and data\.csv; leave the one that is meant"):
        find_files(source)
    (source / "DATA.TSV").unlink()
    shutil.copy(source / "codebook.csv", source / "codebook.txt")
    with pytest.raises(InputError, match=r"holds codebook\.csv and codebook\.txt"):
        custom.read(source)
    (source / "codebook.txt").unlink()
    (source / "codebook.csv").unlink()
    with pytest.raises(InputError, match=r"missing codebook\.csv or codebook\.xlsx; --draft_codebook writes"):
        custom.read(source)
    (source / "data.csv").rename(source / "Registry 2024.SAV")
    with pytest.raises(InputError, match=r"missing data\.csv .*; there is Registry 2024\.SAV: name the table data"):
        find_files(source)


def write_text(folder, text, name="data.csv", encoding="utf-8"):
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def test_decimal_commas_and_semicolons_are_found_said_and_read(tmp_path):
    path = write_text(tmp_path, "id;temp;dose;n;codes\nP1;37,5;0,25;3;1,2\nP2;36;1,234;4;1,2,3\nP3;<35,0;;4;2\n")
    (tmp_path / "codebook.csv").write_text(
        'column,display_name,section,kind,coding\nid,,,id,\ntemp,,,number,"<35,0=<35"\ndose,,,number,\nn,,,number,\ncodes,,,text,\n'
    )
    raw = custom.read(tmp_path)
    assert [column.values for column in raw.columns] == [
        [37.5, 36.0, "<35"], [0.25, 1.234, None], [3.0, 4.0, 4.0], ["1,2", "1,2,3", "2"]
    ]  # fmt: skip
    assert list(raw.notes) == [
        "data.csv: cells are separated by semicolons; --delimiter names another separator",
        "data.csv: numbers have decimal commas (in temp, dose); --decimal=. reads decimal points",
    ]
    given = custom.read(tmp_path, delimiter="semicolon", decimal=",")
    assert [c.values for c in given.columns] == [c.values for c in raw.columns] and not given.notes
    kinds = {line.column: line.kind for line in draft(read_data(path))}
    assert kinds == {"id": "id", "temp": "number", "dose": "number", "n": "category", "codes": "ignore"}
    with pytest.raises(Problems) as caught:
        custom.read(tmp_path, decimal=".")
    assert {(p.row, p.column, p.problem) for p in caught.value.problems} >= {
        (2, "temp", "a decimal comma, where decimal points are read (--decimal)"),
        (3, "dose", "a number with marks of thousands; write it without them"),
    }


def test_a_comma_that_may_mark_thousands_is_refused(tmp_path):
    path = write_text(tmp_path, "id;cost\nP1;1,234\nP2;500\nP3;2,000\n")
    (tmp_path / "codebook.csv").write_text("column,display_name,section,kind\nid,,,id\ncost,,,number\n")
    words = (
        r"column cost, row 2: numbers such as 1,234 may have a decimal comma or a mark of thousands; give --decimal=,"
    )
    for read in (lambda: custom.read(tmp_path), lambda: draft(read_data(path))):
        with pytest.raises(InputError, match=words) as caught:
            read()
        assert "\n" not in str(caught.value)
    assert custom.read(tmp_path, decimal="comma").columns[0].values == [1.234, 500.0, 2.0]
    with pytest.raises(Problems, match="marks of thousands; write it without them"):
        custom.read(tmp_path, decimal="point")
    (tmp_path / "codebook.csv").write_text("column,display_name,section,kind\nid,,,id\ncost,,,category\n")
    assert custom.read(tmp_path).columns[0].values == ["1,234", "500", "2,000"]  # where nothing depends on it


@pytest.mark.parametrize(
    ("text", "decimal"),
    [
        ("id;a\n1;1.5\n2;2,5\n", "."),  # both: points count, and the comma is refused where a number is wanted
        ("id;a\n1;12,3456\n2;1\n", ","),
        ("id;a\n1;0,123\n2;1\n", ","),
        ("id;a\n1;1.234,5\n2;1\n", ","),
        ("id;a\n1;1,234.5\n2;1,234\n", "."),
        ('id,a\n1,"1,2,3"\n2,"1,2"\n3,2\n', "."),  # several answers
        ("id;a\n1;x\n2;y\n3;z\n4;u\n5;1,5\n", "."),  # texts
        ("id;a\n1;1,5e-3\n2;NA\n3;<0,3\n", ","),
    ],
)
def test_the_mark_of_decimals(tmp_path, text, decimal):
    table = read_data(write_text(tmp_path, text))
    assert table.decimal == decimal and not table.undecided
    assert read_data(write_text(tmp_path, text), decimal=".").decimal == "."


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("id;a, b;c\nP1;1,5;2\nP2;2,5;3\n", ["id", "a, b", "c"]),  # commas fit the names only
        ("id,a;b\nP1,2\nP2,3\n", ["id", "a;b"]),
        ("id|a\nP1|2\n", ["id", "a"]),
        ("sep=;\nid;a\nP1;2\n", ["id", "a"]),
        ('"id";"a"\n"P1";"x;y"\n', ["id", "a"]),
    ],
)
def test_what_separates_cells_is_found(tmp_path, text, columns):
    table = read_data(write_text(tmp_path, text))
    assert list(table.columns) == columns and table.columns["id"][0] == "P1"
    assert table.number(0) == (3 if text.startswith("sep") else 2)


def test_a_separator_that_cannot_be_told_is_refused(tmp_path):
    path = write_text(tmp_path, "id;a,b\n1;2,3\n4;5,6\n")
    with pytest.raises(
        InputError, match=r"separated by commas or semicolons: give the right separator, such as --delimiter=comma"
    ):
        read_data(path)
    assert read_data(path, delimiter=";").columns == {"id": ["1", "4"], "a,b": ["2,3", "5,6"]}
    path = write_text(tmp_path, "id age\nP1 30\nP2 40\n", "data.txt")
    with pytest.raises(InputError, match="where blanks separate its cells, give --delimiter=space"):
        read_data(path)
    assert read_data(path, delimiter="space").columns["age"] == ["30", "40"]
    assert read_data(write_text(tmp_path, "patient id\nP1\nP2\n", "ids.txt")).columns == {"patient id": ["P1", "P2"]}
    for given, words in (
        ({"delimiter": "::"}, "must be one character, or one of comma"),
        ({"decimal": "'"}, "must be a comma or a point"),
        ({"delimiter": ".", "decimal": "."}, "is the mark of decimals too"),
    ):
        with pytest.raises(InputError, match=words):
            read_data(path, **given)
    old_workbook(tmp_path / "data.xls", {"Data": [["id"], ["P1"]]})
    with pytest.raises(InputError, match=r"delimiter = ';': a xls file needs no separator; leave it out"):
        read_data(tmp_path / "data.xls", delimiter=";")


def test_a_number_split_by_its_decimal_comma_is_named(tmp_path):
    path = write_text(tmp_path, "id,temp\nP1,37,5\nP2,36,9\n")
    with pytest.raises(InputError, match="as where a decimal comma splits a number: quote such numbers, or separate"):
        read_data(path)


@pytest.mark.parametrize(
    ("encoding", "said"),
    [("utf-8-sig", ""), ("utf-16", "is in UTF-16"), ("utf-16-le", ""), ("cp1252", "CP1252"), ("cp949", "CP949")],
)
def test_encodings_are_found_and_said(tmp_path, encoding, said):
    texts = ["남자", "여자", "호흡 곤란"] if encoding == "cp949" else ["Müller", "Größe", "café"]
    mark = "\ufeff" if encoding == "utf-16-le" else ""
    path = write_text(
        tmp_path, mark + "id,note\n" + "".join(f"P{i},{text}\n" for i, text in enumerate(texts)), encoding=encoding
    )
    table = read_data(path)
    assert table.columns["note"] == texts and list(table.columns) == ["id", "note"]
    assert said in "".join(table.notes) and bool(table.notes) == (encoding not in ("utf-8-sig",))


def test_provenance_records_how_a_file_was_read(source, tmp_path):
    frame = pd.read_csv(source / "data.csv", dtype=str, keep_default_na=False)
    (source / "data.csv").unlink()
    frame["lactate"] = frame["lactate"].str.replace(".", ",")
    frame.to_csv(source / "data.txt", sep=";", index=False)
    book = (source / "codebook.csv").read_text()
    (source / "codebook.csv").write_text(book.replace("NA=; <0.3=<0.3", '"NA=; <0,3=<0.3"'))
    sizes = {"valid_patients": 20, "train_questions": 20, "valid_questions": 10}
    data = DataConfig(cohort="custom", source=str(source), delimiter="semicolon", decimal=",", **sizes)
    prepare.prepare(data, tmp_path / "out", seed=1, progress=False)
    options = prepare.files.read_json(tmp_path / "out" / "questions" / "provenance.json")["options"]
    assert (options["delimiter"], options["decimal"]) == ("semicolon", ",")
    lactate = next(column for column in custom.read(source).columns if column.name == "lactate")
    assert lactate.values == next(column for column in custom.read(EXAMPLE).columns if column.name == "lactate").values
    for name in ("delimiter", "decimal", "exclude"):
        with pytest.raises(InputError, match=rf"{name} = ';': goes with cohort = 'custom' only"):
            DataConfig(cohort="sepsis", source="x", **{name: ";"})


def test_cells_of_an_old_workbook_keep_their_kinds(tmp_path):
    day, moment = datetime.date(2024, 2, 29), datetime.datetime(2024, 2, 29, 8, 30)
    formats = {datetime.date: "YYYY-MM-DD", datetime.datetime: "YYYY-MM-DD HH:MM", datetime.time: "HH:MM"}
    rows = [["id", "n", "x", "day", "at", "time", "ok"], ["P1", 3, 1.5, day, moment, datetime.time(8, 30), True],
            ["P2", None, 2, day, moment, datetime.time(0, 0), False]]  # fmt: skip
    path = old_workbook(
        tmp_path / "data.xls", {"Old": [["a"]], "Data": rows, "More": [["b"]]}, formats=formats, hidden=["Old"]
    )
    table = read_data(path)
    assert table.columns == {
        "id": ["P1", "P2"], "n": [3, ""], "x": [1.5, 2], "day": [datetime.datetime(2024, 2, 29)] * 2, "at": [moment] * 2,
        "time": [datetime.time(8, 30), datetime.time(0, 0)], "ok": [True, False],
    }  # fmt: skip
    assert table.notes == ["data.xls: read from sheet 'Data'; not read: 'Old' (hidden), 'More'"]


def test_merged_cells_of_an_old_workbook_are_refused(tmp_path):
    for first, words in (
        (2, "cells B3:B4 are merged, so that only the first"),
        (0, "cells B1:B2 of its first row are merged"),
    ):
        book = xlwt.Workbook()
        sheet = book.add_sheet("Data")
        for row, cells in enumerate((["id", "age"], ["P1", 1], ["P2", 2], ["P3", 3])):
            for column, cell in enumerate(cells):
                if not (column == 1 and first <= row <= first + 1):
                    sheet.write(row, column, cell)
        sheet.write_merge(first, first + 1, 1, 1, "age")
        book.save(str(tmp_path / "data.xls"))
        with pytest.raises(InputError, match=words):
            read_data(tmp_path / "data.xls")


@pytest.mark.parametrize("content", [b"", b"id,age\n1,2\n", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600)])
@pytest.mark.parametrize("name", ["data.xls", "data.sav", "data.zsav"])
def test_a_file_that_is_not_what_its_name_says(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: not a readable") as caught:
        read_data(tmp_path / name)
    assert "\n" not in str(caught.value)


def spss(path, **options):
    """A file of SPSS with labels, dates, durations and missing values that it declares."""
    day, moment = datetime.date(2020, 3, 15), datetime.datetime(2020, 3, 15, 8, 30)
    frame = pd.DataFrame(
        {
            "id": ["P1", "P2", "P3", "P4"],
            "sex": [1.0, 2.0, 9.0, np.nan],
            "pain": [0.0, 95.0, 99.0, 7.5],
            "word": ["x", "zz", "y", ""],
            "day": [day, None, day, day],
            "at": [moment, None, moment, moment],
            "time": [30_600.0, 0.0, np.nan, 60.0],
            "stay": [30_600.0, 108_000.0, np.nan, 60.0],
            "quarter": [13_803_695_000.0, np.nan, np.nan, np.nan],
        }
    )
    pyreadstat.write_sav(
        frame, path, column_labels={"sex": "Sex at birth"}, missing_ranges={"pain": [{"lo": 90, "hi": 99}], "word": ["zz"]},
        variable_value_labels={"sex": {1: "Male", 2: "Female", 9: "Unknown"}, "word": {"x": "Ex"}},
        variable_format={"time": "TIME8", "stay": "DTIME10", "quarter": "QYR8"}, **options,
    )  # fmt: skip
    return path


def test_spss_labels_missing_values_and_dates(tmp_path):
    table = read_data(spss(tmp_path / "data.sav"))
    day, moment = datetime.datetime(2020, 3, 15), datetime.datetime(2020, 3, 15, 8, 30)
    assert table.columns == {
        "id": ["P1", "P2", "P3", "P4"], "sex": ["Male", "Female", "Unknown", ""], "pain": [0.0, "", "", 7.5],
        "word": ["Ex", "", "y", ""], "day": [day, "", day, day], "at": [moment, "", moment, moment],
        "time": [datetime.time(8, 30), datetime.time(0), "", datetime.time(0, 1)], "stay": [30_600.0, 108_000.0, "", 60.0],
        "quarter": [day, "", "", ""],
    }  # fmt: skip
    assert table.codes["sex"] == [1.0, 2.0, 9.0, ""] and table.labels == {"sex": "Sex at birth"}
    assert table.notes == [
        "data.sav: column stay holds times beyond a day; they are left as seconds",
        "data.sav: column quarter holds quarters; each is read as its first day",
        "data.sav: values that the file declares missing are blank, in pain, word",
    ]
    lines = {line.column: line for line in draft(table)}
    assert (
        lines["sex"].coding == {"1": "Male", "2": "Female", "9": "Unknown"}
        and lines["sex"].display_name == "Sex at birth"
    )
    assert "may mean missing" in lines["sex"].look_at


@pytest.mark.parametrize(
    ("coding", "values", "said"),
    [
        ("1=M; 2=F; 9=", ["M", "F", None, None], "shown by the labels of the codebook"),  # the file's codes
        ("Male=M; Female=F; Unknown=", ["M", "F", None, None], ""),  # the file's labels
        ("", ["Male", "Female", "Unknown", None], ""),
        ("a=Male; b=Female; c=Unknown", ["Male", "Female", "Unknown", None], "holds the labels of its codes"),
    ],
)
def test_a_codebook_may_name_codes_or_labels_of_a_file(tmp_path, coding, values, said):
    spss(tmp_path / "data.sav")
    ignored = "".join(f"{name},,,ignore,\n" for name in ("pain", "word", "day", "at", "time", "stay", "quarter"))
    (tmp_path / "codebook.csv").write_text(
        f"column,display_name,section,kind,coding\nid,,,id,\nsex,,,category,{coding}\n{ignored}"
    )
    raw = custom.read(tmp_path)
    assert raw.columns[0].values == values
    assert any("column sex" in note for note in raw.notes) == bool(said) and said in " ".join(raw.notes)


def test_labels_of_a_few_numbers_are_no_categories(tmp_path):
    frame = pd.DataFrame({"id": [f"P{i}" for i in range(8)], "vas": [0.0, 1.5, 2, 3, 4, 5, 10, 999]})
    pyreadstat.write_sav(
        frame, tmp_path / "data.sav", variable_value_labels={"vas": {0: "none", 10: "worst", 999: "Refused"}}
    )
    (line,) = [line for line in draft(read_data(tmp_path / "data.sav")) if line.column == "vas"]
    assert (line.kind, line.coding) == ("number", {"0": "0", "10": "10", "999": ""})
    draft_codebook(tmp_path)
    assert custom.read(tmp_path).columns[0].values == ["0", 1.5, 2.0, 3.0, 4.0, 5.0, "10", None]
    book = (tmp_path / "codebook.csv").read_text()
    (tmp_path / "codebook.csv").write_text(book.replace("0=0; 10=10; 999=", "10=10; 999="))
    with pytest.raises(
        Problems, match="row 2, column vas: a label of the file in place of a number; say in the coding"
    ):
        custom.read(tmp_path)


def readstat(path, fill):
    """Write a file by the C library that is in pyreadstat, which offers SAS files to nobody but itself."""
    library = ctypes.CDLL(str(next(Path(pyreadstat.__path__[0]).glob("_readstat_writer*.so"))))
    for name in ("readstat_writer_init", "readstat_add_label_set", "readstat_add_variable"):
        getattr(library, name).restype = ctypes.c_void_p
    chunks = []

    @ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    def sink(data, size, _):
        chunks.append(ctypes.string_at(data, size))
        return size

    writer = ctypes.c_void_p(library.readstat_writer_init())
    library.readstat_set_data_writer(writer, sink)
    fill(library, writer)
    assert library.readstat_end_writing(writer) == 0
    library.readstat_writer_free(writer)
    path.write_bytes(b"".join(chunks))


DOUBLE, STRING = 5, 0


def catalogue(path, formats):
    """A SAS catalogue of formats: for each the label of each number."""

    def fill(library, writer):
        for name, labels in formats.items():
            labelled = ctypes.c_void_p(library.readstat_add_label_set(writer, DOUBLE, name.encode()))
            for value, label in labels.items():
                library.readstat_label_double_value(labelled, ctypes.c_double(value), label.encode())
        assert library.readstat_begin_writing_sas7bcat(writer, None) == 0

    readstat(path, fill)


def sas_table(path, numbers, form):
    """A SAS table of ids and of numbers with a format."""

    def fill(library, writer):
        x = ctypes.c_void_p(library.readstat_add_variable(writer, b"sex", DOUBLE, ctypes.c_size_t(8)))
        library.readstat_variable_set_format(x, form.encode())
        identifier = ctypes.c_void_p(library.readstat_add_variable(writer, b"id", STRING, ctypes.c_size_t(4)))
        assert library.readstat_begin_writing_sas7bdat(writer, None, ctypes.c_long(len(numbers))) == 0
        for row, number in enumerate(numbers):
            library.readstat_begin_row(writer)
            library.readstat_insert_double_value(writer, x, ctypes.c_double(number))
            library.readstat_insert_string_value(writer, identifier, f"P{row}".encode())
            library.readstat_end_row(writer)

    readstat(path, fill)


@pytest.mark.parametrize("name", ["data.sas7bdat", "data.xpt"])
def test_labels_of_sas_formats_stand_in_a_catalogue(tmp_path, name):
    if name == "data.xpt":
        formatted(tmp_path / name, {"sex": [1.0, 2.0, 3.0], "id": ["P0", "P1", "P2"]}, {"sex": "SEXF"})
    else:
        sas_table(tmp_path / name, [1.0, 2.0, 3.0], "SEXF")
    table = read_data(tmp_path / name)
    assert table.columns["sex"] == [1.0, 2.0, 3.0]
    assert "codes are shown as they are" in table.notes[0] and "put it into the folder): sex (SEXF)" in table.notes[0]
    catalogue(tmp_path / "formats.SAS7BCAT", {"SEXF": {1.0: "Male", 2.0: "Female"}, "OTHER": {1.0: "x"}})
    found = find_files(tmp_path)
    assert found.catalogue == tmp_path / "formats.SAS7BCAT"
    table = read_data(tmp_path / name, catalogue=found.catalogue)
    assert table.columns["sex"] == ["Male", "Female", 3.0] and not table.notes
    (tmp_path / "codebook.csv").write_text("column,display_name,section,kind\nid,,,id\nsex,,,category\n")
    raw = custom.read(tmp_path)
    assert raw.columns[0].values == ["Male", "Female", "3"] and "formats.SAS7BCAT" in raw.digests
    catalogue(tmp_path / "formats.SAS7BCAT", {"OTHER": {1.0: "x"}})
    assert "formats.SAS7BCAT has not: sex (SEXF)" in custom.read(tmp_path).notes[0]
    (tmp_path / "formats.SAS7BCAT").write_bytes(b"no catalogue")
    with pytest.raises(InputError, match=r"formats\.SAS7BCAT: not a readable sas7bcat file"):
        custom.read(tmp_path)
    catalogue(tmp_path / "more.sas7bcat", {"SEXF": {1.0: "x"}})
    with pytest.raises(InputError, match=r"holds formats\.SAS7BCAT and more\.sas7bcat; leave the one"):
        custom.read(tmp_path)


def test_days_are_shown_without_a_time(source, tmp_path):
    frame = pd.read_csv(source / "data.csv", dtype=str, keep_default_na=False)
    frame["born"] = [f"19{30 + row % 60}-03-0{1 + row % 9}" for row in range(len(frame))]
    (source / "data.csv").unlink()
    book = openpyxl.Workbook()
    for row in as_rows(frame.assign(born=[datetime.datetime.fromisoformat(day) for day in frame["born"]])):
        book.active.append(row)
    book.save(source / "data.xlsx")
    with (source / "codebook.csv").open("a") as stream:
        stream.write("born,Born,History,datetime,,,,\n")
    data = DataConfig(cohort="custom", source=str(source), valid_patients=20, train_questions=200, valid_questions=10)
    prepare.prepare(data, tmp_path / "out", seed=1, progress=False)
    made = read_questions(tmp_path / "out" / "questions" / "train.parquet")
    shown = [line for question in made for line in question.context.splitlines() if line.startswith("Born: 19")]
    assert shown and all(len(line) == len("Born: 1930-03-01") for line in shown)
    times = [line for question in made for line in question.context.splitlines() if line.startswith("Admission: 20")]
    assert times and all(len(line) == len("Admission: 2023-01-03 17:15:00") for line in times)
