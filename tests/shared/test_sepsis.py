"""The sepsis reader against the original's tables, and its rules one by one."""

import dataclasses
import json

import numpy as np
import openpyxl
import pandas as pd
import pytest

from shared.cohorts import sepsis
from shared.cohorts.sepsis import cleaning, coding, reader
from shared.errors import InputError
from shared.registry.features import numbers_of
from shared.tasks.denoising import render
from tests.support.golden_folder import parameters
from tests.support.golden_registry import FOLDER, dictionary, lines, matrix, needs_golden, read, read_table
from tests.support.golden_sepsis import registry as prepared_registry

golden = pytest.mark.golden

ERASED = {"remvinfectintravas", "inspercutdrain", "othernonsurg"}  # by a missing return in the original
RULES = {  # name in the golden file -> ours
    "sepsis.parse_range": lambda text: coding.parse_coding(text, dictionary("sepsis")),
    "sepsis.map_value": lambda value, mapping: coding.decode(value, mapping),
    "sepsis.row_with_unit": coding.display_name,
    "sepsis.parse_mv_pat": coding.ventilation_pair,
    "sepsis.headers": coding.headers,
}
KOREAN = {"예": "Yes", "아니오": "No", "남": "Male", "여": "Female"}
SOME = 7  # every so many of the questions
HELPERS, PLAIN = "helper_cases.jsonl.gz", "sepsis/questions_plain.jsonl.gz"


@pytest.fixture(scope="module")
def registry():
    return prepared_registry()


@pytest.fixture(scope="module")
def original():
    return pd.concat([read_table("sepsis", split) for split in ("train", "valid")]).set_index("Unique ID")


@pytest.mark.slow
@golden
@needs_golden
def test_features_are_named_and_placed_as_in_the_original(registry):
    expected = read("sepsis/col_mapper.json.gz")
    assert [[f.name, f.display_name, f.section] for f in registry.features if f.visible] == expected


@golden
@needs_golden
def test_every_value_is_the_originals(registry, original):
    ours = pd.concat([registry.train, registry.valid]).loc[original.index]
    features = [feature for feature in registry.features if feature.visible]
    assert {feature.name for feature in features} == set(original.columns)
    for feature in features:
        if feature.name in ERASED:
            continue
        mine, theirs = ours[feature.name], original[feature.name]
        if feature.kind == "datetime":
            theirs = pd.to_datetime(theirs)
        # The original wrote numbers to CSV and read them back; `3` and `3.0` are one value for us.
        left, right = [[_plain(value) for value in column] for column in (mine, theirs)]
        assert left == right, feature.name


@golden
@needs_golden
def test_the_three_erased_columns_hold_their_values(registry, original):
    ours = pd.concat([registry.train, registry.valid]).loc[original.index]
    for name in ERASED:
        assert original[name].isna().all()
        known = set(ours.loc[ours["firstsourcenonsurg"] == "yes", name])
        assert known and known <= {"yes", "no"}
        assert ours.loc[ours["firstsourcenonsurg"] == "no", name].isna().all()


@golden
@pytest.mark.parametrize("question", parameters(lines(PLAIN)[1::SOME], FOLDER / PLAIN))
def test_records_read_like_the_originals(registry, original, question):
    """The original's own texts, given its values and its hidden columns: headers, order, names, masks."""
    leakage = matrix("sepsis")
    (victim,) = question["victims"]
    hidden = set(leakage.index[leakage[victim] > 0.5]) if victim in leakage else set()
    valid = read_table("sepsis", "valid").set_index("Unique ID")
    texts = {}
    for feature in (feature for feature in registry.features if feature.visible):
        # One cell of its column, so that its type is the column's: the original printed 63.0 for a float column.
        value = valid[feature.name].loc[question["Unique ID"]]
        if not pd.isna(value) and feature.name not in hidden:
            texts[feature.name] = str(value)
    message = question["prompt"].split("<|im_start|>user<|im_sep|>")[1].split("<|im_end|>")[0]
    assert message.startswith(render(registry.features, texts, masked=(victim,)) + "\nQ1. ")


@golden
@pytest.mark.parametrize(
    "case",
    parameters(
        [case for case in lines(HELPERS) if case["fn"] in RULES],
        FOLDER / HELPERS,
        lambda _, case: f"{case['fn']}-{str(case['inp'])[:30]!r}",
    ),
)
def test_parsing_rules_are_the_originals(case):
    rule, given, expected = RULES[case["fn"]], case["inp"], case["out"]
    if case["fn"] == "sepsis.map_value":
        table = dict(case["mapping"])
        if case["error"]:
            with pytest.raises(KeyError):
                rule(given, table)
        else:
            assert rule(given, table) == expected
    elif case["fn"] == "sepsis.parse_range":
        if case["error"]:
            assert rule(given)  # the original stops at a note in the first line; we skip it
        else:
            codes = None if rule(given) is None else {k: v for k, v in rule(given).items() if _is_code(k, rule(given))}
            assert codes == (None if expected is None else dict(map(tuple, expected)))
    elif case["fn"] == "sepsis.headers":
        assert rule(*zip(*given, strict=True)) == expected
    else:
        result = rule(*given)
        assert (list(result) if isinstance(result, tuple) else result) == expected


