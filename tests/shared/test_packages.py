"""Stata and SAS files: encodings, missing values, dates and labels, against what was written into them by hand."""

from __future__ import annotations

import datetime
import struct

import numpy as np
import pandas as pd
import pytest

from shared.cohorts import custom
from shared.cohorts.custom.drafting import draft
from shared.cohorts.custom.table import read_data
from shared.errors import InputError
from tests.support.custom_tables import formatted, sas_transport

KOREAN = ["남자", "여자", "호흡 곤란", "서울대학교병원", "기타 38.5℃"]


def stata(path, frame, version, **options):
    """A Stata file; formats 113 and 115 differ from 114 in their number, 113 also in the width of its formats."""
    frame.to_stata(path, write_index=False, version={113: 114, 115: 114}.get(version, version), **options)
    content = bytearray(path.read_bytes())
    if version in (113, 115):
        content[0] = version
    if version == 113:  # formats have 12 letters, not 49
        start = 109 + frame.shape[1] * (1 + 33) + 2 * (frame.shape[1] + 1)
        formats = content[start : start + 49 * frame.shape[1]]
        content[start : start + len(formats)] = b"".join(formats[i : i + 12] for i in range(0, len(formats), 49))
    path.write_bytes(bytes(content))
    return path


def as_bytes(texts, encoding):
    """Texts whose letters are the bytes of an encoding: so pandas writes these bytes into old Stata files."""
    return [text.encode(encoding).decode("latin-1") for text in texts]


@pytest.mark.parametrize("encoding", ["cp949", "euc-kr"])
@pytest.mark.parametrize("version", [113, 114, 115, 117])
def test_korean_texts_of_old_stata_files(tmp_path, version, encoding):
    labels = {"sex": {1: "남", 2: "여"}}
    frame = pd.DataFrame({"note": as_bytes(KOREAN, encoding), "sex": [1, 2, 1, 2, 2]})
    path = stata(
        tmp_path / "data.dta", frame, version,
        variable_labels={"note": as_bytes(["주 증상"], encoding)[0]},
        value_labels={name: dict(zip(codes, as_bytes(codes.values(), encoding), strict=True)) for name, codes in labels.items()},
    )  # fmt: skip
    table = read_data(path)
    assert table.columns == {"note": KOREAN, "sex": ["남", "여", "남", "여", "여"]}
    assert table.labels["note"] == "주 증상"
    assert len(table.notes) == 1 and "read as Korean (CP949)" in table.notes[0]
    named = read_data(path, encoding=encoding)
    assert named.columns == table.columns and not named.notes


def test_korean_names_of_old_stata_files(tmp_path):
    (name,) = as_bytes(["구역"], "cp949")  # holds the bytes of a superscript and of an ordinal sign
    path = stata(tmp_path / "data.dta", pd.DataFrame({"xxxx": as_bytes(["²가", "남"], "cp949")}), 114)
    path.write_bytes(path.read_bytes().replace(b"xxxx", name.encode("latin-1"), 1))
    assert read_data(path).columns == {"구역": ["²가", "남"]}


@pytest.mark.parametrize("version", [114, 117])
@pytest.mark.parametrize(
    ("encoding", "texts"), [("utf-8", KOREAN), ("utf-8", ["Größe"]), ("cp1252", ["Müller", "Ärztin", "38 °C", "créée"])]
)
def test_other_texts_of_old_stata_files(tmp_path, version, encoding, texts):
    table = read_data(stata(tmp_path / "data.dta", pd.DataFrame({"note": as_bytes(texts, encoding)}), version))
    assert table.columns["note"] == texts
    assert [("Western" in note) for note in table.notes] == [True] * (encoding == "cp1252")


@pytest.mark.parametrize(("encoding", "text"), [("cp1251", "мужчина"), ("shift_jis", "呼吸困難"), ("cp1253", "άνδρας")])
def test_texts_in_an_encoding_that_cannot_be_told(tmp_path, encoding, text):
    path = stata(tmp_path / "data.dta", pd.DataFrame({"note": as_bytes([text], encoding)}), 114)
    with pytest.raises(
        InputError, match=r"data\.dta: the file does not say how its texts are encoded; name it"
    ) as caught:
        read_data(path)
    assert "\n" not in str(caught.value)
    assert read_data(path, encoding=encoding).columns["note"] == [text]
    with pytest.raises(InputError, match="some texts of the file are in another encoding"):
        read_data(path, encoding="utf-8")


