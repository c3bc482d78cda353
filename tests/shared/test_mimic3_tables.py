"""Reading PhysioNet's files: what is accepted, and one clear line for everything that is wrong."""

import gzip
import shutil

import pandas as pd
import pytest

from benchmarks import mimic3_tables
from shared.cohorts.mimic3 import tables
from tests.support.mimic3_folders import change, lines_of, refusal, write_lines, written


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    mimic3_tables.write(folder, 6, seed=1)
    return folder


@pytest.fixture
def source(original, tmp_path):
    return shutil.copytree(original, tmp_path / "source")


@pytest.mark.slow
def test_names_in_either_case_packed_or_not_give_the_same(source, original, tmp_path):
    for number, path in enumerate(sorted(source.iterdir())):
        if number % 2:
            lines = lines_of(path)
            path.unlink()
            lines[0] = lines[0].lower()
            (source / path.name.lower().removesuffix(".gz")).write_text("\n".join(lines) + "\n")
    for name in ("ce", "demog", "vaso_mv", "preadm_fluid"):
        pd.testing.assert_frame_equal(written(source, tmp_path / "a", name), written(original, tmp_path / "b", name))


def test_missing_files_are_all_named(source, tmp_path):
    (source / "LABEVENTS.csv.gz").unlink()
    (source / "D_ITEMS.csv.gz").unlink()
    message = refusal(source, tmp_path)
    assert "LABEVENTS.csv" in message and "D_ITEMS.csv" in message and "CHARTEVENTS" not in message


def test_no_folder(tmp_path):
    assert "nowhere" in refusal(tmp_path / "nowhere", tmp_path)


@pytest.mark.parametrize("sign", ["files", "folders", "columns"])
def test_mimic_iv_is_recognised(source, tmp_path, sign):
    if sign == "files":
        (source / "INPUTEVENTS_MV.csv.gz").rename(source / "inputevents.csv.gz")
    elif sign == "folders":
        (source / "INPUTEVENTS_MV.csv.gz").unlink()
        (source / "icu").mkdir()
    else:
        change(source, "ICUSTAYS", 1, lambda header: header.replace("ICUSTAY_ID", "stay_id"))
    assert "MIMIC-IV" in refusal(source, tmp_path)


def test_two_files_for_one_table(source, tmp_path):
    shutil.copy(source / "PATIENTS.csv.gz", source / "patients.csv.gz")
    assert "keep one" in refusal(source, tmp_path)


def test_a_missing_column(source, tmp_path):
    change(source, "CHARTEVENTS", 1, lambda header: header.replace("VALUENUM", "NUMBER"))
    message = refusal(source, tmp_path)
    assert "CHARTEVENTS.csv.gz" in message and "VALUENUM" in message


def test_a_doubled_column(source, tmp_path):
    change(source, "OUTPUTEVENTS", 1, lambda header: header + ",value")
    assert "VALUE twice" in refusal(source, tmp_path)


def test_a_wrong_delimiter(source, tmp_path):
    path = source / "OUTPUTEVENTS.csv.gz"
    write_lines(path, [line.replace(",", ";") for line in lines_of(path)])
    message = refusal(source, tmp_path)
    assert "OUTPUTEVENTS.csv.gz" in message and "commas" in message


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99, 1.0])
def test_a_file_cut_off(source, tmp_path, share):
    path = source / "CHARTEVENTS.csv.gz"
    content = path.read_bytes()
    path.write_bytes(content[: int((len(content) - 1) * share)])  # at 1.0 the last byte of its checksum is missing
    message = refusal(source, tmp_path)
    assert "CHARTEVENTS.csv.gz" in message and "again" in message


def test_a_file_that_is_not_packed_at_all(source, tmp_path):
    (source / "LABEVENTS.csv.gz").write_text("HADM_ID,ITEMID,CHARTTIME,VALUENUM\n")
    assert "LABEVENTS.csv.gz" in refusal(source, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "line", "column", "value", "words"),
    [
        ("CHARTEVENTS", 40, 6, "secret7", "VALUENUM is not a number"),
        ("LABEVENTS", 9, 2, "2101-13-01 00:00:00", "CHARTTIME is not a time"),
        ("ICUSTAYS", 3, 2, "one", "ICUSTAY_ID is not a whole number"),
        ("INPUTEVENTS_MV", 5, 4, "much", "AMOUNT is not a number"),
    ],
)
def test_a_cell_of_the_wrong_kind(source, tmp_path, name, line, column, value, words):
    def edit(text):
        cells = text.split(",")
        cells[column] = value
        return ",".join(cells)

    change(source, name, line, edit)
    message = refusal(source, tmp_path)
    assert f"{name}.csv.gz, line {line}" in message and words in message
    assert value not in message  # what stands in a patient's record is not repeated


