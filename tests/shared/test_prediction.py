"""AKI and stroke outcomes: labels, what is shown, and that options tell nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shared.cohorts import hospitalized, stroke
from shared.config import DataConfig
from shared.errors import InputError
from shared.paper.prediction import paper_label
from shared.questions import shortcuts
from shared.questions.record import LETTERS
from shared.registry.build import build
from shared.registry.features import Feature
from shared.tasks import aki
from shared.tasks.catalogue import task
from shared.tasks.prompts import user_message
from shared.tasks.stroke_outcome import outcome_columns
from tests.support.golden_registry import FOLDER, needs_golden

golden = pytest.mark.golden
NAN = math.nan


@pytest.mark.parametrize(
    ("flags", "shown", "paper", "mended"),
    [
        ([0] * 24, 3, "no", "no"),
        ([0] * 3 + [1] + [0] * 20, 3, "yes", "no"),  # the slot shown is not the future
        ([0] * 9 + [1] + [0] * 14, 3, "no", "yes"),  # the sixth slot after it is
        ([0] * 5 + [NAN, 1] + [0] * 17, 3, "no", "yes"),  # a missing flag does not hide a positive one
        ([0] * 4 + [NAN] * 20, 3, "no", None),  # nothing is known of the window
        ([0] * 24, 17, "no", "no"),
        ([0] * 24, 18, "no", None),  # the window leaves day 8
    ],
)
def test_aki_labels(flags, shown, paper, mended):
    assert paper_label(flags, shown) == paper
    assert aki.label(flags, shown) == mended


def test_what_follow_up_visits_tell_is_not_shown():
    names = ["age", "ev1_3m", "no_event1y", "mrs3mo", "cum_mve_1y", "cum_mve_1y_d", "k_good", "mrs_dis", "inform"]
    assert outcome_columns(names, "mrs3mo") == ["age", "mrs_dis"] == outcome_columns(names, "cum_mve_1y")


@pytest.fixture(scope="module")
def strokes():
    raw = stroke.read(FOLDER / "stroke" / "raw")
    return build(raw, valid_patients=len(raw.ids) // 3, seed=2, salt="s")


@pytest.mark.slow
@golden
@needs_golden
@pytest.mark.parametrize("name", ["mrs_3m", "mace_1y"])
def test_stroke_outcomes(strokes, name):
    asked = task(name)
    wanted = len(strokes.valid) * 4 // 5
    for split in ("train", "valid"):
        made = asked.questions(strokes, split, wanted, {}, seed=5)
        assert made == asked.questions(strokes, split, wanted, {}, seed=5)
        assert len({question.id for question in made}) == len(made) and shortcuts.audit(made)["passed"]
        for question in made:
            assert len(set(question.choices)) == len(question.choices) == (5 if name == "mrs_3m" else 2)
            assert "3 months" not in question.context and "1 year" not in question.context.lower()
            assert question.answer in LETTERS[: len(question.choices)]
    natural = asked.questions(strokes, "valid", wanted, {"balance": False}, seed=5)
    assert len({question.patient for question in natural}) == wanted


@pytest.fixture(scope="module")
def stays():
    raw = hospitalized.read(FOLDER / "aki" / "raw")
    few = [
        c
        for c in raw.columns
        if not c.visible or c.section[:4] != "[Day" or c.name.endswith(("_aki", "_cr", "_hr", "surgery"))
    ]
    fewer = hospitalized.RawRegistry(**{**vars(raw), "columns": few})
    return build(fewer, valid_patients=len(raw.ids) // 4, seed=2, salt="s")


@pytest.mark.slow
@golden
@needs_golden
def test_aki_questions_show_the_past_only(stays):
    made = aki.questions(stays, "valid", 2 * len(stays.valid), seed=5)
    assert shortcuts.audit(made)["passed"] and len(made) > len(stays.valid)
    for question in made:
        assert "AKI" not in question.context.replace("[", "") and "Final Outcomes" not in question.context
        header = question.id.split("-", 3)[3].rsplit("-", 1)[0]
        last = [line for line in question.context.split("\n") if line.startswith("[")][-1]
        assert last == f"[{header}]" and sorted(question.choices) == ["no", "yes"]
        assert user_message(question).endswith(
            f"\n\nQ. Would AKI occur in the next 48 hours?\nA.{question.choices[0]}\nB.{question.choices[1]}"
        )
    yes = np.mean([question.choices[LETTERS.index(question.answer)] == "yes" for question in made])
    assert 0.4 < yes < 0.6
    assert not {q.patient for q in made} & {q.patient for q in aki.questions(stays, "train", len(stays.valid), seed=5)}


@golden
@needs_golden
def test_flags_of_day_8_are_kept_but_never_shown(stays):
    hidden = [feature.name for feature in stays.features if not feature.visible]
    assert hidden == ["d8_1_aki", "d8_2_aki", "d8_3_aki", "adm_year"]
    assert not set(hidden) & set(stays.statistics)
    assert all(not set(hidden) & set(texts) for texts in stays.shown("valid").values())


@golden
@needs_golden
def test_the_hospitalised_layout_is_checked_by_name(tmp_path):
    for path in (FOLDER / "aki" / "raw").iterdir():
        (tmp_path / path.name).symlink_to(path)
    own = (hospitalized.Path(hospitalized.__file__).parent / "layout.json").read_text()
    (tmp_path / "layout.json").write_text(own.replace('"htn"', '"hypertension"'))
    with pytest.raises(InputError, match="columns of the layout are missing: hypertension"):
        hospitalized.read(tmp_path)
    (tmp_path / "layout.json").write_text(own.replace('"htn", ', ""))
    with pytest.raises(InputError, match="does not place these columns: htn"):
        hospitalized.read(tmp_path)
    (tmp_path / "layout.json").write_text("{}")
    with pytest.raises(InputError, match="these keys are missing: identifier"):
        hospitalized.read(tmp_path)
    (tmp_path / "metadata.xlsx").unlink()
    with pytest.raises(InputError, match=r"missing metadata\.xlsx"):
        hospitalized.digests(tmp_path)


def test_a_task_needs_its_cohort():
    with pytest.raises(InputError, match="task = 'aki': needs cohort = 'hospitalized'"):
        DataConfig(task="aki")
    registry = type("Empty", (), {"features": [Feature(name="a", display_name="A", section="", kind="number")]})()
    with pytest.raises(InputError, match="the registry has no column mrs3mo"):
        task("mrs_3m").questions(registry, "train", 1, {}, seed=5)
