"""The cohorts as the original prepared them: its tables, distributions and mutual information from its raw files."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest

from shared.cohorts import hospitalized
from shared.config import DataConfig
from shared.errors import InputError
from shared.paper import artefacts, cohorts
from shared.paper import questions as paper_questions
from shared.questions.record import LETTERS
from shared.registry.build import build
from shared.tasks.denoising import pseudonym
from shared.tasks.prompts import user_message
from tests.support.golden_registry import (
    FOLDER,
    choices,
    lines,
    material,
    matrix,
    needs_golden,
    patients,
    places,
    read_table,
    rows,
)

pytestmark = [pytest.mark.golden, pytest.mark.slow, needs_golden]
NAMES = {"sepsis": "sepsis", "stroke": "stroke", "hospitalized": "aki"}
CUTOFF, JITTER = 0.5, 0.1  # nats; how far the original's estimates move from run to run


@pytest.fixture(scope="module", params=NAMES)
def prepared(request):
    return prepare(request.param)


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    yield
    prepare.cache_clear()


@functools.cache
def prepare(name):
    folder = NAMES[name]
    valid_patients = patients(folder)["valid"]
    cohort = cohorts.load(name, FOLDER / folder / "raw", valid_patients=valid_patients)
    raw = cohort.raw
    if folder == "aki":  # the golden matrix holds these columns only
        kept = [column for column in raw.columns if column.name in matrix("aki").columns]
        raw = dataclasses.replace(raw, columns=kept, roles={})
    return folder, cohort, build(raw, valid_patients=valid_patients, seed=1, split="paper", fit="all", salt="s")


def test_tables_are_the_originals(prepared):
    folder, cohort, registry = prepared
    for split in patients(folder):
        pd.testing.assert_frame_equal(cohort.tables[split], read_table(folder, split))
    ids = [str(row["Unique ID"]) for row in rows(folder)]
    assert set(registry.valid.index) == set(ids)


def test_names_and_sections_are_the_originals(prepared):
    folder, cohort, _ = prepared
    ours = {column.name: (column.display_name, column.section) for column in cohort.raw.columns if column.visible}
    assert ours == {name: (place.name, place.section) for name, place in places(folder).items()}


def test_distributions_are_the_originals(prepared):
    folder, cohort, _ = prepared
    expected = choices(folder)
    assert set(cohort.choices) == set(expected)
    for name, theirs in expected.items():
        mine = cohort.choices[name]
        assert (mine.vocab, mine.all_vocab) == (theirs.vocab, theirs.all_vocab), name
        assert mine.float_ratio == pytest.approx(theirs.float_ratio, abs=1e-12)
        for part in ("weights", "means", "stds", "mixture"):
            assert getattr(mine, part) == pytest.approx(getattr(theirs, part), rel=1e-6, abs=1e-9), (name, part)


def test_mutual_information_decides_as_the_originals(prepared):
    """Within 0.1 nats of its figures where they matter; hidden is hidden, but for pairs within 0.1 of the cutoff."""
    folder, cohort, registry = prepared
    theirs = matrix(folder)
    parts = cohorts.material(cohort, registry, mi_cutoff=CUTOFF, num_choices=5, difficulty=2.0)
    names = [name for name in theirs.columns if theirs[name].notna().any() and name in parts.hidden]
    assert set(theirs.columns[theirs.notna().any()]) - set(names) <= {"arrival"}  # constant: minutes after itself
    compared = 0
    for target in names:
        for name in names:
            known = theirs.loc[name, target]
            if name == target or np.isnan(known):
                continue
            compared += 1
            assert (name in parts.hidden[target]) == (known > CUTOFF) or abs(known - CUTOFF) < JITTER, (name, target)
            if registry.leakage.loc[name, target] > CUTOFF / 2:
                assert registry.leakage.loc[name, target] == pytest.approx(known, abs=JITTER)
    assert compared > len(names)


def unsure(folder, victim):
    """Names shown of features so near the cutoff that the original's jitter decides whether a record has them."""
    about = matrix(folder)[victim] if victim in matrix(folder) else pd.Series(dtype=float)
    return {
        places(folder)[name].name for name in about.index[(about - CUTOFF).abs() < JITTER] if name in places(folder)
    }


