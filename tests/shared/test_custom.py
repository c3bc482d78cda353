"""Everybody else's registry: the documented example, drafts, and every way in which a table may not fit its codebook."""

from __future__ import annotations

import csv
import datetime
import decimal
import shutil
import stat
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from shared.cohorts import custom
from shared.cohorts.custom.codebook import COLUMNS, read_codebook, write_codebook
from shared.cohorts.custom.drafting import draft
from shared.cohorts.custom.problems import REPORT, Problems
from shared.cohorts.custom.table import read_data
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation import prepare
from shared.preparation.summary import summary
from shared.questions.record import read_questions
from shared.registry.build import RawColumn, RawRegistry, build
from tests.support.custom_tables import EXAMPLE, edit, sas_transport


@pytest.fixture
def source(tmp_path):
    return Path(shutil.copytree(EXAMPLE, tmp_path / "source"))


def test_the_documented_example_becomes_questions(source, tmp_path):
    data = DataConfig(cohort="custom", source=str(source), valid_patients=20, train_questions=60, valid_questions=20)
    prepare.prepare(data, tmp_path / "out", seed=1, progress=False)
    made = read_questions(tmp_path / "out" / "questions" / "train.parquet")
    assert made and all(question.cohort == "custom" for question in made)
    for question in made:
        assert "hospital" not in question.context.lower() and "phone" not in question.context.lower()
        if question.feature in ("lactate", "lactate_high"):
            assert question.context.count("Lactate") == 1  # the other of its leak group is not shown
    leaks = pd.read_csv(tmp_path / "out" / "registry" / "leaks.csv")
    pair = leaks[(leaks["asked"] == "lactate") & (leaks["hidden"] == "lactate_high")]
    assert "leak group" in pair["reason"].iloc[0]
    patients = pd.read_parquet(tmp_path / "out" / "questions" / "patients.parquet")
    assert set(patients["site"]) == {"A", "B", "C"} and "unknown" in set(patients["sex"])


@pytest.mark.slow
def test_values_that_are_asked_for_many_times_are_said(source, tmp_path):
    data = DataConfig(cohort="custom", source=str(source), valid_patients=20, train_questions=4_000, valid_questions=50)
    prepare.prepare(data, tmp_path / "out", seed=1, progress=False)
    made = read_questions(tmp_path / "out" / "questions" / "train.parquet")
    values = len({(question.patient, question.feature) for question in made})
    (line,) = [line for line in summary(tmp_path / "out").splitlines() if "asked often" in line]
    assert (
        f"each of {values:,} values {len(made) / values:.0f} times" in line
        and f"--train_questions={10 * values} " in line
    )


def test_cells_become_values(source):
    raw = custom.read(source)
    columns = {column.name: column for column in raw.columns}
    assert columns["age"].display_name == "Age (years)" and columns["age"].section == "[Admission]"
    assert columns["sex"].coded == ("Male", "Female") and None in columns["sex"].values  # 9 has no label
    assert columns["lactate"].values[0] is None and columns["lactate"].values[17] == "<0.3"
    assert raw.ordered == {"ecog": ("0", "1", "2", "3", "4")} and raw.reference == "admitted"
    assert not columns["hospital"].visible and "phone" not in columns
    registry = build(raw, valid_patients=20, seed=1, split="site", held_out="B")
    assert set(registry.valid["hospital"]) == {"B"} and "B" not in set(registry.train["hospital"])
    late = build(raw, valid_patients=20, seed=1, split="time", held_out="2023-09-01")
    assert late.valid["admitted"].min() >= pd.Timestamp("2023-09-01") > late.train["admitted"].max()


@pytest.mark.parametrize("suffix", ["parquet", "xlsx", "dta"])
def test_other_formats_read_alike(source, suffix):
    table = pd.read_csv(source / "data.csv", dtype=str, keep_default_na=False)
    (source / "data.csv").unlink()
    write = {
        "parquet": table.to_parquet,
        "xlsx": table.to_excel,
        "dta": lambda p, index: table.to_stata(p, write_index=index),
    }
    write[suffix](source / f"data.{suffix}", index=False)
    assert [column.values for column in custom.read(source).columns] == [c.values for c in custom.read(EXAMPLE).columns]


