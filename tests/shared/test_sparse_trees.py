"""Trees where columns say little or nothing: they answer all the same."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from shared.evaluation import baselines
from shared.registry.build import RawColumn, RawRegistry, build
from shared.tasks.denoising import questions

ROWS, HELD_OUT, SEED = 90, 30, 1
IDS = [f"P{row:03}" for row in range(ROWS)]


def registry_of(columns):
    raw = [RawColumn(name, name, "[S]", "", values) for name, values in columns.items()]
    return build(RawRegistry(cohort="test", ids=IDS, columns=raw), valid_patients=HELD_OUT, seed=SEED, salt="s")


@pytest.mark.parametrize("asked", ["number", "text"])
@pytest.mark.parametrize("beside", ["nothing", "empty", "empty_where_asked"])
def test_trees_without_anything_to_read_answer_by_frequency(asked, beside):
    rng = np.random.default_rng(0)
    values = rng.normal(50, 9, ROWS).round(1).tolist()
    columns = {"asked": values if asked == "number" else ["a" if value > 45 else "b" for value in values]}
    if beside == "empty":
        columns["other"] = [None] * ROWS
    if beside == "empty_where_asked":
        columns["asked"] = [value if row % 2 else None for row, value in enumerate(columns["asked"])]
        columns["other"] = [None if row % 2 else float(row) for row in range(ROWS)]
    registry = registry_of(columns)
    made = [each for each in questions(registry, "valid", 40, seed=1, mi_cutoff=9.0) if each.feature == "asked"]
    answers = baselines.boosted_trees(registry, made)
    assert len(answers) == len(made) > 0
    if asked == "text":
        found = zip(answers, made, strict=True)
        assert len({round(answer.probabilities[each.choices.index("a")], 9) for answer, each in found}) == 1


def test_a_category_of_one_patient_among_many(monkeypatch):
    """With so many rows scikit-learn sets some of each class aside, which it cannot do of a class of one."""
    count = 10_200
    monkeypatch.setitem(baselines.TREES, "max_iter", 2)
    registry = registry_of({"asked": ["a", "b"] * (ROWS // 2), "x": [float(row % 7) for row in range(ROWS)]})
    made = [each for each in questions(registry, "valid", 40, seed=1) if each.feature == "asked"]
    ids = pd.Index([f"Q{row}" for row in range(count)], dtype=object)
    many = pd.DataFrame(
        {"asked": ["rare", "b"] + ["a", "b"] * (count // 2 - 1), "x": np.arange(count) % 7.0}, index=ids
    )
    assert len(baselines.boosted_trees(dataclasses.replace(registry, train=many), made)) == len(made)
