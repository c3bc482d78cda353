"""MIMIC-III against the original's outputs: one test for each file found in the golden folder."""

import json
import re
import time

import numpy as np
import pandas as pd
import pytest

from shared.cohorts.mimic3 import final, imputation, neighbours, reference, registry, scores, tables
from shared.cohorts.mimic3.options import Mimic3Config
from shared.cohorts.mimic3.stages import Stages
from shared.registry.patients import pseudonym
from shared.tasks import measurement
from shared.tasks.prompts import user_message
from tests.support.golden_folder import document, lines
from tests.support.golden_mimic3 import (
    FINAL,
    FOLDER,
    both_splits,
    cache,
    final_table,
    golden_files,
    meta,
    needs_golden,
    prepared,
    read,
)

pytestmark = [pytest.mark.golden, pytest.mark.slow, needs_golden]

NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
# What sums of fluids, doses and ages are made of has more decimals than a table shows, so their last digits tell the order.
SENSITIVE = (
    "age",
    "input_total",
    "input_4hourly",
    "output_total",
    "output_4hourly",
    "cumulated_balance",
    "max_dose_vaso",
)


def assert_equal(ours, theirs, tolerance=1e-6):
    """Every cell within a relative tolerance, missing where missing; the same columns in the same order."""
    assert list(ours.columns) == list(theirs.columns) and len(ours) == len(theirs)
    for name in theirs:
        mine, expected = ours[name].to_numpy(float), theirs[name].to_numpy(float)
        np.testing.assert_allclose(mine, expected, rtol=tolerance, atol=0, equal_nan=True, err_msg=name)


@pytest.mark.parametrize("name", golden_files("input"))
def test_every_input_is_found_and_digested(name):
    found = {table.path.name: table for table in tables.find(FOLDER / "input").values()}
    assert name in found
    provenance = json.loads((prepared() / "registry" / "provenance.json").read_text())
    assert len(provenance["source"][name]) == 32


@pytest.mark.parametrize("name", golden_files("extracts"))
def test_extracts(name):
    extract = re.match(r"[a-z_]+", name)[0]
    prepared()
    ours = pd.read_parquet(cache("stable") / f"{extract}.parquet")
    theirs = read("extracts", name, sep="|")
    if extract == "ce":  # the original's ten files, by blocks of 10,000 stay ids
        first = {f"ce{10_000 * i}{10_000 * (i + 1)}.csv.gz": 200_000 + 10_000 * i for i in range(10)}[name]
        ours = ours[ours["icustay_id"].between(first, first + 9_999)]
    assert_equal(ours.reset_index(drop=True), theirs, tolerance=1e-12)


@pytest.mark.parametrize("name", golden_files("cohort"))
def test_cohort_with_the_originals_ties(name):
    out = prepared("measurement", "introsort")
    theirs = read("cohort", name)
    if name == FINAL:
        ours = final_table(out)
    elif name.startswith("new_sepsis"):
        ours = pd.read_parquet(cache("introsort") / "stays.parquet")
    else:
        windows = pd.read_parquet(cache("introsort") / "second_windows.parquet")
        windows = imputation.impute(windows, imputation.SECOND_PASS, ties="introsort")
        ours = scores.finish(windows, second=True)[list(theirs.columns)]
    assert_equal(ours, theirs)
    for column in [column for column in theirs if column.removeprefix("o:") in SENSITIVE]:
        np.testing.assert_array_equal(ours[column].to_numpy(float), theirs[column].to_numpy(float), err_msg=column)


def seconds_of_the_original():
    """CPU seconds of its cohort script, by the golden folder's README."""
    (row,) = (line for line in (FOLDER / "README.md").read_text().splitlines() if line.startswith("| cohort script"))
    return float(re.search(r"(\d+) s \|", row)[1])


