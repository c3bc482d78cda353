"""Columns that say little or nothing in one of the two groups of patients: prepared all the same, and said in a line."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from shared.config import DataConfig
from shared.evaluation import baselines
from shared.preparation.prepare import prepare
from shared.preparation.summary import summary
from shared.preparation.verification import verify
from shared.questions.record import read_questions
from shared.registry import sums
from shared.registry.build import RawColumn, RawRegistry, build
from shared.registry.split import held_out_patients
from shared.storage import files
from shared.tasks.denoising import questions

ROWS, HELD_OUT, SEED = 90, 30, 1
IDS = [f"P{row:03}" for row in range(ROWS)]


def held_out():
    table = pd.DataFrame(index=pd.Index(IDS, dtype=object))
    return held_out_patients(table, "random", valid_patients=HELD_OUT, held_out="", roles={}, seed=SEED)


def cells():
    """A table whose columns are empty, the same, or single in training, held-out or both; `sound` ones tell something."""
    rng, out = np.random.default_rng(3), held_out()
    sound = rng.normal(50, 9, ROWS).round(1)
    first = np.arange(ROWS) == np.flatnonzero(~out)[0]
    values = {
        "sound": sound,
        "beside": (sound + rng.normal(0, 4, ROWS)).round(1),
        "few": np.where(sound > 50, "high", "low"),
        "empty": np.full(ROWS, ""),
        "empty_train": np.where(out, sound, ""),
        "empty_valid": np.where(out, "", sound),
        "one_value_train": np.where(first, "7.5", ""),
        "constant": np.full(ROWS, "3"),
        "constant_text": np.full(ROWS, "no"),
        "text_train_empty": np.where(out, np.where(sound > 50, "a", "b"), ""),
        "text_valid_empty": np.where(out, "", np.where(sound > 50, "a", "b")),
        "text_single": np.where(first, "rare", "common"),
        "text_only_held_out": np.where(out, "late", np.where(sound > 50, "a", "b")),
    }
    return {name: list(map(str, column)) for name, column in values.items()}


def write(folder, columns):
    folder.mkdir()
    pd.DataFrame({"id": IDS} | columns).to_csv(folder / "data.csv", index=False)
    kinds = {name: "category" if name.startswith(("text", "few", "constant_")) else "number" for name in columns}
    lines = ["column,display_name,section,kind", "id,,,id", *(f"{name},,S,{kind}" for name, kind in kinds.items())]
    (folder / "codebook.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fit", ["train", "all"])
def test_sparse_columns_are_prepared_and_said(tmp_path, fit):
    source = write(tmp_path / "source", cells())
    data = DataConfig(
        cohort="custom", source=str(source), valid_patients=HELD_OUT, train_questions=400, valid_questions=300, fit=fit
    )
    prepare(data, tmp_path / "out", seed=SEED, progress=False, salt="s", ceiling=True)
    assert verify(tmp_path / "out")
    said = summary(tmp_path / "out")
    asked = {question.feature for question in read_questions(tmp_path / "out" / "questions" / "train.parquet")}
    assert {"sound", "few", "empty_valid", "text_valid_empty"} <= asked and not {"empty", "constant"} & asked
    if fit == "train":
        assert "no training patient has a value (3 columns): empty, empty_train, text_train_empty\n" in said
        assert "have the same (3 columns): one_value_train, constant, constant_text\n" in said
    record = files.read_json(tmp_path / "out" / "questions" / "provenance.json")
    assert record["shortcuts"]["valid"]["ceiling"]["questions"]


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


def test_the_search_for_sums_ends_where_nothing_tells_anything(monkeypatch):
    """It went on for ever where two columns have no patient in common: the first was put aside again and again."""
    sound = np.random.default_rng(3).normal(50, 9, ROWS).round(1)
    out = np.arange(ROWS) % 3 == 0
    beside = sound + np.random.default_rng(4).normal(0, 4, ROWS)
    table = pd.DataFrame({"sound": sound, "beside": beside})
    table["here"], table["there"] = np.where(out, np.nan, sound), np.where(out, sound, np.nan)
    chosen, calls = sums._chosen, []

    def counted(*given):
        calls.append(given)
        assert len(calls) < 50, "the search does not end"
        return chosen(*given)

    monkeypatch.setattr(sums, "_chosen", counted)
    assert sums.of_several(table, list(table)) == []