def test_its_questions_come_out_of_the_raw_files(prepared):
    """Options and answers to the letter; records too, but for lines that the original's jitter moves in or out."""
    folder, cohort, registry = prepared
    parts = cohorts.material(cohort, registry, mi_cutoff=CUTOFF, num_choices=5, difficulty=2.0)
    if folder == "aki":  # its set hides by a matrix of fewer columns than a record shows
        parts = dataclasses.replace(parts, places=places(folder), hidden=material(folder, mi_cutoff=CUTOFF).hidden)
    options = {"task": "denoising", "masked": 1, "all_victims": False}
    made, _ = paper_questions.questions(registry, cohort, parts, "valid", patients(folder)["valid"], **options)
    by_patient = {question.patient: question for question in made}
    _, *expected = lines(f"{folder}/questions_plain.jsonl.gz")
    assert expected
    same = 0
    for case in expected:
        question = by_patient.get(pseudonym("s", str(case["Unique ID"])))
        if question is None:  # more options than letters
            assert len(case["choices_0"]) > len(LETTERS)
            continue
        assert (list(question.choices), question.answer) == (case["choices_0"], case["label_0"])
        theirs = case["prompt"].split("<|im_start|>user<|im_sep|>")[1].split("<|im_end|>")[0]
        same += user_message(question) == theirs
        differ = set(user_message(question).split("\n")) ^ set(theirs.split("\n"))
        moved = {line.split(": ")[0].strip() for line in differ if line and not line.startswith("[")}
        assert moved <= unsure(folder, case["victims"][0]), case["Unique ID"]
    assert same > len(expected) / 2


def test_outcomes_come_out_of_the_raw_files():
    folder, cohort, registry = prepare("stroke")
    parts = cohorts.material(cohort, registry, mi_cutoff=CUTOFF, num_choices=5, difficulty=2.0)
    cases = lines("stroke/prediction_questions.jsonl.gz")
    valid_patients = patients(folder)["valid"]
    for task, target in paper_questions.OUTCOMES.items():
        made, left_out = paper_questions.questions(
            registry, cohort, parts, "valid", valid_patients, task=task, masked=1, all_victims=False
        )
        expected = {pseudonym("s", str(case["Unique ID"])): case for case in cases if case["task"] == target}
        too_many = [case for case in expected.values() if len(case["choices_0"]) > len(LETTERS)]
        assert len(expected) == valid_patients == len(made) + left_out and left_out == len(too_many)
        for question in made:
            case = expected[question.patient]
            assert (list(question.choices), question.answer) == (case["choices_0"], case["label_0"])
            assert user_message(question) == case.get("user_message", user_message(question))


def test_aki_comes_out_of_the_raw_files():
    folder, cohort, registry = prepare("hospitalized")
    full = dataclasses.replace(registry, features=[])
    parts = cohorts.material(cohort, full, mi_cutoff=CUTOFF, num_choices=5, difficulty=2.0)
    parts = dataclasses.replace(parts, places=places("aki"))
    count = patients(folder)["valid"]
    made, _ = paper_questions.questions(
        registry, cohort, parts, "valid", count, task="aki", masked=1, all_victims=False
    )
    expected = {pseudonym("s", str(case["Unique ID"])): case for case in lines("aki/prediction_questions.jsonl.gz")}
    assert len(made) == len(expected) > 0
    for question in made:
        case = expected[question.patient]
        assert question.answer == case["label_0"]
        assert user_message(question) == case.get("user_message", user_message(question))


def test_too_few_patients_and_unknown_cohorts():
    everybody = sum(patients("stroke").values())
    with pytest.raises(InputError, match=f"at most {everybody - 1}$"):
        cohorts.load("stroke", FOLDER / "stroke" / "raw", valid_patients=everybody)
    with pytest.raises(InputError, match="compat = 'paper' knows"):
        cohorts.load("custom", FOLDER, valid_patients=10)
    with pytest.raises(InputError, match="compat"):
        DataConfig(cohort="stroke", source="x", compat="paper", fit="all")


