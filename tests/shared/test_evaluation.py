"""Accuracy, its intervals, and what it is held against."""

from __future__ import annotations

import dataclasses
import json
import stat
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import f1_score

from shared.config import EvaluationConfig, RunConfig
from shared.errors import InputError
from shared.evaluation import figures
from shared.evaluation.answers import Answer, answer_to, read_answers, write_answers
from shared.questions.record import LETTERS, Question

OPTIONS = {"bootstrap": 2_000, "seed": 3}


def question(number: int, patient: str, **changes) -> Question:
    fields: dict[str, Any] = {
        "id": f"q{number}",
        "cohort": "synthetic",
        "task": "denoising",
        "feature": "lactate",
        "section": "Blood gas",
        "patient": patient,
        "context": "record",
        "question": "which?",
        "choices": ("low", "high"),
        "answer": "A",
        "majority": "A",
        "bayes_accuracy": 0.8,
        "bayes_answer": "A",
    }
    return Question(**(fields | changes))


def answered(questions: list[Question], letters: str) -> list[Answer]:
    """One letter for each question; a dot is no answer."""
    return [
        answer_to(item, letter.strip("."), truncated=letter == ".", tokens=10)
        for item, letter in zip(questions, letters, strict=True)
    ]


def many(patients: int, each: int, *, seed: int = 0) -> list[Question]:
    random = np.random.default_rng(seed)
    return [
        question(
            patient * each + number,
            f"p{patient}",
            feature=f"feature {number % 7}",
            section=f"section {number % 7 % 3}",
            choices=tuple("vwxyz"[: 2 + number % 4]),
            answer=LETTERS[int(random.integers(2 + number % 4))],
        )
        for patient in range(patients)
        for number in range(each)
    ]