def test_a_sas_transport_file_reads_alike(source):
    short = {"patient_id": "pat_id", "lactate_high": "lact_hi"}  # SAS allows eight letters
    table = pd.read_csv(source / "data.csv", dtype=str, keep_default_na=False).rename(columns=short)
    (source / "data.csv").unlink()
    columns = {name: table[name].tolist() for name in table.columns}
    columns["age"] = [float(cell) for cell in columns["age"]]
    sas_transport(source / "data.xpt", columns)
    for row, line in enumerate(csv.DictReader((EXAMPLE / "codebook.csv").open(encoding="utf-8")), start=2):
        edit(source / "codebook.csv", row, "column", short.get(line["column"], line["column"]))
    found, expected = custom.read(source), custom.read(EXAMPLE)
    assert list(found.ids) == list(expected.ids)
    assert [list(column.values) for column in found.columns] == [list(column.values) for column in expected.columns]


@pytest.mark.parametrize("suffix", ["parquet", "xlsx", "dta", "sas7bdat", "xpt"])
def test_a_file_that_is_not_what_its_name_says(source, suffix):
    (source / "data.csv").rename(source / f"data.{suffix}")
    with pytest.raises(InputError, match=rf"data\.{suffix}: not a readable") as caught:
        custom.read(source)
    assert "\n" not in str(caught.value)


def test_all_problems_are_listed_by_row_and_column(source, tmp_path):
    for row, column, value in (
        (3, "age", "secret words"), (5, "admitted", "soon"), (9, "sex", "7"), (12, "patient_id", "X000"), (14, "patient_id", ""),
    ):  # fmt: skip
        edit(source / "data.csv", row, column, value)
    data = DataConfig(cohort="custom", source=str(source), valid_patients=20, train_questions=60, valid_questions=20)
    with pytest.raises(Problems, match="5 cells do not fit.*row 3, column age: not a number") as caught:
        prepare.prepare(data, tmp_path / "out", seed=1, progress=False)
    report = tmp_path / "out" / REPORT
    text = report.read_text()
    assert "secret" not in text + str(caught.value) and stat.S_IMODE(report.stat().st_mode) == 0o600
    listed = [(int(row["row"]), row["column"]) for row in csv.DictReader(text.splitlines())]
    assert listed == [(3, "age"), (5, "admitted"), (9, "sex"), (12, "patient_id"), (14, "patient_id")]
    assert not (tmp_path / "out" / "questions").exists() and not (tmp_path / "out" / "registry").exists()


@pytest.mark.parametrize(("cell", "code"), [("-9.0", "-9"), ("-9", "-9.0"), ("-9.00", "-9"), ("-9", "-9")])
def test_a_code_of_a_number_matches_however_it_is_written(source, cell, code):
    """pandas writes -9.0 for a code of a column in which a cell is empty; it would become a measured value."""
    edit(source / "codebook.csv", 5, "coding", f"{code}=")
    edit(source / "data.csv", 3, "age", cell)
    found = next(column for column in custom.read(source).columns if column.name == "age")
    assert found.kind == "number" and found.values[1] is None and found.values[2] > 0


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        ("2023-01-31T08:30+09:00", "a time with a time zone"),
        ("2023-01-31 08:30Z", "a time with a time zone"),
        (
            "9999-12-31",
            "a date outside the years 1700 to 2250; if it means missing, give it as a code, such as 9999-12-31=",
        ),
        ("0001-01-01", "a date outside the years"),
    ],
)
def test_a_date_that_would_be_changed_is_a_problem(source, cell, words):
    edit(source / "data.csv", 5, "admitted", cell)
    with pytest.raises(Problems, match=f"row 5, column admitted: {words}"):
        custom.read(source)


@pytest.mark.parametrize("held_out", ["09/01/2023", "2023-09-01T00:00Z", "2023-13", "soon", "1"])
def test_a_date_to_hold_out_from_has_one_meaning(source, held_out):
    with pytest.raises(InputError, match="held_out = .*: not a date such as 2023-01-31, or year"):
        build(custom.read(source), valid_patients=20, seed=1, split="time", held_out=held_out)


def test_dates_beyond_what_pandas_counts_are_refused():
    days = [datetime.datetime(2024, 1, 1), datetime.datetime(9999, 12, 31), datetime.datetime(2024, 1, 3)]
    raw = RawRegistry(cohort="test", ids=["a", "b", "c"], columns=[RawColumn("seen", "Seen", "", "", days)])
    with pytest.raises(InputError, match="column seen, patient 2 of 3: a date outside the years 1678 to 2261"):
        build(raw, valid_patients=1, seed=1)