def _is_code(code, table):
    """Leave out the texts of integer codes, which the golden cases do not list."""
    return not (isinstance(code, str) and code.isdigit() and int(code) in table)


def _plain(value):
    if value is None or value is pd.NaT or value != value:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


def test_notes_between_codes_are_skipped():
    table = coding.parse_coding("title\n[1] a\nsee appendix\n[2] b", {})
    assert table == {1: "a", 2: "b", "1": "a", "2": "b"}


# A small registry, written anew for each way in which it can be wrong.

METADATA = [
    ["Domain", "Section", "eCRF Variable name ", "Row Name", "Unit", "Range", "Decision"],
    ["A", "a", "SUBJECTNO", "Subject", "", "", ""],
    ["", "", "CENTER", "Center", "", "", ""],
    ["", "", "SEX", "Sex", "", "[1] 남\n[2] 여", ""],
    ["", "b", "AGEYEARS", "Age", "", "", ""],
    ["", "", "NA_ICUD1", "no record", "", "", ""],
    ["", "", "CRRT_ICUD1", "CRRT", "", "[1] 예", ""],
    ["", "", "ABXDATE", "Antibiotics date", "", "", ""],
    ["", "", "ABXTM", "Antibiotics time", "", "", ""],
    ["", "", "DATANO", "Batch", "", "", ""],
]
DATA = [
    ["SUBJECTNO", "CENTER", "SEX", "AGEYEARS", "NA_ICUD1", "CRRT_ICUD1", "ABXDATE", "ABXTM", "DATANO"],
    *[
        [f"P{i}", "C", 1 + i % 2, 40 + i, "NA" if i % 3 == 0 else "", 1 if i % 3 == 1 else "", "2020-01-02", "03:04", 1]
        for i in range(40)
    ],
]


def write(folder, data=DATA, metadata=METADATA, dictionary=KOREAN):
    folder.mkdir(exist_ok=True)
    for name, rows in (("data", data), ("metadata", metadata)):
        book = openpyxl.Workbook()
        for row in rows:
            book.active.append([None if cell == "" else cell for cell in row])
        book.save(folder / f"{name}.xlsx")
    (folder / "kor_to_eng.json").write_text(json.dumps(dictionary))
    return folder


def prepare(folder, valid_patients=10, seed=1):
    return sepsis.prepare(folder, valid_patients=valid_patients, seed=seed, salt="s")


def without(rows, column):
    position = rows[0].index(column)
    return [[cell for i, cell in enumerate(row) if i != position] for row in rows]


def test_small_registry(tmp_path):
    registry = prepare(write(tmp_path / "raw"))
    table = pd.concat([registry.train, registry.valid])
    assert list(table.columns) == ["sex", "ageyears", "crrt_icud1", "abxdate", "center"]
    assert table.loc["P3", "sex"] == "Female" and table.loc["P3", "ageyears"] == 43.0
    assert table.loc["P3", "crrt_icud1"] is None  # no record of that day
    assert table.loc["P4", "crrt_icud1"] == "yes" and table.loc["P5", "crrt_icud1"] == "no"
    assert table.loc["P0", "abxdate"] == pd.Timestamp("2020-01-02 03:04")
    by_name = {feature.name: feature for feature in registry.features}
    assert by_name["abxdate"].display_name == "Antibiotics datetime" and by_name["abxdate"].kind == "datetime"
    assert by_name["ageyears"].section == "[A/b]"


def test_csv_reads_like_a_workbook(tmp_path):
    book, text = write(tmp_path / "book"), write(tmp_path / "text")
    (text / "data.xlsx").unlink()
    pd.DataFrame(DATA[1:], columns=DATA[0]).to_csv(text / "data.csv", index=False)
    pd.testing.assert_frame_equal(prepare(book).train, prepare(text).train)


def test_the_split_depends_on_seed_and_patients_only(tmp_path):
    shuffled = [DATA[0], *DATA[:0:-1]]
    first, again = prepare(write(tmp_path / "a")), prepare(write(tmp_path / "b", data=shuffled))
    assert set(first.valid.index) == set(again.valid.index)
    assert not set(first.valid.index) & set(first.train.index) and len(first.valid) == 10
    assert set(prepare(tmp_path / "a", seed=2).valid.index) != set(first.valid.index)


