"""The stroke registry: the original's codes, and what is mended in them."""

from __future__ import annotations

import math

import openpyxl
import pytest

from shared.cohorts import stroke
from shared.cohorts.stroke import coding, metadata
from shared.errors import InputError
from tests.support.golden_folder import parameters
from tests.support.golden_registry import FOLDER, lines, needs_golden, patients

golden = pytest.mark.golden
HEADER = ["필드정의", "SNUBH field name", "field character", "coding", "시작시점", "Row Name"]


def helper(name):
    path = "helper_cases.jsonl.gz"
    return parameters([case for case in lines(path) if case["fn"] == name], FOLDER / path)


@golden
@pytest.mark.parametrize("case", helper("stroke.parse_coding"))
def test_code_tables(case):
    found = coding.parse_coding(case["inp"])
    assert (None if found is None else dict(found)) == (None if case["out"] is None else dict(map(tuple, case["out"])))


@golden
@pytest.mark.parametrize("case", helper("stroke.edu"))
def test_education(case):
    if case["error"]:
        with pytest.raises(coding.UnknownCode):
            coding.education(*case["inp"])
    else:
        assert coding.education(*case["inp"]) == case["out"]


@pytest.mark.slow
@golden
@pytest.mark.parametrize("case", helper("stroke.map_value"))
def test_values_of_codes(case):
    table = None if case["mapping"] is None else dict(map(tuple, case["mapping"]))
    value = math.nan if case["isnan"] else case["inp"]
    if case["error"]:
        with pytest.raises(coding.UnknownCode):
            coding.decode(case["col"], value, table, paper=True)
    else:
        assert coding.decode(case["col"], value, table, paper=True) == case["out"]


@pytest.mark.parametrize(
    ("name", "value", "paper", "mended"),
    [
        ("tia", None, "Yes", "No"),
        ("tia", "", "No", "No"),
        ("tia", 0, "No", "No"),
        ("foo", 0, "no", "No"),
        ("foo", 999, "NA", "NA"),
    ],
)
def test_what_is_mended(name, value, paper, mended):
    assert coding.decode(name, value, {1: "Yes"}, paper=True) == paper
    assert coding.decode(name, value, {1: "Yes"}) == mended


def test_an_unknown_code_is_an_error_that_names_column_and_code():
    with pytest.raises(InputError, match="column toast: code '8' is not in its coding"):
        coding.decode_column("toast", [1, 8], {1: "LAA", 2: "SVO"}, {}, paper=False)
    assert coding.decode_column("toast", [1, 8, 0], {1: "LAA", 2: "SVO"}, {}, paper=True) == ["LAA", None, None]


@pytest.mark.slow
@golden
@needs_golden
def test_values_of_the_registry_are_mended():
    raw = stroke.read(FOLDER / "stroke" / "raw")
    assert len(raw.ids) == sum(patients("stroke").values())
    assert raw.roles == {"time": "arrival", "sex": "sex", "age": "age"}
    columns = {column.name: column for column in raw.columns}
    for column in raw.columns:
        assert not {"no", "NA"} & {value for value in column.values if isinstance(value, str)}, column.name
    # A vessel that is not symptomatic was cleared, which the original took for a yes.
    sides = zip(columns["a_mca"].values, columns["a_mca_s"].values, strict=True)
    assert {symptomatic for side, symptomatic in sides if side is None} == {"No"}


def book(path, rows):
    made = openpyxl.Workbook()
    for row in rows:
        made.active.append([None if cell == "" else cell for cell in row])
    made.save(path)
    return path


def test_metadata_is_read_block_by_block(tmp_path):
    rows = [
        ["Basics", "", "", "", "", ""],
        HEADER,
        ["Sex", "SEX", "코드", "남자-1 여자-0", "b", "Sex"],
        ["Phone", "phone", "텍스트", "", "b", ""],
        ["", "", "", "", "", ""],
        ["Basics", "", "", "", "", ""],
        HEADER,
        ["Twice", "sex", "코드", "", "b", "Repeated title: left out"],
        ["a footnote", "", "", "", "", ""],
        ["", "", "", "", "", ""],
        ["More", "", "", "", "", ""],
        HEADER,
        ["Risk Factors(dm 유 무 ", "x", "코드", "1=예/ 0=아니오", "b", "Diabetes"],
        ["Day", "im-pos", "날짜/시간", "", "b", "Day"],
    ]
    fields = metadata.read_metadata(book(tmp_path / "metadata.xlsx", rows))
    assert [(field.name, field.display_name, field.dated) for field in fields] == [
        ("sex", "Sex", False), ("hx_dm", "Diabetes", False), ("im_pos", "Day", True),
    ]  # fmt: skip
    with pytest.raises(InputError, match=r"row 3 stands in no block|row 2 should be the header"):
        metadata.read_metadata(book(tmp_path / "bad.xlsx", [rows[0], rows[2], rows[2]]))
    with pytest.raises(InputError, match="occur twice: sex"):
        metadata.read_metadata(book(tmp_path / "twice.xlsx", [*rows[:3], rows[2]]))


@pytest.mark.slow
@golden
@needs_golden
def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(InputError, match=r"missing data\.xlsx or data\.csv; nihss"):
        stroke.read(tmp_path)
    source = tmp_path / "raw"
    source.mkdir()
    for path in (FOLDER / "stroke" / "raw").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    book(source / "additional.xlsx", [["uni_num", "cum_mve_1y"], ["R1-00000", 0], ["R1-00000", 1]])
    with pytest.raises(InputError, match="uni_num comes more than once"):
        stroke.read(source)
    book(source / "additional.xlsx", [["uni_num", "cum_mve_1y"], ["R1-00000", 0]])
    with pytest.raises(InputError, match="columns are missing.*cum_mve_1y_d"):
        stroke.read(source)
