"""The table of checks: what is beyond a bound, for how long, what is said then, and what a report shows of it."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from shared.config import validate
from shared.errors import InputError, SyncError, TrainingError
from shared.training import health

WELL = {"loss": 0.1, "grad_norm": 1.0, "kl": 0.01, "entropy": 0.5, "logprob_gap": 1e-5, "reward": 0.5, "reward_answer": 0.5,
        "answered": 1.0, "truncated": 0.0, "uniform_groups": 0.4}  # fmt: skip


def a_config(*, grpo=None, model=None, **fields):
    groups = {"group_size": 5, "questions_per_step": 4} | (grpo or {})
    return validate({"name": "x", "grpo": groups, "model": model or {}, "health": fields})


def seen(config, lines, held=None):
    """What is said at each of the lines."""
    watch = health.Watch(config, held)
    return [watch.count_step(step, WELL | line) for step, line in enumerate(lines)]


def test_a_run_that_is_well_is_not_spoken_of():
    assert not any(seen(a_config(), 30 * [{}]))


@pytest.mark.parametrize(
    ("name", "bad", "steps"),
    [
        ("no signal", {"uniform_groups": 1.0}, 5),
        ("exploding KL", {"kl": 5.01}, 5),
        ("exploding KL", {"kl": math.nan}, 5),
    ],
)
def test_what_stops_a_run_stops_it_at_its_patience(name, bad, steps):
    config = a_config()
    assert not any(seen(config, (steps - 1) * [bad] + [{}] + (steps - 1) * [bad]))
    with pytest.raises(TrainingError, match=rf"^step {steps - 1}: {name} for {steps} steps: .* what helps: "):
        seen(config, steps * [bad])
    said = seen(a_config(stop=False), (steps + 3) * [bad] + [{}] + steps * [bad])
    assert [len(each) for each in said] == (steps - 1) * [0] + [1] + 3 * [0] + [0] + (steps - 1) * [0] + [1]


@pytest.mark.parametrize(
    ("name", "bad", "steps"),
    [("collapsing entropy", {"entropy": 0.009}, 10), ("lengths at the limit", {"truncated": 0.51}, 5)],
)
def test_what_warns_says_it_once(name, bad, steps):
    said = seen(a_config(), 2 * steps * [bad])
    assert [len(each) for each in said] == (steps - 1) * [0] + [1] + steps * [0]
    assert said[steps - 1][0].startswith(f"step {steps - 1}: {name} for {steps} steps")


def test_bounds_are_the_last_values_that_are_well():
    assert not any(seen(a_config(), 20 * [{"kl": 5.0, "entropy": 0.01, "truncated": 0.5, "uniform_groups": 0.99}]))


def test_small_steps_need_more_of_them_for_a_verdict():
    """100 completions: 17 steps of 2 x 3."""
    config = a_config(grpo={"group_size": 3, "questions_per_step": 2})
    assert {check.name: check.patience for check in health.checks(config)}["no signal"] == 17
    large = a_config(grpo={"group_size": 8, "questions_per_step": 64})
    assert {check.name: check.patience for check in health.checks(large)}["no signal"] == 5


def test_a_check_can_be_switched_off_and_there_is_no_kl_without_a_reference():
    off = a_config(no_signal_steps=0, kl_steps=0, entropy_steps=0, cut_off_steps=0)
    assert not any(seen(off, 50 * [{"uniform_groups": 1.0, "kl": 9.0, "entropy": 0.0, "truncated": 1.0}]))
    assert not any(seen(a_config(grpo={"beta": 0.0}), 20 * [{"kl": 9.0}]))


def test_counts_go_on_behind_a_checkpoint():
    config = a_config()
    watch = health.Watch(config)
    for step in range(3):
        watch.count_step(step, WELL | {"uniform_groups": 1.0})
    assert watch.counts() == {"health.no signal": 3}
    with pytest.raises(TrainingError, match="no signal for 5 steps"):
        seen(config, 2 * [{"uniform_groups": 1.0}], held={"position": 12} | watch.counts())
    assert health.Watch(config).counts() == {}


@pytest.mark.parametrize(
    ("line", "config", "helps"),
    [
        ({"answered": 0.0, "truncated": 1.0}, {}, ["longer limit (rollout.max_new_tokens, now 2000)", "grpo.reward_format",
                                                    "more warmup.steps", "forced_choice"]),
        ({"answered": 0.0, "truncated": 0.0}, {"model": {"path": "m"}}, ["a model.path that was fine-tuned"]),
        ({"answered": 1.0, "reward_answer": 1.0, "reward": 1.0}, {}, ["harder questions (data.difficulty)"]),
        ({"answered": 1.0, "reward_answer": 0.0, "reward": 0.0}, {}, ["grpo.group_size", "rollout.temperature"]),
    ],
)  # fmt: skip
def test_what_helps_depends_on_what_the_completions_look_like(line, config, helps):
    with pytest.raises(TrainingError) as caught:
        seen(a_config(**config), 5 * [{"uniform_groups": 1.0} | line])
    assert all(words in str(caught.value) for words in helps) and "\n" not in str(caught.value)
    assert f"{100 * line['answered']:.0f} % of completions had a readable answer" in str(caught.value)


def test_the_bound_on_engine_and_learner_is_not_weakened():
    """It stops at once whatever `stop` says, and refuses what is no number."""
    watch = health.Watch(a_config(stop=False))
    watch.check_update(0, WELL | {"logprob_gap": 0.5}, "stale")
    for gap in (0.51, math.nan, math.inf):
        with pytest.raises(SyncError, match=r"step 1: .* more than grpo.max_logprob_gap = 0.5; stale"):
            watch.check_update(1, WELL | {"logprob_gap": gap}, "stale")


def test_a_report_has_a_row_for_each_check():
    kl = [0.1] + 6 * [5.5] + [0.2]
    metrics = pd.DataFrame([WELL | {"step": step, "kl": value} for step, value in enumerate(kl)])
    rows = {row["name"]: row for row in health.table(metrics, a_config(stop=False, entropy_steps=0))}
    assert list(rows) == ["no signal", "exploding KL", "collapsing entropy", "lengths at the limit",
                          "engine and learner apart"]  # fmt: skip
    found = rows["exploding KL"]
    assert (found["last"], found["worst"], found["steps"], found["longest"]) == (0.2, 5.5, 6, 6)
    assert (found["verdict"], found["bound"]) == ("beyond its bound", "> 5 for 5 steps")
    assert rows["no signal"]["verdict"] == "well" and rows["collapsing entropy"]["verdict"] == "off"
    empty = health.table(metrics.iloc[:0], a_config())
    assert {row["verdict"] for row in empty} == {"not measured"}


@pytest.mark.parametrize(
    ("field", "value"), [("kl", 0.0), ("cut_off", 1.0), ("cut_off", 0.0), ("no_signal_steps", -1), ("entropy", -0.1)]
)
def test_bad_bounds_are_named(field, value):
    with pytest.raises(InputError, match=rf"^health.{field} = {value}: must be"):
        a_config(**{field: value})
