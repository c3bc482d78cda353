"""Boosted trees on the visible columns: better than chance where the record tells something, and never on what is hidden."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from shared.errors import InputError
from shared.evaluation import baselines
from shared.registry.build import RawColumn, RawRegistry, build
from shared.tasks.denoising import questions


@pytest.fixture(scope="module")
def registry():
    rng = np.random.default_rng(2)
    severity = rng.normal(size=700)
    columns = {
        "lactate": (10 + 3 * severity + rng.normal(size=700)).round(1),
        "pressure": (80 - 8 * severity + 6 * rng.normal(size=700)).round(),
        "noise": rng.normal(size=700).round(2),
        "died": np.where(severity + rng.normal(size=700) > 0.5, "yes", "no"),
    }
    raw = [RawColumn(name, name, "[S]", "", values.tolist()) for name, values in columns.items()]
    ids = [f"P{i}" for i in range(700)]
    return build(RawRegistry(cohort="test", ids=ids, columns=raw), valid_patients=250, seed=1, salt="s")


def test_trees_use_the_record(registry):
    made = questions(registry, "valid", 900, seed=1)
    answers = baselines.boosted_trees(registry, made)
    assert [answer.question_id for answer in answers] == [question.id for question in made]
    right = {name: [a.correct for a in answers if a.feature == name] for name in ("lactate", "died", "noise")}
    assert np.mean(right["lactate"]) > 0.35 and np.mean(right["died"]) > 0.6
    assert np.mean(right["noise"]) < 0.3
    for question, answer in zip(made, answers, strict=True):
        if question.feature == "died":
            assert sum(answer.probabilities) == pytest.approx(1) and len(answer.probabilities) == len(question.choices)
    majority = baselines.majority(made)
    assert np.mean([answer.correct for answer in majority]) == np.mean([q.majority == q.answer for q in made])


def test_what_is_hidden_is_not_used(registry):
    """With a leak group over everything that tells something, the trees are at chance."""
    grouped = [dataclasses.replace(f, leak_group="g" if f.name != "noise" else None) for f in registry.features]
    closed = dataclasses.replace(registry, features=grouped)
    made = [question for question in questions(closed, "valid", 900, seed=1) if question.feature == "lactate"]
    assert np.mean([answer.correct for answer in baselines.boosted_trees(closed, made)]) < 0.3


def test_other_patients_are_refused(registry):
    made = questions(registry, "valid", 5, seed=1)
    with pytest.raises(InputError, match="holds other patients"):
        baselines.boosted_trees(dataclasses.replace(registry, provenance={"salt": "other"}), made)
    with pytest.raises(InputError, match="no table answers the task 'aki'"):
        baselines.boosted_trees(registry, [dataclasses.replace(made[0], task="aki")])
