"""MIMIC-III's files as another program wrote them: row numbers, names, numbers that DuckDB would take for others."""

from __future__ import annotations

import shutil

import duckdb
import pytest

from benchmarks import mimic3_tables
from shared.cohorts.mimic3 import extracts, tables
from shared.errors import InputError
from shared.preparation.prepare import prepare
from shared.preparation.summary import summary
from tests.support.mimic3_folders import change, data_of, lines_of, refusal, write_lines, written

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    mimic3_tables.write(folder, 6, seed=1)
    return folder


@pytest.fixture
def source(original, tmp_path):
    return shutil.copytree(original, tmp_path / "source")


def rewrite(folder, edit):
    """Change the lines of every table."""
    for path in folder.glob("*.csv.gz"):
        write_lines(path, edit(lines_of(path)))


def numbered(name, start=0):
    def edit(lines):
        return [f"{name},{lines[0]}", *(f"{i},{line}" for i, line in enumerate(lines[1:], start=start))]

    return edit


@pytest.mark.parametrize("name", ["", '""', "Unnamed: 0"])
def test_a_column_of_row_numbers_changes_nothing_and_is_said(source, original, tmp_path, name):
    rewrite(source, numbered(name))
    for extract in ("demog", "ce"):
        there, here = (written(folder, tmp_path / folder.name, extract) for folder in (original, source))
        assert len(there) and there.equals(here)
    prepare(data_of(source), tmp_path / "out", seed=1, progress=False)
    said = summary(tmp_path / "out")
    assert said.count("its first column (") == 12 and "ICUSTAYS.csv.gz: its first column" in said


def test_names_shifted_by_row_names_are_refused(source, tmp_path):
    path = source / "ICUSTAYS.csv.gz"
    lines = lines_of(path)
    write_lines(path, [lines[0], *(f'"{i}",{line}' for i, line in enumerate(lines[1:], start=1))])
    columns = len(lines[0].split(","))
    message = refusal(source, tmp_path)
    assert (
        f"ICUSTAYS.csv.gz, line 2: {columns + 1} columns in place of {columns}, as where R writes row names" in message
    )


@pytest.mark.parametrize("edit", [" {} ", "{}\u00a0", "\ufeff{}", "{}\u200b", '" {}"'])
def test_names_match_whatever_their_blanks(source, original, tmp_path, edit):
    change(source, "ICUSTAYS", 1, lambda line: line.replace("ICUSTAY_ID", edit.format("ICUSTAY_ID")))
    assert written(source, tmp_path / "a", "demog").equals(written(original, tmp_path / "b", "demog"))


def test_names_that_become_one_are_refused(source, tmp_path):
    rewrite(source, lambda lines: [lines[0] + ",subject_id\u00a0", *(f"{line},1" for line in lines[1:])])
    assert "SUBJECT_ID twice" in refusal(source, tmp_path)


def cell(column, value):
    def edit(line):
        cells = line.split(",")
        cells[column] = value
        return ",".join(cells)

    return edit


WHOLE, NUMBER = "is not a whole number", "is not a number"


@pytest.mark.parametrize(
    ("name", "column", "value", "words"),
    [
        ("ICUSTAYS", "ICUSTAY_ID", "200000.6", f"ICUSTAY_ID {WHOLE}"),
        ("ICUSTAYS", "ICUSTAY_ID", "200_000", f"ICUSTAY_ID {WHOLE}"),
        ("CHARTEVENTS", "ICUSTAY_ID", "0x1F", f"ICUSTAY_ID {WHOLE}"),
        ("CHARTEVENTS", "HADM_ID", "0b11", f"HADM_ID {WHOLE}"),
        ("LABEVENTS", "ITEMID", "50931.5", f"ITEMID {WHOLE}"),
        ("LABEVENTS", "HADM_ID", "1e19", f"HADM_ID {WHOLE}"),
        ("LABEVENTS", "HADM_ID", "NA", "a missing value must be an empty cell, not NA"),
        ("CHARTEVENTS", "VALUENUM", "1_000", f"VALUENUM {NUMBER}"),
        ("LABEVENTS", "VALUENUM", "12_3", f"VALUENUM {NUMBER}"),
        ("LABEVENTS", "VALUENUM", "1e1_0", f"VALUENUM {NUMBER}"),
        ("INPUTEVENTS_MV", "AMOUNT", "\uff19", f"AMOUNT {NUMBER}"),
        ("INPUTEVENTS_MV", "AMOUNT", '"1,000"', f"AMOUNT {NUMBER}"),
        ("OUTPUTEVENTS", "VALUE", "\u0661\u0662", f"VALUE {NUMBER}"),
        ("ICUSTAYS", "INTIME", "infinity", "INTIME is not a time"),
    ],
)
def test_numbers_that_are_read_as_others_are_refused_with_their_line(source, tmp_path, name, column, value, words):
    place = lines_of(source / f"{name}.csv.gz")[0].split(",").index(column)
    if value == '"1,000"':
        change(source, name, 5, lambda line: ",".join([*line.split(",")[:place], value, *line.split(",")[place + 1 :]]))
    else:
        change(source, name, 5, cell(place, value))
    message = refusal(source, tmp_path)
    assert f"{name}.csv.gz, line 5: " in message and words in message
    assert value in ("NA",) or value not in message