@pytest.mark.parametrize("version", [118, 119])
def test_new_stata_files_are_in_utf8(tmp_path, version):
    frame = pd.DataFrame({"note": KOREAN})
    path = stata(tmp_path / "data.dta", frame, version)
    assert read_data(path).columns["note"] == KOREAN
    with pytest.raises(InputError, match="is in UTF-8; leave it out"):
        read_data(path, encoding="cp949")
    content = path.read_bytes()
    korean, width = KOREAN[0].encode(), len(KOREAN[0].encode("cp949"))
    path.write_bytes(content.replace(korean, KOREAN[0].encode("cp949") + b"\0" * (len(korean) - width)))
    with pytest.raises(InputError, match=r"data\.dta: some texts are not in UTF-8.*unicode translate"):
        read_data(path)


def test_missing_codes_and_value_labels_of_stata(tmp_path):
    frame = pd.DataFrame(
        {"id": ["a", "b", "c", "d"], "dose": [0.0, 2.0, 3.5, 1.0], "kind": np.array([1, 2, 9, 5], np.int8)}
    )
    path = stata(tmp_path / "data.dta", frame, 118, value_labels={"kind": {1: "other", 2: "fever", 9: "other"}})
    content = path.read_bytes()
    for number, code in ((3.5, "7fe0010000000000"), (1.0, "7fe01a0000000000")):  # .a and .z
        content = content.replace(struct.pack("<d", number), bytes.fromhex(code)[::-1])
    path.write_bytes(content)
    table = read_data(path)
    assert table.columns["dose"] == [0.0, 2.0, "", ""]
    assert table.columns["kind"] == ["other", "fever", "other", 5]  # one label for two codes; a code without a label


def test_dates_of_stata(tmp_path):
    day = pd.Timestamp("2024-02-29")
    frame = pd.DataFrame({"day": [day, pd.NaT], "left": [day, day], "month": [day, day]})
    path = stata(tmp_path / "data.dta", frame, 118, convert_dates={"day": "td", "left": "td", "month": "tm"})
    content = path.read_bytes()
    first = content.index(b"%td")
    path.write_bytes(content[: first + 57] + b"%-td" + content[first + 61 :])
    table = read_data(path)
    assert table.columns["day"] == [day, ""] and table.columns["left"] == [day, day]
    assert table.columns["month"] == [pd.Timestamp("2024-02-01")] * 2
    assert table.notes == ["data.dta: column month holds months; each is read as its first day"]


@pytest.mark.parametrize("form", [b"%tC", b"%tb"])
def test_dates_of_stata_that_are_not_read(tmp_path, form):
    day = pd.Timestamp("2024-02-29")
    path = stata(tmp_path / "data.dta", pd.DataFrame({"day": [day]}), 118, convert_dates={"day": "td"})
    path.write_bytes(path.read_bytes().replace(b"%td", form))
    with pytest.raises(InputError, match=rf"column day has Stata's format {form.decode()}, which is not read"):
        read_data(path)


def test_labels_of_stata_are_display_names(tmp_path):
    frame = pd.DataFrame({"id": ["a", "b"], "temp": np.array([7.4, 36.6], np.float32), "x": [1.5, 2.5]})
    path = stata(tmp_path / "data.dta", frame, 118, variable_labels={"temp": "Body temperature"})
    assert {line.column: line.display_name for line in draft(read_data(path))} == {
        "id": "id",
        "temp": "Body temperature",
        "x": "x",
    }
    (tmp_path / "codebook.csv").write_text(
        "column,display_name,section,kind\nid,,,id\ntemp,,,number\nx,X value,,number\n"
    )
    columns = custom.read(tmp_path).columns
    assert [column.display_name for column in columns] == ["Body temperature", "X value"]
    assert columns[0].values == [7.4, 36.6]  # as single precision was written, not as it is stored


def test_numbers_of_sas_transport_files(tmp_path):
    numbers = [0.0, 1.0, -1.0, 0.1, 37.5, 1e20, 1e-20, 123456789.0, -0.25]
    sas_transport(tmp_path / "data.xpt", {"x": numbers, "code": [0.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 2.0]})
    table = read_data(tmp_path / "data.xpt")
    assert table.columns["x"] == pytest.approx(numbers, rel=1e-15, abs=0)
    assert table.columns["code"] == [0.0, 1.0, 0.0, 1.0, 2.0, 0.0, 0.0, 1.0, 2.0]
    sas_transport(tmp_path / "data.xpt", {"id": [f"P{i}" for i in range(9)], "code": table.columns["code"]})
    (tmp_path / "codebook.csv").write_text(
        "column,display_name,section,kind,coding\nid,,,id,\ncode,,,category,0=No; 1=Yes; 2=Maybe\n"
    )
    assert custom.read(tmp_path).columns[0].values[:3] == ["No", "Yes", "No"]