def test_answers_survive_the_round_trip_and_only_their_owner_reads_them(tmp_path):
    answers = answered([question(0, "p"), question(1, "p")], "A.")
    path = tmp_path / "evaluation" / "before.parquet"
    write_answers(path, answers)
    assert read_answers(path) == answers
    assert [type(value) for value in dataclasses.astuple(read_answers(path)[1])] == [
        type(value) for value in dataclasses.astuple(answers[1])
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_answers(path, [])
    assert read_answers(path) == []


def test_a_bad_file_of_answers_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match="no such file of answers"):
        read_answers(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("hello")
    with pytest.raises(InputError, match="not a readable Parquet file") as caught:
        read_answers(tmp_path / "text.parquet")
    assert "\n" not in str(caught.value)
    pd.DataFrame({"patient": ["p"]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="question_id, feature"):
        read_answers(tmp_path / "other.parquet")


def test_summarise_counts_by_hand():
    questions = [
        question(0, "p"),
        question(1, "p", answer="B"),
        question(2, "q", feature="age", section="Person", choices=("1", "2", "3", "4"), majority="D", answer="C"),
        question(3, "q", feature="age", section="Person", choices=("1", "2", "3", "4"), majority="C", answer="C"),
    ]
    result = figures.summarise(questions, answered(questions, "ABC."), **OPTIONS)
    assert (result["accuracy"], result["n"], result["patients"]) == (0.75, 4, 2)
    assert (result["answered"], result["truncated"], result["mean_tokens"]) == (0.75, 0.25, 10)
    # lactate: both texts right. age: one class "3", 1 hit of 2 true and 1 given: F1 = 2/3.
    assert result["macro_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert [row["section"] for row in result["per_section"]] == ["Blood gas", "Person"]
    age = result["per_feature"][1]
    assert (age["feature"], age["section"], age["n"], age["accuracy"]) == ("age", "Person", 2, 0.5)
    assert (age["majority_accuracy"], age["chance_accuracy"], age["bayes_accuracy"]) == (0.5, 0.25, 0.8)


def test_sections_have_the_interval_of_their_own_questions():
    questions = [question(number, f"p{number}", section="AB"[number % 2]) for number in range(40)]
    given = answered(questions, "ABBB" * 10)  # of section A every other one is right, of B none
    rows = figures.summarise(questions, given, **OPTIONS)["per_section"]
    alone = figures.summarise(questions[::2], given[::2], **OPTIONS)
    assert rows[0]["ci"] == alone["ci"] and rows[0]["ci"][0] < 0.5 < rows[0]["ci"][1]
    config = RunConfig(name="x", seed=OPTIONS["seed"], evaluation=EvaluationConfig(bootstrap=OPTIONS["bootstrap"]))
    both = figures.summary("x", questions, None, given, config=config)["per_section"]
    assert (both[0]["ci_before"], both[0]["ci_after"], "ci" in both[0]) == (None, rows[0]["ci"], False)


def test_how_the_answers_ended_adds_up():
    questions = [question(number, f"p{number}") for number in range(4)]
    given = answered(questions, "AB..")  # right, wrong, and two without a letter
    given = [dataclasses.replace(answer, truncated=cut) for answer, cut in zip(given, (True, False, True, False))]
    assert figures.details(questions, given)["endings"] == {
        "right": 0.25, "wrong": 0.25, "cut_off": 0.25, "unreadable": 0.25,
    }  # fmt: skip
    unknown = [dataclasses.replace(answer, truncated=None) for answer in given]
    assert figures.details(questions, unknown)["endings"] == {"right": 0.25, "wrong": 0.25, "no_answer": 0.5}


def test_macro_f1_is_sklearns_over_texts_not_letters():
    random = np.random.default_rng(1)
    questions = [
        question(
            number,
            f"p{number % 9}",
            feature=f"f{number % 3}",
            answer=LETTERS[number % 4],
            choices=tuple(random.permutation(list("wxyz"))),
        )
        for number in range(120)
    ]
    letters = "".join(random.choice(list("ABCD."), 120))
    expected = []
    for feature in ("f0", "f1", "f2"):
        here = [(q, letter) for q, letter in zip(questions, letters, strict=True) if q.feature == feature]
        truth = [q.choices[LETTERS.index(q.answer)] for q, _ in here]
        given = ["" if letter == "." else q.choices[LETTERS.index(letter)] for q, letter in here]
        expected.append(f1_score(truth, given, labels=sorted(set(truth)), average="macro"))
    result = figures.summarise(questions, answered(questions, letters), **OPTIONS)
    assert result["macro_f1"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_the_interval_resamples_patients_not_questions():
    """A patient's questions are all right or all wrong: 40 patients are 40 observations, not 1,000."""
    questions = many(40, 25)
    answers = [answer_to(q, q.answer if int(q.patient[1:]) % 2 else "", truncated=False, tokens=1) for q in questions]
    low, high = figures.summarise(questions, answers, **OPTIONS)["ci"]
    by_patient = 1.96 * np.sqrt(0.25 / 40)
    assert high - low == pytest.approx(2 * by_patient, rel=0.12)
    assert (low + high) / 2 == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    covered = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        questions = many(60, 4, seed=seed)
        ability = {q.patient: random.beta(3, 2) for q in questions}  # mean 0.6
        right = [bool(random.random() < ability[q.patient]) for q in questions]
        answers = [
            answer_to(q, q.answer if ok else "", truncated=False, tokens=1)
            for q, ok in zip(questions, right, strict=True)
        ]
        low, high = figures.summarise(questions, answers, bootstrap=300, seed=seed)["ci"]
        covered += low <= 0.6 <= high
    assert 0.87 <= covered / 60 <= 1


def test_equal_seeds_give_equal_intervals_whatever_the_order_of_answers():
    questions = many(30, 5)
    answers = [answer_to(q, "A", truncated=False, tokens=1) for q in questions]
    first = figures.summarise(questions, answers, **OPTIONS)
    assert figures.summarise(questions, answers[::-1], **OPTIONS) == first
    assert figures.summarise(questions, answers, bootstrap=2_000, seed=4)["ci"] != first["ci"]


@pytest.mark.parametrize(("patients", "each", "right"), [(2, 1, False), (30, 1, False), (30, 1, True), (12, 7, True)])
def test_where_all_are_right_or_all_wrong_the_interval_is_wilsons(patients, each, right):
    """Resampled, they would all say the same. Several questions of a patient are one observation."""
    questions = many(patients, each)
    answers = [answer_to(q, q.answer if right else "", truncated=False, tokens=1) for q in questions]
    wanted = binomtest(patients * right, patients).proportion_ci(0.95, method="wilson")
    found = figures.summarise(questions, answers, **OPTIONS)
    assert found["ci"] == pytest.approx([wanted.low, wanted.high], abs=1e-12)
    assert found["ci"][1] - found["ci"][0] > 0.1
    assert found["ci"][0 if not right else 1] == pytest.approx(found["accuracy"], abs=1e-12)


def test_a_letter_without_an_option_is_an_answer_but_not_in_the_format():
    questions = [question(0, "p", choices=("a", "b")), question(1, "q", choices=("a", "b"))]
    found = figures.summarise(questions, answered(questions, "AE"), **OPTIONS)
    assert (found["answered"], found["format"]) == (1, 0.5)


def test_one_patient_has_no_interval():
    questions = [question(0, "p"), question(1, "p")]
    assert figures.summarise(questions, answered(questions, "AB"), **OPTIONS)["ci"] is None
    assert figures.gain(answered(questions, "BB"), answered(questions, "AB"), **OPTIONS) == {
        "value": 0.5,
        "ci": None,
    }


def test_the_gain_is_paired():
    """A constant change for everybody has no spread, though each accuracy has."""
    questions = [question(number, f"p{number // 2}") for number in range(80)]
    before = answered(questions, "BBBBAABB" * 10)
    after = answered(questions, "ABABAABB" * 10)
    result = figures.gain(before, after[::-1], **OPTIONS)
    assert result["value"] == pytest.approx(0.25)
    alone = figures.summarise(questions, after, **OPTIONS)["ci"]
    assert result["ci"][0] < 0.25 < result["ci"][1]
    assert result["ci"][1] - result["ci"][0] < alone[1] - alone[0]
    steady = figures.gain(answered(questions, "BB" * 40), answered(questions, "AB" * 40), **OPTIONS)
    assert steady["ci"] == [0.5, 0.5]


def test_the_gain_of_different_questions_is_refused():
    one, two = question(0, "p"), question(1, "q")
    with pytest.raises(InputError, match="different questions"):
        figures.gain(answered([one], "A"), answered([two], "A"), **OPTIONS)
    with pytest.raises(InputError, match="different questions"):
        figures.gain(answered([one, one], "AA"), answered([one], "A"), **OPTIONS)


def test_answers_must_be_one_for_each_question():
    questions = [question(0, "p"), question(1, "q")]
    with pytest.raises(InputError, match="1 answers to 2 questions"):
        figures.summarise(questions, answered(questions[:1], "A"), **OPTIONS)
    with pytest.raises(InputError, match="one for each"):
        figures.summarise(questions, answered([questions[0], questions[0]], "AA"), **OPTIONS)
    with pytest.raises(InputError, match="no questions"):
        figures.summarise([], [], **OPTIONS)


def test_ceilings():
    questions = [
        question(0, "p", bayes_accuracy=0.6),
        question(1, "p", bayes_accuracy=1.0, majority="B", choices=("a", "b", "c", "d")),
    ]
    assert figures.ceilings(questions) == {
        "bayes_accuracy": pytest.approx(0.8),
        "majority_accuracy": 0.5,
        "chance_accuracy": 0.375,
    }
    unknown = [*questions, question(2, "p", bayes_accuracy=None, bayes_answer=None)]
    assert figures.ceilings(unknown)["bayes_accuracy"] is None


def test_the_summary_of_a_run_is_json_and_complete():
    questions = many(30, 5)
    before = [answer_to(q, "A", truncated=False, tokens=3) for q in questions]
    after = [answer_to(q, q.answer, truncated=False, tokens=3) for q in questions]
    config = RunConfig(name="quick", seed=11, evaluation=EvaluationConfig(bootstrap=200))
    result = figures.summary(
        "quick", questions, before, after, config=config, timings={"seconds": 1.5}, environment={"backend": "jax"}
    )
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert set(result["after"]) >= {"accuracy", "ci", "n", "macro_f1", "truncated", "answered"}
    assert result["after"]["accuracy"] == 1 and len(result["after"]["ci"]) == 2
    assert result["gain"]["value"] == pytest.approx(1 - result["before"]["accuracy"])
    assert (result["run_name"], result["seed"], result["config"]["evaluation"]["bootstrap"]) == ("quick", 11, 200)
    assert result["timings"] == {"seconds": 1.5} and result["environment"] == {"backend": "jax"}
    features = {row["feature"]: row for row in result["per_feature"]}
    alone = {row["feature"]: row for row in figures.summarise(questions, before, bootstrap=200, seed=11)["per_feature"]}
    assert features.keys() == alone.keys()
    for name, row in features.items():
        assert (row["before"], row["after"], row["n"]) == (alone[name]["accuracy"], 1, alone[name]["n"])
    assert sum(row["n"] for row in result["per_section"]) == len(questions)


def test_a_summary_without_evaluations_says_none():
    questions = many(5, 2)
    config = RunConfig(name="quick", evaluation=EvaluationConfig(bootstrap=100))
    result = figures.summary("quick", questions, None, None, config=config)
    assert (result["before"], result["after"], result["gain"], result["per_section"]) == (None, None, None, [])
    after = [answer_to(q, q.answer, truncated=False, tokens=3) for q in questions]
    half = figures.summary("quick", questions, None, after, config=config)
    assert half["gain"] is None and half["per_section"][0]["before"] is None and half["per_section"][0]["after"] == 1


@pytest.mark.slow
def test_a_large_evaluation_is_quick():
    questions = many(2_000, 5)
    answers = [answer_to(q, "A", truncated=False, tokens=3) for q in questions]
    start = time.perf_counter()
    figures.summarise(questions, answers, bootstrap=2_000, seed=0)
    assert time.perf_counter() - start < 5
