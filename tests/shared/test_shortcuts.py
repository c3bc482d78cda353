"""The audit: each guesser finds what it is there for, and honest questions pass."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from shared.cohorts import sepsis, synthetic
from shared.questions import shortcuts
from shared.questions.record import LETTERS, Question
from shared.registry import build
from shared.tasks.denoising import questions


def question(number, choices, right, majority=0):
    return Question(
        id=f"q{number}", cohort="c", task="denoising", feature="f", section="", patient=f"p{number // 2}", context="",
        question="?", choices=tuple(choices), answer=LETTERS[right], majority=LETTERS[majority],
    )  # fmt: skip


def exam(make, count=400):
    rng = np.random.default_rng(1)
    return [question(number, *make(rng)) for number in range(count)]


def shuffled(rng, options):
    order = rng.permutation(len(options))
    return [options[i] for i in order], int(np.flatnonzero(order == 0)[0])


def honest(rng):
    return shuffled(rng, [str(value) for value in rng.choice(np.arange(10, 99), 5, replace=False)])


CHEATS = {
    "most decimals": lambda rng: shuffled(rng, ["1.35", "2", "4", "7.5"]),
    "out of order": lambda rng: (["1", "9", "3", "5"], 1) if rng.random() < 0.9 else (["9", "1", "3", "5"], 0),
    "middle of the ladder": lambda rng: shuffled(rng, ["5", "1", "3", "7", "9"]),
    "most frequent value": lambda rng: (["a", "b"], 0, 0),
    "longest text": lambda rng: shuffled(rng, ["a long story", "b", "cc", "d"]),
    "always B": lambda rng: (["x", "y", "z"], 1, 2),
}


def test_honest_questions_pass():
    found = shortcuts.audit(exam(honest))
    assert found["passed"] and found["chance"] == pytest.approx(0.2) and found["questions"] == 400
    assert all(low < 0.06 for low in (figures["interval"][0] for figures in found["guessers"].values()))
    assert "none" in shortcuts.lines(found)[0]


@pytest.mark.parametrize("name", CHEATS)
def test_each_shortcut_is_found(name):
    found = shortcuts.audit(exam(CHEATS[name]))
    assert not found["passed"] and not found["guessers"][name]["passed"]
    assert found["guessers"][name]["accuracy"] > 0.85
    assert f"{name} " in shortcuts.lines(found)[0] and "FOUND" in shortcuts.lines(found)[0]


def test_boosted_trees_find_what_no_rule_names():
    """The second smallest number is right: no guesser looks for it but the one that learns."""
    found = shortcuts.audit(exam(lambda rng: shuffled(rng, ["20", "10", "30", "40", "50"])))
    assert found["guessers"]["boosted trees on the options"]["accuracy"] > 0.9


def test_a_figure_above_chance_that_is_luck_says_among_how_many():
    found = shortcuts.audit(exam(honest), sets=2)
    assert found["judged_together"] == 2 * sum("solves" not in each for each in found["guessers"].values())
    found["guessers"] = {name: each | {"interval": [0.01, 0.1]} for name, each in found["guessers"].items()}
    assert f"{found['judged_together']} guessers are judged together" in shortcuts.lines(found)[1]


def test_a_guesser_that_cannot_choose_gets_its_expectation():
    ties = [question(0, ["1.5", "2.5", "3"], 0), question(1, ["1.5", "2.5", "3"], 2)]
    assert shortcuts.audit(ties)["guessers"]["most decimals"]["accuracy"] == pytest.approx((0.5 + 0) / 2)
    assert shortcuts.middle(question(0, ["4", "1", "9", "2"], 0)) == [3, 0]
    assert shortcuts.middle(question(0, ["no", "yes"], 0)) == [] == shortcuts.out_of_order(question(0, ["a", "b"], 0))
    assert shortcuts.audit([])["passed"]


def test_patients_are_the_observations():
    """Ten copies of each patient's questions make no figure surer."""
    once = exam(honest, 100)
    many = [
        question.__class__(**{**vars(question), "id": f"{question.id}-{i}"}) for question in once for i in range(10)
    ]
    narrow = [shortcuts.audit(asked)["guessers"]["always A"]["interval"] for asked in (once, many)]
    assert np.ptp(narrow[1]) == pytest.approx(np.ptp(narrow[0]), rel=1e-9)


def honest_excess(rng, sets, patients, each):
    """`[sets, questions]` excess of a blind guesser over honest questions of two to five options, and the patients."""
    sizes = rng.integers(2, 6, (sets, patients * each))
    return (rng.random(sizes.shape) < 1 / sizes) - 1 / sizes, np.repeat(np.arange(patients), each)


@pytest.mark.slow
@pytest.mark.parametrize(("patients", "each"), [(4, 10), (10, 4), (150, 4)])
def test_the_false_alarm_rate_is_the_stated_one(patients, each):
    """Few patients too: with the normal distribution in place of Student's t, 6, 2 and 1 % of honest figures failed at 1 %."""
    excess, owner = honest_excess(np.random.default_rng(0), 6_000, patients, each)
    failed = [not shortcuts._figures(figures, np.zeros(len(owner)), owner, 0.01)["passed"] for figures in excess]
    assert 0.002 < np.mean(failed) < 0.0135


def test_one_patient_alone_shows_nothing():
    """Every value of one patient: there is no scatter between patients to judge by."""
    asked = [dataclasses.replace(each, patient="p") for each in exam(lambda rng: (["x", "y", "z"], 1, 2), 60)]
    assert shortcuts.audit(asked)["passed"]


def test_a_small_shortcut_is_found_among_many_questions():
    """The right option is the longest text in 3 of 10 questions where chance gives 2."""

    def make(rng):
        options, right = shuffled(rng, ["1234", "234", "345", "456", "567"])
        return (options, right) if rng.random() < 0.125 else (options, int(rng.integers(5)))

    found = shortcuts.audit(exam(make, 3_000), sets=2)
    assert not found["guessers"]["longest text"]["passed"]


@pytest.mark.slow
def test_small_honest_registries_pass(monkeypatch, tmp_path):
    """Seed 42 of the synthetic registry with 600 patients: `longest text` is 2 points over chance, by chance.

    Over 150 other draws of the same registry's questions the mean excess is -0.06 points, with a standard error of 0.05.
    """
    monkeypatch.setattr(build, "mutual_information", lambda *_, **__: pd.DataFrame())  # options do not depend on it
    synthetic.write_raw(tmp_path, patients=600, seed=42)
    registry = build.build(sepsis.read(tmp_path, cohort="synthetic"), valid_patients=150, seed=42, salt="synthetic")
    longest = []
    for seed in (42, 43, 44):
        asked = questions(registry, "train", 3_000, seed=seed)
        credit = [shortcuts._credit(each, shortcuts.longest(each)) - each.chance for each in asked]
        longest.append(np.mean(credit))
        if seed == 42:
            found = shortcuts.audit(asked, sets=2)
    assert longest[0] == pytest.approx(0.0204, abs=5e-5) and abs(np.mean(longest[1:])) < 0.0125
    assert found["passed"] and found["guessers"]["longest text"]["accuracy"] == pytest.approx(0.272, abs=5e-4)