@pytest.mark.parametrize("code", [b".", b"_", b"A", b"Z"])
def test_missing_codes_of_sas_transport_files(tmp_path, code):
    path = formatted(tmp_path / "data.xpt", {"x": [1.5, 2.5, 0.0]})
    content = path.read_bytes()
    written = struct.pack(">Q", 0x4128000000000000)  # 2.5 as IBM has it
    assert content.count(written) == 1
    path.write_bytes(content.replace(written, code + bytes(7)))
    assert read_data(path).columns["x"] == [1.5, "", 0.0]


DAY = (datetime.datetime(2024, 2, 29) - datetime.datetime(1960, 1, 1)).days


@pytest.mark.parametrize(
    ("form", "number", "value"),
    [
        ("DATE9", DAY, datetime.datetime(2024, 2, 29)),
        ("YYMMDDN8", DAY, datetime.datetime(2024, 2, 29)),
        ("E8601DA", DAY, datetime.datetime(2024, 2, 29)),
        ("MMDDYY", -1, datetime.datetime(1959, 12, 31)),
        ("DATETIME", DAY * 86400 + 8.5 * 3600, datetime.datetime(2024, 2, 29, 8, 30)),
        ("E8601DT", DAY * 86400, datetime.datetime(2024, 2, 29)),
        ("TIME5", 8.5 * 3600, datetime.time(8, 30)),
        ("HHMM", 0, datetime.time(0, 0)),
        ("BEST12", 5, 5.0),
        ("SEXF", 1, 1.0),
        ("", DAY, float(DAY)),
    ],
)
def test_dates_and_times_of_sas_by_their_formats(tmp_path, form, number, value):
    path = formatted(tmp_path / "data.xpt", {"x": [float(number), 7.0]}, {"x": form})
    assert read_data(path).columns["x"][0] == value


def test_times_beyond_a_day_and_impossible_dates(tmp_path):
    table = read_data(formatted(tmp_path / "data.xpt", {"x": [3600.0, 100_000.0]}, {"x": "TIME8"}))
    assert (
        table.columns["x"] == [3600.0, 100_000.0] and "times beyond a day; they are left as seconds" in table.notes[0]
    )
    with pytest.raises(InputError, match="column x, row 2 of the table: a date beyond the year 9999"):
        read_data(formatted(tmp_path / "data.xpt", {"x": [1.0, 1e9]}, {"x": "DATE9"}))


def test_labels_and_korean_texts_of_sas_transport_files(tmp_path):
    path = formatted(
        tmp_path / "data.xpt", {"sex": ["M   ", "F   "], "age": [50.0, 60.0]}, labels={"sex": "성별", "age": "Age"}
    )
    content = path.read_bytes()
    assert content.count(b"M   ") == 1
    path.write_bytes(content.replace(b"M   ", "남".encode("cp949") + b"  "))
    table = read_data(path)
    assert table.columns == {"sex": ["남", "F"], "age": [50.0, 60.0]} and table.labels == {"sex": "성별", "age": "Age"}
    assert "read as Korean" in table.notes[0]


def test_every_row_of_a_sas_transport_file_counts(tmp_path):
    texts = ["a" * 8, "", ""]  # blank texts in the last record look like what fills it
    columns = {"one": [text.ljust(8) for text in texts * 4], "two": [" " * 8] * 12, "x": [float(i) for i in range(12)]}
    sas_transport(tmp_path / "data.xpt", columns)
    assert read_data(tmp_path / "data.xpt").columns["x"] == [float(i) for i in range(12)]
    for rows in range(1, 12):
        sas_transport(tmp_path / "data.xpt", {name: cells[:rows] for name, cells in columns.items()})
        assert read_data(tmp_path / "data.xpt").rows == rows


def test_sas_transport_files_that_are_not_read(tmp_path):
    path = tmp_path / "data.xpt"
    sas_transport(path, {"x": [1.0]})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"HEADER RECORD*******LIBRARY ", b"HEADER RECORD*******LIBV8   "))
    with pytest.raises(InputError, match=r"data\.xpt: a SAS transport file of version 8; write it as version 5"):
        read_data(path)
    path.write_bytes(content[:-20])
    with pytest.raises(InputError, match=r"data\.xpt: is cut off"):
        read_data(path)
    path.write_bytes(content + content[240:])
    with pytest.raises(InputError, match=r"data\.xpt: holds 2 tables"):
        read_data(path)
    path.write_bytes(content[: content.index(b"OBS     HEADER") + 60])
    assert read_data(path).rows == 0