def test_misspelt_names_pair_only_one_to_one(tmp_path):
    data = [[*DATA[0]], *DATA[1:]]
    data[0][3] = "AGE_YEARS"
    assert "age_years" in prepare(write(tmp_path / "near", data=data)).train
    data[0][3] = "WEIGHT"
    with pytest.raises(InputError, match=r"ageyears.*weight"):
        prepare(write(tmp_path / "far", data=data))
    extra = [[*row, "x"] for row in DATA]
    extra[0][-1] = "SURPRISE"
    with pytest.raises(InputError, match="surprise"):
        prepare(write(tmp_path / "extra", data=extra))


@pytest.mark.parametrize("name", ["SUBJECTNO", "CENTER", "DATANO"])
def test_needed_columns_are_named(tmp_path, name):
    with pytest.raises(InputError, match=name.lower()):
        prepare(write(tmp_path / "raw", data=without(DATA, name)))
    with pytest.raises(InputError, match=name.lower()):
        metadata = [row for row in METADATA if row[2] != name]
        prepare(write(tmp_path / "raw", metadata=metadata))


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match=r"metadata\.xlsx or .*; kor_to_eng\.json or dictionary\.json"):
        folder = write(tmp_path / "a")
        (folder / "metadata.xlsx").unlink()
        (folder / "kor_to_eng.json").unlink()
        prepare(folder)
    with pytest.raises(InputError, match="Range"):
        prepare(write(tmp_path / "b", metadata=without(METADATA, "Range")))
    with pytest.raises(InputError, match="column sex: code '7'"):
        prepare(write(tmp_path / "c", data=[DATA[0], ["P", "C", 7, *DATA[1][3:]], *DATA[2:]]))
    with pytest.raises(InputError, match="column sex: code a text of 9 characters is not in its coding"):
        prepare(write(tmp_path / "c2", data=[DATA[0], ["P", "C", "1, born 1950", *DATA[1][3:]], *DATA[2:]]))
    with pytest.raises(InputError, match="each different"):
        prepare(write(tmp_path / "d", data=[*DATA, DATA[1]]))
    with pytest.raises(InputError, match="abxdate"):
        prepare(write(tmp_path / "e", data=[*DATA, ["P99", *DATA[1][1:6], "soon", "03:04", 1]]))
    with pytest.raises(InputError, match="not a readable Excel workbook"):
        (write(tmp_path / "f") / "data.xlsx").write_bytes(b"PK but not really")
        prepare(tmp_path / "f")


@pytest.mark.parametrize("valid_patients", [40, 41, 1000])
def test_too_few_patients(tmp_path, valid_patients):
    with pytest.raises(InputError, match="at most 39"):
        prepare(write(tmp_path / "raw"), valid_patients=valid_patients)


def test_steps_without_their_columns_are_skipped(tmp_path):
    names = ["NA_ICUD1", "ABXTM"]
    data, metadata = DATA, METADATA
    for name in names:
        data, metadata = without(data, name), [row for row in metadata if row[2] != name]
    table = prepare(write(tmp_path / "raw", data=data, metadata=metadata)).train
    assert list(table.columns) == ["sex", "ageyears", "crrt_icud1", "abxdate", "center"]
    assert set(table["crrt_icud1"]) == {"yes", None}


def test_numbers_mixed_with_texts_stay_apart(tmp_path):
    data = [[*row] for row in DATA]
    data[5][3] = "<18"
    registry = prepare(write(tmp_path / "raw", data=data))
    feature = next(f for f in registry.features if f.name == "ageyears")
    column = pd.concat([registry.train, registry.valid])["ageyears"]
    assert feature.kind == "number" and "<18" in set(column)
    assert np.isnan(numbers_of(column)).sum() == 1
    assert dataclasses.replace(feature, decimals=0).name == "ageyears"


def test_digests_change_with_the_files(tmp_path):
    one, other = write(tmp_path / "a"), write(tmp_path / "b", dictionary=KOREAN | {"x": "y"})
    left, right = reader.digests(one), reader.digests(other)
    assert left["kor_to_eng.json"] != right["kor_to_eng.json"] and set(left) == {
        "data.xlsx", "metadata.xlsx", "kor_to_eng.json",
    }  # fmt: skip


def test_absence_fill_follows_the_question_before():
    columns = {
        name: cleaning.Column(name, name, "[a/b]", "", None, values)
        for name, values in {
            "bacmtyn": ["yes", "yes", None],
            "bacmttypgp": [None, "yes", None],
            "liver_disease": ["None", None, "Mild"],
        }.items()
    }
    cleaning._fill_absences(columns)
    assert columns["bacmttypgp"].values == ["no", "yes", None]
    assert columns["liver_disease"].values == ["no", "no", "Mild"]