@pytest.mark.parametrize(
    ("row", "column", "value", "words"),
    [
        (4, "kind", "float", "line 4 .admitted.: kind 'float' is not one of"),
        (4, "column", "arrived", "only in the codebook: arrived; only in the data: admitted"),
        (5, "column", "sex", "have two lines: sex"),
        (2, "kind", "text", "exactly one line must be of kind id, there are 0"),
        (6, "coding", "1;2", "coding '1' is not of the form code=label"),
        (6, "coding", "1=a;1=b", "code 1 comes twice"),
        (5, "role", "doctor", "role 'doctor' is not one of"),
        (5, "role", "sex", "two lines have the role sex"),
        (9, "coding", "", "kind ordinal needs a coding"),
        (4, "coding", "x=; 9999-12-31=never", "line 4 .admitted.: a date can have codes for missing only"),
    ],
)
def test_a_codebook_that_does_not_fit_is_one_clear_line(source, row, column, value, words):
    edit(source / "codebook.csv", row, column, value)
    with pytest.raises(InputError, match=words) as caught:
        custom.read(source)
    assert "\n" not in str(caught.value)


def test_a_draft_can_be_read_and_names_an_id(source):
    (source / "codebook.csv").unlink()
    write_codebook(source / "codebook.csv", draft(read_data(source / "data.csv")))
    kinds = {line.column: line.kind for line in read_codebook(source / "codebook.csv")}
    assert kinds == {
        "patient_id": "id", "hospital": "category", "admitted": "datetime", "age": "number", "sex": "category",
        "lactate": "number", "lactate_high": "category", "ecog": "category", "note": "ignore", "phone": "ignore",
    }  # fmt: skip
    assert build(custom.read(source), valid_patients=10, seed=1).statistics
    with pytest.raises(InputError, match="is there already"):
        write_codebook(source / "codebook.csv", [])
    assert set(COLUMNS) >= {"column", "kind", "coding", "leak_group"}


def test_a_draft_shows_nothing_that_could_name_a_patient(source):
    """Initials, remarks (though few and repeated), a phone number and the keys beside the id are drafted as `ignore`."""
    rows = ["initials,remark,subject,hospital_no,Contact Phone,sex,ward,lactate,grade"]
    for number in range(40):
        remark = ("pt transferred from ED", "seen at home by the doctor")[number % 2]
        first, second = divmod(number, 6)
        cells = (f"{'ABCDEFG'[first]}{'HJKLMN'[second]}", remark, 500 + number, f"H-{number}", f"0{number}12345",
                 "MF"[number % 2], ("North wing", "South wing")[number % 2], ("1.2", "3.4", "<0.3", "NA", "2.2", "5.1")[second],
                 ("mild", "severe")[number % 2])  # fmt: skip
        rows.append(",".join(map(str, cells)))
    (source / "data.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lines = {line.column: line for line in draft(read_data(source / "data.csv"))}
    assert {name: line.kind for name, line in lines.items()} == {
        "initials": "ignore", "remark": "ignore", "subject": "id", "hospital_no": "ignore", "Contact Phone": "ignore",
        "sex": "category", "ward": "category", "lactate": "number", "grade": "category",
    }  # fmt: skip
    assert lines["lactate"].coding == {"<0.3": "<0.3", "NA": ""}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty, its first row should name the columns"),
        (b"a,a\n1,2\n", "these columns occur twice: a"),
        (b"\xff\xfe\x00", "not a readable CSV file in UTF-16; save it in UTF-8"),
        (b"a,b\n1,2,3\n", "row 2 has a cell in column 3, which has no name"),
        (b'a,b\n1,"x\n2,y\n3,z\n', "not a readable CSV file .unexpected end of data"),
        (b"a,b\n1," + b"x" * 40_000 + b"\n", "row 2, column 2 holds 40,000 characters"),
    ],
)
def test_damaged_tables_are_one_clear_line(source, content, words):
    (source / "data.csv").write_bytes(content)
    with pytest.raises(InputError, match=words) as caught:
        custom.read(source)
    assert "\n" not in str(caught.value)


TRUTHS = [True, False, True, False, None, True] * 4


@pytest.fixture
def table(tmp_path):
    """A table with what CSV cannot hold: truth values, lists, structures, bytes, decimals, times of day."""
    rows = len(TRUTHS)
    return tmp_path, pd.DataFrame(
        {
            "id": [f"p{row}" for row in range(rows)],
            "alive": pd.array(TRUTHS, dtype="boolean"),
            "x": [row * row for row in range(rows)],
            "codes": [[row % 3, 1] for row in range(rows)],
            "part": [{"a": row} for row in range(rows)],
            "image": [b"abc"] * rows,
            "price": [decimal.Decimal(f"{row}.5") for row in range(rows)],
            "at": [datetime.time(row % 24, 5) for row in range(rows)],
        }
    )