@pytest.mark.slow
@pytest.mark.parametrize("value", ["nan", "-inf", "1e999"])
@pytest.mark.parametrize(("name", "column"), [("CHARTEVENTS", 6), ("LABEVENTS", 3)])
def test_a_number_that_is_not_finite(source, tmp_path, name, column, value):
    def edit(text):
        cells = text.split(",")
        cells[column] = value
        return ",".join(cells)

    change(source, name, 7, edit)
    assert f"{name}.csv.gz: VALUENUM holds a number that is not finite" in refusal(source, tmp_path)


def test_a_text_in_another_encoding(source, tmp_path):
    path = source / "CHARTEVENTS.csv.gz"
    content = gzip.decompress(path.read_bytes()).splitlines()
    cells = content[300].split(b",")
    content[300] = b",".join([*cells[:5], b"caf\xe9", *cells[6:]])
    path.write_bytes(gzip.compress(b"\n".join(content) + b"\n"))
    assert "CHARTEVENTS.csv.gz, line 301: a text is not in UTF-8" in refusal(source, tmp_path)


def test_a_row_that_is_too_short_or_open(source, tmp_path):
    change(source, "PRESCRIPTIONS", 3, lambda line: "1,2")
    assert "PRESCRIPTIONS.csv.gz, line 3: 2 columns in place of 5" in refusal(source, tmp_path)
    change(source, "PRESCRIPTIONS", 3, lambda line: '1,2,,,"open')
    assert "quote" in refusal(source, tmp_path)


@pytest.mark.parametrize(("name", "key"), [("ICUSTAYS", "ICUSTAY_ID"), ("PATIENTS", "SUBJECT_ID")])
def test_a_doubled_stay_or_patient(source, tmp_path, name, key):
    path = source / f"{name}.csv.gz"
    lines = lines_of(path)
    write_lines(path, [*lines, lines[2]])
    message = refusal(source, tmp_path)
    assert f"{name}.csv.gz, line {len(lines) + 1}: {key} occurs" in message


def test_a_stay_without_an_id(source, tmp_path):
    change(source, "ICUSTAYS", 2, lambda line: ",".join([*line.split(",")[:2], "", *line.split(",")[3:]]))
    assert "ICUSTAY_ID is missing in 1 row" in refusal(source, tmp_path)


def test_an_empty_text_is_a_value_and_an_empty_cell_is_not(source, tmp_path):
    header, first, *_ = lines_of(source / "CHARTEVENTS.csv.gz")
    subject, admission, stay = first.split(",")[:3]
    rows = [f'{subject},{admission},{stay},467,2100-01-01 0{hour}:00:00,{value},'
            for hour, value in enumerate(['""', "", '"Face Tent"', '"Something"'])]  # fmt: skip
    write_lines(source / "CHARTEVENTS.csv.gz", [header, *rows])
    found = written(source, tmp_path / "a", "ce")
    assert found["valuenum"].fillna(-1).tolist() == [
        8,
        3,
        -1,
    ]  # the empty cell makes no row, the unknown text no number


def test_codes_keep_their_leading_zeros(source, tmp_path):
    path = source / "PRESCRIPTIONS.csv.gz"
    header, first, *_ = lines_of(path)
    write_lines(path, [header, *(first.replace("009346", code) for code in ("009346", "9346", "009346 002542", ""))])
    assert len(written(source, tmp_path / "a", "abx")) == 1


@pytest.mark.parametrize(
    ("amount", "expected"), [("1.0005", 5.003), ("0.0001", 0.001), ("0.00009", 0.0), ("-1.0005", -5.003), ("2", 10.0)]
)
def test_decimals_are_rounded_as_postgres_does(source, tmp_path, amount, expected):
    path = source / "INPUTEVENTS_CV.csv.gz"
    header, first, *_ = lines_of(path)
    cells = dict(zip(header.split(","), first.split(","), strict=True)) | {"ITEMID": "30009", "AMOUNT": amount}
    write_lines(path, [header, ",".join(cells.values())])
    assert written(source, tmp_path / "a", "fluid_cv")["tev"].tolist() == [expected]


def test_digests_follow_the_files(source, tmp_path):
    record = tmp_path / "digests.json"
    first = tables.digests(tables.find(source), record)
    assert tables.digests(tables.find(source), record) == first
    change(source, "PATIENTS", 2, lambda line: line.replace("F", "M").replace("M,", "F,"))
    second = tables.digests(tables.find(source), record)
    assert {name for name in first if first[name] != second[name]} == {"PATIENTS.csv.gz"}