@pytest.mark.parametrize("ties", neighbours.TIES)
def test_the_cohort_takes_a_hundredth_of_the_originals_time(tmp_path, ties):
    spent = {}

    class Timed(Stages):
        def run(self, name, key, write, **options):
            begin = time.process_time()
            done = super().run(name, key, write, **options)
            spent[name] = time.process_time() - begin
            return done

    registry.read(FOLDER / "input", options=Mimic3Config(ties=ties, threads=1), cache=tmp_path, make_stages=Timed)
    stages = ("candidates", "first_windows", "stays", "second_windows", "cohort")
    assert sum(spent[name] for name in stages) < seconds_of_the_original() / 100


@pytest.mark.parametrize("name", golden_files("cohort_stable"))
def test_cohort_with_stable_ties(name):
    assert_equal(final_table(prepared()), read("cohort_stable", name))


@pytest.mark.parametrize("name", golden_files("knn", "knn_expected"))
def test_nearest_neighbour(name):
    given = read("knn", name.replace("expected", "input"), header=None).to_numpy(float)
    expected = read("knn", name, header=None).to_numpy(float)
    for ties in neighbours.TIES:
        np.testing.assert_array_equal(neighbours.impute(given, ties=ties), expected)


@pytest.mark.parametrize("name", golden_files("questions"))
def test_questions(name):
    if name.startswith("choice_statistics"):
        assert_statistics(prepared("measurement", "introsort"), document(FOLDER / "questions" / name))
        return
    expected = lines(FOLDER / "questions" / name)
    task = name.removesuffix(".jsonl.gz")
    ours = both_splits(prepared(task, "introsort"))
    displayed = {column.removeprefix("o:"): text for column, text in reference.question_names(task).items()}
    stays = {pseudonym("s", str(row["icustayid"])): row["icustayid"] for row in expected}
    assert len(ours) == len(expected)
    for question, row in zip(ours, expected, strict=True):
        assert stays[question.id.split("-")[2]] == row["icustayid"]
        assert displayed.get(question.feature, task) == row["task"]
        assert question.answer == row["label_0"]
        assert same_numbers(user_message(question), row["user_message"])
        assert all(same_numbers(*pair) for pair in zip(question.choices, row["choices_0"], strict=True))


@pytest.mark.parametrize("name", golden_files("questions", "measurement"))
def test_questions_from_the_originals_own_table_are_equal_to_the_letter(name):
    table, _ = final.finite_stays(final.reread(read("cohort", FINAL)))
    patients = {int(stay): "p" for stay in table["m:icustayid"].unique()}
    names = reference.question_names("measurement")
    ours = measurement.questions(table, names, patients, stays=meta()["measurement_stays"], salt="")
    expected = lines(FOLDER / "questions" / name)
    assert [(user_message(q), q.answer) for q in ours] == [(row["user_message"], row["label_0"]) for row in expected]


def assert_statistics(out, expected):
    table, left_out = final.finite_stays(final.reread(final_table(out)))
    assert left_out == meta()["stays_left_out"]
    names = reference.question_names("measurement")
    found = measurement.statistics_of(table, names)
    assert set(found) == {name for name in names.values() if name in expected} - set(measurement.NOT_ASKED)
    for name, statistics in found.items():
        theirs = expected[name]
        assert len(statistics.every) == theirs["n_distinct"], name
        assert list(statistics.vocab) == theirs["VOCAB"], name
        np.testing.assert_allclose(statistics.weights, theirs["WEIGHTS"], rtol=1e-9)
        if not statistics.vocab:
            mixture = (statistics.means, statistics.stds, statistics.mixture)
            for ours, part in zip(mixture, ("means", "stds", "weights"), strict=True):
                np.testing.assert_allclose(ours, theirs["GM"][part], rtol=1e-6, atol=1e-12, err_msg=name)


def same_numbers(ours, theirs):
    """Equal texts, but for numbers that differ by no more than 1e-9."""
    if ours == theirs:
        return True
    if NUMBER.sub("#", ours) != NUMBER.sub("#", theirs):
        return False
    pairs = zip(NUMBER.finditer(ours), NUMBER.finditer(theirs), strict=True)
    return all(abs(float(a[0]) - float(b[0])) <= 1e-9 * abs(float(b[0])) for a, b in pairs)