def test_the_line_counts_breaks_within_cells(source, tmp_path):
    place = lines_of(source / "CHARTEVENTS.csv.gz")[0].split(",").index("VALUE")
    change(source, "CHARTEVENTS", 3, cell(place, '"two\nlines"'))
    change(source, "CHARTEVENTS", 9, cell(place + 1, "1_0"))
    assert "CHARTEVENTS.csv.gz, line 9: VALUENUM is not a number" in refusal(source, tmp_path)


@pytest.mark.parametrize("mixed", [False, True])
def test_lines_end_alike_or_it_is_said(tmp_path, mixed):
    names = [name.upper() for name in tables.TABLES["d_items"]]
    path = tmp_path / "D_ITEMS.csv"
    path.write_bytes((",".join(names) + "\r\n" + ("1\n2\r\n" if mixed else "1\r\n2\r\n")).encode())
    table = {"d_items": tables.Table("d_items", path, tuple(names))}
    with duckdb.connect(":memory:") as connection:
        tables.make_views(connection, table)
        if mixed:
            with (
                pytest.raises(InputError, match=r"D_ITEMS\.csv: some lines end with a carriage return"),
                tables.reading(table),
            ):
                connection.execute("SELECT * FROM d_items").fetchall()
        else:
            assert connection.execute("SELECT itemid FROM d_items").fetchall() == [(1,), (2,)]


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [("icustay_id", "200001.0", 200001), ("icustay_id", "2e+05", 200000), ("icustay_id", " 200001 ", 200001),
     ("icustay_id", "0200001", 200001), ("icustay_id", "9007199254740993", 9007199254740993), ("icustay_id", "", None),
     ("los", "1e-3", 0.001), ("los", "-.5", -0.5), ("los", "12", 12.0), ("los", "", None)],
)  # fmt: skip
def test_numbers(tmp_path, kind, text, value):
    header = [name.upper() for name in tables.TABLES["icustays"]]
    cells = ["1", "2", "3", "MICU", "2101-01-01 00:00:00", "2101-01-02 00:00:00", "1.0"]
    cells[header.index(kind.upper())] = text
    (tmp_path / "ICUSTAYS.csv").write_text(",".join(header) + "\n" + ",".join(cells) + "\n")
    table = tables.Table("icustays", tmp_path / "ICUSTAYS.csv", tuple(header))
    with duckdb.connect(":memory:") as connection:
        tables.make_views(connection, {"icustays": table})
        assert connection.execute(f"SELECT {kind} FROM icustays").fetchall() == [(value,)]


@pytest.mark.parametrize(
    ("name", "column", "codes", "lost"),
    [
        ("PRESCRIPTIONS", "GSN", ["9346.0", "001790"], True),
        ("PRESCRIPTIONS", "GSN", ["9346", "1790"], True),
        ("PRESCRIPTIONS", "GSN", ["009346", "45309", "NDC"], False),
        ("DIAGNOSES_ICD", "ICD9_CODE", ["389", "31"], True),
        ("DIAGNOSES_ICD", "ICD9_CODE", ["99591.0", "4280"], True),
        ("DIAGNOSES_ICD", "ICD9_CODE", ["0389", "V5861", "486", "E8788"], False),
    ],
)
def test_codes_that_lost_their_zeros_are_refused(source, tmp_path, name, column, codes, lost):
    path = source / f"{name}.csv.gz"
    header, first, *_ = lines_of(path)
    write_lines(path, [header, *(cell(header.split(",").index(column), code)(first) for code in codes)])
    if lost:
        assert f"{name}.csv.gz: {column} has lost the zeros at the beginning of its codes" in refusal(source, tmp_path)
    else:
        found = tables.find(source)
        with extracts.connected(found, tmp_path / "spill", memory=10**9, threads=1) as connection:
            assert tables.check_keys(connection, found)["patients"] > 0
