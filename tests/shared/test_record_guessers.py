"""Guessers that read the record: each finds what it is there for, and medicine is no shortcut."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from shared.questions import shortcuts
from shared.questions.record import LETTERS, Question
from shared.questions.record_guessers import read_record


def question(number, feature, lines, choices, answer):
    return Question(
        id=f"q{number}-{feature}", cohort="c", task="denoising", feature=feature, section="[Stay]", patient=f"p{number}",
        context="[Stay]\n" + "\n".join(lines) + f"\n{feature}: [MASK]",
        question=f"Q1. What would be the masked value of '{feature}' in section [Stay]?", choices=tuple(choices),
        answer=LETTERS[list(choices).index(answer)], majority="A",
    )  # fmt: skip


def shuffled(rng, options):
    return [options[i] for i in rng.permutation(len(options))]


def stay(rng, shown="%Y-%m-%d %H:%M:%S", whole=False):
    start = pd.Timestamp("2021-01-01") + pd.Timedelta(minutes=int(rng.integers(0, 10**6)))
    end = start + pd.Timedelta(minutes=int(rng.gamma(2, 4) * 1440))
    days = (end.normalize() - start.normalize()).days if whole else (end - start).days
    return [f"Admission: {start:{shown}}", f"Discharge: {end:{shown}}"], days


def around(rng, days):
    low = max(0, days - int(rng.integers(0, 5)))
    return shuffled(rng, [str(low + step) for step in range(5)])


def exam(make, count, seed=1):
    rng = np.random.default_rng(seed)
    return [question(number, *make(rng)) for number in range(count)]


def length_of_stay(rng):
    lines, days = stay(rng)
    return "Length of stay", lines, around(rng, days), str(days)


def calendar_days(rng):
    lines, days = stay(rng, whole=True)
    return "Length of stay", lines, around(rng, days), str(days)


def dates_only(rng):
    lines, days = stay(rng, shown="%Y/%m/%d", whole=True)
    return "Length of stay", lines, around(rng, days), str(days)


def stay_as_category(rng):
    lines, days = stay(rng)
    return (
        "Stay",
        lines,
        shuffled(rng, ["a week or less", "more than a week"]),
        "a week or less" if days < 7 else "more than a week",
    )


def age(rng):
    born, years = int(rng.integers(1930, 2000)), int(rng.integers(2018, 2024))
    right = years - born
    return (
        "Age",
        [f"Born: {born}", f"Year: {years}"],
        shuffled(rng, [str(right + 9 * k) for k in range(-2, 3)]),
        str(right),
    )


def index(rng):
    height, weight = int(rng.normal(170, 9)), round(float(rng.normal(75, 15)), 1)
    right = round(weight / (height / 100) ** 2, 1)
    options = [f"{right + step:.1f}" for step in (-4, -2, 0, 2, 4)]
    return (
        "BMI",
        [f"Height: {height}", f"Weight: {weight}", f"Pulse: {rng.integers(50, 120)}"],
        shuffled(rng, options),
        f"{right:.1f}",
    )


def score(rng):
    parts = [int(rng.integers(1, most)) for most in (5, 6, 7)]
    lines = [f"{name}: {part}" for name, part in zip(("Eyes", "Voice", "Moves"), parts, strict=True)]
    return "Score", [*lines, f"Pulse: {rng.integers(50, 120)}"], around(rng, sum(parts)), str(sum(parts))


def copied(rng):
    value = int(rng.integers(20, 80))
    options = [str(value + step) for step in range(5)]
    return (
        "Pulse",
        [f"Pulse on arrival: {value + 2}.0", f"Age: {rng.integers(20, 90)}"],
        shuffled(rng, options),
        str(value + 2),
    )


def told(rng):
    options = ["pneumonia", "pyelonephritis", "cholangitis", "cellulitis"]
    right = options[rng.integers(4)]
    return "Source", [f"Remark: from ED with {right}, stable", "Sex: Male"], shuffled(rng, options), right


CHEATS = {
    length_of_stay: "time between dates",
    calendar_days: "time between dates",
    dates_only: "time between dates",
    stay_as_category: "time between dates",
    age: "arithmetic on the record",
    index: "arithmetic on the record",
    score: "arithmetic on the record",
    copied: "value repeated in the record",
    told: "value repeated in the record",
}


@pytest.mark.parametrize("make", CHEATS, ids=lambda make: make.__name__)
def test_each_shortcut_is_found_and_named(make):
    found = shortcuts.audit(exam(make, 41), sets=2)
    figures = found["guessers"][CHEATS[make]]
    assert not found["passed"] and not figures["passed"] and figures["accuracy"] > 0.75
    [solved] = figures["solves"]
    assert solved["feature"] == make(np.random.default_rng(0))[0] and solved["of"] == 41
    [line] = shortcuts.lines(found)
    assert "FOUND" in line and f"of 41 questions about {solved['feature']}" in line and "in [Stay]" in line
    assert not any(text in line for text in ("2021", "pneumonia", "Male"))  # no patient's value


def test_41_of_41_by_subtraction():
    """The length of stay in whole days between two dates: every answer is right."""
    figures = shortcuts.audit(exam(dates_only, 41))["guessers"]["time between dates"]
    assert figures["solves"] == [{
        "feature": "Length of stay", "from": ["'Admission' in [Stay]", "'Discharge' in [Stay]"], "right": 41, "of": 41,
    }]  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_medicine_is_no_shortcut(seed):
    """Dates that tell nothing, numbers that share a cause with the answer, and labels that others share."""

    def honest(rng):
        lines, _ = stay(rng)
        grade = int(rng.integers(0, 5))
        other = grade if rng.random() < 0.5 else int(rng.integers(0, 5))
        lines += [f"Lactate: {2 + grade + rng.normal(0, 2):.1f}", f"Pulse: {80 + 5 * grade + rng.normal(0, 12):.0f}"]
        lines += [f"ECOG: {other}", "Remark: stable, no complaints"]
        return "Grade", lines, shuffled(rng, ["0", "1", "2", "3", "4"]), str(grade)

    found = shortcuts.audit(exam(honest, 300, seed), sets=2)
    assert all(not figures.get("solves") for figures in found["guessers"].values())


def test_few_questions_show_nothing():
    assert shortcuts.audit(exam(length_of_stay, 5))["passed"]
    assert read_record("[A]\nx: 1\n\n[B]\nx: 2: 3\ny: [MASK]\nno line") == {("[A]", "x"): "1", ("[B]", "x"): "2: 3"}
