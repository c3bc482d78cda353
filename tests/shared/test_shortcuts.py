"""The audit: each guesser finds what it is there for, and honest questions pass."""

from __future__ import annotations

import numpy as np
import pytest

from shared import shortcuts
from shared.questions import LETTERS, Question


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