@pytest.fixture(scope="module")
def with_a_text(tmp_path_factory):
    """AKI's raw files with a text among the numbers, in the row of a patient who is not of the cohort; and where it is."""
    source = tmp_path_factory.mktemp("aki")
    for path in (FOLDER / "aki" / "raw").iterdir():
        (source / path.name).symlink_to(path)
    data = pd.read_csv(source / "data_processed.csv.gz", dtype=str, keep_default_na=False)
    plan = hospitalized.layout(source)
    column = next(f"d1_1_{name}" for name in plan["eight_hourly"] if data[f"d1_1_{name}"].str.contains(r"\.").any())
    left_out = data.index[(data[plan["icu"]].astype(float) != 1) | (data[plan["excluded"]].astype(float) != 0)]
    row = left_out[len(left_out) // 2]
    data.loc[row, [column, plan["sections"][1]["columns"][0]]] = "≤0.3"  # the second is one of 1 and 0
    (source / "data_processed.csv.gz").unlink()
    data.to_csv(source / "data_processed.csv", index=False)
    return source, data, column, row


def test_a_text_of_a_patient_left_out_changes_texts_as_in_the_original(with_a_text):
    source, written, column, row = with_a_text
    frame, _ = hospitalized.paper_frame(source)
    _, mask, _, _ = hospitalized.read_frames(source)
    part = 2 ** int(np.log2(2**20 / written.shape[1] - 1))  # rows that pandas reads at once
    assert 1 < part < len(written)
    for index, value in frame[column].items():
        cell = written.loc[index, column]
        in_its_part = index // part == row // part
        expected = cell if in_its_part else str(float(cell))
        assert str(value) == (expected if mask.loc[index, column] else "N/A"), index
    assert {str, float} <= {type(value) for value in frame[column]}
    whole = artefacts.aki_distribution(frame[column])
    assert {str(value) for value in frame[column] if value != "N/A"} <= whole.all_vocab


def test_a_text_of_a_patient_left_out_changes_nothing_else(with_a_text):
    source, *_ = with_a_text
    ours, clean = (hospitalized.read(folder) for folder in (source, FOLDER / "aki" / "raw"))
    for mine, theirs in zip(ours.columns, clean.columns, strict=True):
        assert list(map(str, mine.values)) == list(map(str, theirs.values)), mine.name


def test_a_text_among_a_patients_numbers_is_named(with_a_text, tmp_path):
    source, data, column, _ = with_a_text
    for name in ("metadata.xlsx", "feature.csv.gz"):
        (tmp_path / name).symlink_to(source / name)
    some = data.head(30).assign(**{column: "≤0.3"})
    some.to_csv(tmp_path / "data_processed.csv", index=False)
    pd.DataFrame(1, index=some.index, columns=some.columns).to_csv(tmp_path / "data_missing_processed.csv", index=False)
    with pytest.raises(InputError, match=f"column {column}, row 2: the cell is no number"):
        cohorts.load("hospitalized", tmp_path, valid_patients=5)


def test_the_round_trip_through_csv_gives_pandas_types():
    table = pd.DataFrame({"n": artefacts.typed([1, None, 3]), "c": ["None", "x", "NA"], "w": [1, 2, 3]})
    again = artefacts.rows(artefacts.through_csv(table))
    assert [row["n"] for row in again][::2] == [1.0, 3.0] and again[1]["c"] == "x"
    assert again[0]["c"] != again[0]["c"] and [row["w"] for row in again] == [1, 2, 3]


def test_the_round_trip_reads_long_tables_in_parts():
    """Of 1,100 columns 512 rows at a time: numbers are floats but in the part where the column also holds a text."""
    values = [[170, 170.5][row % 2] for row in range(1100)]
    whole = [[170, 171][row % 2] for row in range(1100)]
    values[600] = whole[1050] = "≤0.3"
    table = pd.DataFrame({"x": pd.Series(values, dtype=object), "n": pd.Series(whole, dtype=object)} | {
        f"c{column}": np.zeros(1100, np.int64) for column in range(1098)
    })  # fmt: skip
    again = artefacts.rows(artefacts.through_csv(table))
    shown = [str(row["x"]) for row in again]
    assert shown[:512] == ["170.0", "170.5"] * 256 and shown[1024:] == ["170.0", "170.5"] * 38
    assert shown[512:600] == ["170", "170.5"] * 44 and shown[600] == "≤0.3" and shown[602] == "170"
    assert [str(row["n"]) for row in again] == [str(value) for value in whole]
    assert {type(row["n"]) for row in again[:1024]} == {int} and type(again[1024]["n"]) is str