@pytest.mark.parametrize("name", ["data.parquet", "data.xlsx"])
def test_truth_values_are_drafted_as_a_category(table, name):
    """TRUE and FALSE cells, as Excel and Parquet have them; they prepare as they would from a CSV file."""
    folder, frame = table
    frame = frame[["id", "alive", "x"]]
    frame.to_parquet(folder / name) if name.endswith("parquet") else frame.to_excel(folder / name, index=False)
    lines = draft(read_data(folder / name))
    assert {line.column: (line.kind, dict(line.coding)) for line in lines} == {
        "id": ("id", {}), "alive": ("category", {}), "x": ("number", {})
    }  # fmt: skip
    write_codebook(folder / "codebook.csv", lines)
    columns = {column.name: column.values for column in custom.read(folder).columns}
    assert columns["alive"] == [None if value is None else str(value).upper() for value in TRUTHS]


def test_lists_are_drafted_to_be_ignored_and_nothing_else(table):
    folder, frame = table
    frame.to_parquet(folder / "data.parquet")
    write_codebook(folder / "codebook.csv", draft(read_data(folder / "data.parquet")))
    kinds = {line.column: line.kind for line in read_codebook(folder / "codebook.csv")}
    assert kinds == {
        "id": "id", "alive": "category", "x": "number", "codes": "ignore", "part": "ignore", "image": "ignore",
        "price": "number", "at": "ignore",
    }  # fmt: skip
    assert {column.name for column in custom.read(folder).columns} == {"alive", "x", "price"}


@pytest.mark.parametrize("column", ["codes", "part", "image"])
@pytest.mark.parametrize("kind", ["id", "number", "category", "datetime", "text"])
def test_lists_that_are_asked_for_are_named(table, column, kind):
    folder, frame = table
    frame[["id", column]].to_parquet(folder / "data.parquet")
    other = "category" if kind == "id" else "id"
    (folder / "codebook.csv").write_text(
        f"column,display_name,section,kind\nid,id,,{other}\n{column},c,,{kind}\n", encoding="utf-8"
    )
    with pytest.raises(Problems, match="row 2, column .*: a list, a structure or bytes in place of") as caught:
        custom.read(folder)
    assert len(caught.value.problems) == len(frame)


def damages(content: bytes):
    """Cut off, zeroed, overwritten, in many places."""
    random = np.random.default_rng(1)
    for place in np.linspace(0, len(content) - 1, 12).astype(int):
        yield content[:place]
        yield content[:place] + bytes(40) + content[place + 40 :]
        yield content[:place] + random.bytes(8) + content[place + 8 :]


@pytest.mark.parametrize("name", ["data.csv", "data.csv.gz", "data.parquet", "data.xlsx", "data.dta"])
def test_a_damaged_table_is_read_or_refused_in_one_line(tmp_path, name):
    path = tmp_path / name
    frame = pd.DataFrame({"id": [f"p{row}" for row in range(300)], "x": range(300), "y": ["some text"] * 300})
    {
        "data.parquet": frame.to_parquet,
        "data.xlsx": lambda path: frame.to_excel(path, index=False),
        "data.dta": lambda path: frame.to_stata(path, write_index=False),
    }.get(name, lambda path: frame.to_csv(path, index=False))(path)
    content, refused = path.read_bytes(), 0
    for damaged in damages(content):
        path.write_bytes(damaged)
        try:
            read_data(path)
        except InputError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused or name == "data.csv"
    path.unlink()
    if name != "data.parquet":  # a folder of Parquet files is a table too
        path.mkdir()
        with pytest.raises(InputError, match="data"):
            read_data(path)


def test_a_failed_start_leaves_what_was_prepared(source, tmp_path):
    data = DataConfig(cohort="custom", source=str(source), valid_patients=20, train_questions=60, valid_questions=20)
    prepare.prepare(data, tmp_path / "out", seed=1, progress=False)
    before = read_questions(tmp_path / "out" / "questions" / "train.parquet")
    edit(source / "data.csv", 3, "age", "old")
    with pytest.raises(Problems):
        prepare.prepare(data, tmp_path / "out", seed=1, progress=False, overwrite=True)
    assert read_questions(tmp_path / "out" / "questions" / "train.parquet") == before
