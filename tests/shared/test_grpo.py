from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shared import grpo
from shared.config import GrpoConfig
from shared.errors import InputError
from shared.grpo.losses import CLIP_RANGE, LOSSES, Loss
from tests.support.golden_grpo import (
    ALL_LOSSES,
    config_of,
    float64_bound,
    golden_arrays,
    golden_cases,
    golden_config,
    golden_denominator,
    on_policy_cases,
)
from tests.support.groups import random_batch


def golden_loss(case: dict, arrays: dict, config: GrpoConfig, logprobs: np.ndarray, **options) -> float:
    sums = grpo.objective(
        logprobs,
        arrays["advantages"],
        arrays["completion_mask"],
        config,
        old_logprobs=options.pop("old_logprobs", arrays["old_logps"]),
        ref_logprobs=arrays["ref_logps"],
        **options,
    )
    return sums.loss / golden_denominator(case, sums, config)


@pytest.mark.golden
@golden_cases
def test_golden_loss(case):
    arrays = golden_arrays(case)
    config = golden_config(case)
    loss = golden_loss(case, arrays, config, arrays["policy_logps"])
    assert loss == pytest.approx(case["expected_loss"], rel=0, abs=float64_bound(case))


@pytest.mark.golden
@golden_cases
def test_golden_gradient_by_finite_differences(case):
    arrays = golden_arrays(case)
    config = golden_config(case)
    policy = arrays["policy_logps"].astype(np.float64)
    gradient = np.zeros_like(policy)
    for place in np.ndindex(policy.shape):
        step = np.zeros_like(policy)
        step[place] = 1e-6
        up = golden_loss(case, arrays, config, policy + step, detached=policy)
        down = golden_loss(case, arrays, config, policy - step, detached=policy)
        gradient[place] = (up - down) / 2e-6
    np.testing.assert_allclose(gradient, arrays["grad_policy_logps"], rtol=0, atol=1e-6)


@pytest.mark.golden
@on_policy_cases
def test_golden_on_policy_needs_no_old_logprobs(case):
    arrays = golden_arrays(case)
    loss = golden_loss(case, arrays, golden_config(case), arrays["policy_logps"], old_logprobs=None)
    assert loss == pytest.approx(case["expected_loss"], rel=0, abs=float64_bound(case))


# Spec: grpo, section 2: (right, wrong) advantages of a group of 7 by how many are right.
TABLE = {
    1: (2.2672, -0.3779),
    2: (1.4636, -0.5854),
    3: (1.0688, -0.8016),
    4: (0.8016, -1.0688),
    5: (0.5854, -1.4636),
    6: (0.3779, -2.2672),
}


def test_advantages_of_the_papers_groups():
    rewards = np.array([[1.0] * right + [0.0] * (7 - right) for right in range(8)])
    values = grpo.advantages(rewards, "group")
    assert not values[0].any() and not values[7].any()
    for right, (plus, minus) in TABLE.items():
        np.testing.assert_allclose(values[right, :right], plus, atol=5e-5)
        np.testing.assert_allclose(values[right, right:], minus, atol=5e-5)


def test_advantage_scales_by_hand():
    rewards = np.array([[1.0, 3.0], [0.0, 8.0]])
    np.testing.assert_array_equal(grpo.advantages(rewards, "none"), [[-1, 1], [-4, 4]])
    std = np.sqrt(((rewards - 3) ** 2).sum() / 3)
    np.testing.assert_allclose(
        grpo.advantages(rewards, "batch"), np.array([[-1, 1], [-4, 4]]) / (std + 1e-4), rtol=1e-15
    )
    np.testing.assert_allclose(
        grpo.advantages(rewards, "group")[1], np.array([-4, 4]) / (np.sqrt(32) + 1e-4), rtol=1e-15
    )


@given(value=st.floats(-10, 10), size=st.integers(2, 9), scale=st.sampled_from(["group", "batch", "none"]))
def test_uniform_group_is_exactly_zero(value, size, scale):
    rewards = np.stack([np.full(size, value), np.linspace(0, 1, size)])
    values = grpo.advantages(rewards, scale)
    assert (values[0] == 0).all() and np.isfinite(values).all()
    assert values[1, -1] > 0
    np.testing.assert_array_equal(grpo.uniform_groups(rewards), [True, False])


def test_advantages_refuse_single_completions():
    with pytest.raises(InputError, match="2 completions"):
        grpo.advantages(np.ones((4, 1)), "group")


def test_k3_keeps_its_precision():
    config = GrpoConfig(beta=1.0)
    sums = grpo.objective(
        np.array([[-1.0]]), np.zeros(1), np.ones((1, 1)), config, ref_logprobs=np.array([[-1.0 + 1e-4]])
    )
    assert sums.kl == pytest.approx(5e-9, rel=1e-4)
    assert sums.loss == pytest.approx(sums.kl)


def test_kl_estimators_by_hand():
    logprobs, ref = np.array([[-1.0]]), np.array([[-0.5]])
    for name, expected in (("k1", -0.5), ("k2", 0.125), ("k3", np.exp(0.5) - 1.5)):
        config = GrpoConfig(beta=0.1, kl_estimator=name)
        sums = grpo.objective(logprobs, np.zeros(1), np.ones((1, 1)), config, ref_logprobs=ref)
        assert sums.kl == pytest.approx(expected) and sums.loss == pytest.approx(0.1 * expected)


def test_rollout_correction_by_hand():
    """Learner minus engine is log 4 and 0: ratios 4 and 1, geometric mean 2; on policy each token's term is -A."""
    logprobs = np.array([[-1.0, -1.0]])
    rollout = logprobs - np.log([[4.0, 1.0]])

    def correct(kind: Any, cap: float) -> grpo.Sums:
        config = GrpoConfig(loss="dapo", beta=0.0, rollout_correction=kind, rollout_correction_cap=cap)
        return grpo.objective(logprobs, np.ones(1), np.ones((1, 2)), config, rollout_logprobs=rollout)

    assert correct("none", 3.0).loss == pytest.approx(-2)
    assert correct("token", 3.0).loss == pytest.approx(-(3 + 1))
    assert correct("token", 9.0).loss == pytest.approx(-(4 + 1))
    assert correct("sequence", 9.0).loss == pytest.approx(-(2 + 2))
    assert correct("sequence", 1.5).correction == pytest.approx(3)
    assert correct("none", 3.0).gap == pytest.approx(np.log(4)) == correct("none", 3.0).gap_max


def test_rollout_correction_leaves_the_kl_term_and_uses_old_logprobs():
    logprobs, old = np.array([[-1.0]]), np.array([[-1.2]])
    config = GrpoConfig(loss="dapo", beta=0.5, rollout_correction="token", rollout_correction_cap=10.0)
    sums = grpo.objective(
        logprobs, np.zeros(1), np.ones((1, 1)), config,
        old_logprobs=old, ref_logprobs=logprobs - 1, rollout_logprobs=old - 1,
    )  # fmt: skip
    assert sums.correction == pytest.approx(np.e)
    assert sums.loss == pytest.approx(0.5 * np.exp(-1))


def test_clipped_tokens_are_those_without_gradient():
    """Ratios 0.5, 1, 1.5, 2.5 for both signs of the advantage; with delta 2 the last falls out where A < 0."""
    log_ratio = np.log([[0.5, 1.0, 1.5, 2.5]])
    zeros, mask = np.zeros((1, 4)), np.ones((1, 4))
    for advantage, delta, expected in ((1.0, None, 2), (-1.0, None, 1), (-1.0, 2.0, 2), (0.0, 2.0, 0)):
        config = GrpoConfig(beta=0.0, delta=delta)
        sums = grpo.objective(log_ratio, np.array([advantage]), mask, config, old_logprobs=zeros)
        assert sums.clipped == expected
    cispo = GrpoConfig(loss="cispo", beta=0.0, epsilon_high=2.0)
    assert grpo.objective(log_ratio, np.ones(1), mask, cispo, old_logprobs=zeros).clipped == 1


def test_denominators():
    sums = grpo.Sums(completions=35.0, tokens=700.0)
    for loss in ALL_LOSSES:
        config = loss_config(loss)
        expected = {"dr_grpo": 35 * 2000, "bnpo": 700, "dapo": 700, "cispo": 700, "vespo": 700}.get(loss, 35)
        assert grpo.denominator(sums, config, 2000) == expected
        assert grpo.denominator(sums._replace(completions=0.0, tokens=0.0), config, 1) == 1


def test_the_table_has_every_loss_and_names_fields_of_the_section():
    assert {"grpo", "bnpo", "dr_grpo", "dapo", "gspo", "cispo", "sapo", "vespo", "luspo"} <= set(LOSSES)
    fields = {field.name for field in dataclasses.fields(GrpoConfig)}
    for loss in LOSSES.values():
        assert set(loss.reads) <= fields
        assert {"range": set(CLIP_RANGE), "cap": {"epsilon_high"}, "none": set()}[loss.clip] <= set(loss.reads)


@pytest.mark.parametrize("row", [{"normaliser": "token"}, {"normaliser": "tokens", "clip": "clipped"}])
def test_a_row_with_a_normaliser_or_a_clip_rule_that_there_is_not_is_refused(row):
    with pytest.raises(ValueError, match=f"a loss cannot have '{row.get('clip', 'token')}'; there are"):
        Loss(term="clipped", **row)


def test_missing_logprobs_are_named():
    arrays = np.zeros((1, 1)), np.zeros(1), np.ones((1, 1))
    with pytest.raises(InputError, match="beta = 0.04"):
        grpo.objective(*arrays, GrpoConfig())
    with pytest.raises(InputError, match="rollout_correction = 'token'"):
        grpo.objective(*arrays, GrpoConfig(beta=0.0, rollout_correction="token"))


def test_arrays_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="shape"):
        grpo.objective(np.zeros((2, 3)), np.zeros(2), np.ones((2, 4)), GrpoConfig(beta=0.0))


def loss_config(loss: Any) -> GrpoConfig:
    return config_of(
        loss,
        ratio_level="sequence" if loss == "gspo" else "token",
        epsilon_high=2.0 if loss == "cispo" else 0.3,
        delta=1.6,
        kl_in_ratio=True,
        rollout_correction="sequence" if loss == "gspo" else "token",
        off_policy_mask_threshold=0.1,
    )


def random_inputs(seed: int, completions: int = 7, time: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    logprobs = -rng.exponential(1.0, (completions, time))
    near = {name: logprobs + rng.normal(0, 0.3, logprobs.shape) for name in ("old", "ref", "rollout")}
    mask = (rng.random(logprobs.shape) < 0.7).astype(np.float32)
    mask[rng.integers(completions)] = 0
    return {
        "logprobs": logprobs,
        "advantages": rng.normal(0, 1, completions),
        "mask": mask,
        **{f"{name}_logprobs": values for name, values in near.items()},
    }


every_loss = pytest.mark.parametrize("loss", ALL_LOSSES)


@every_loss
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), cuts=st.sets(st.integers(1, 6)))
def test_micro_batches_add_up(loss, seed, cuts):
    config, inputs = loss_config(loss), random_inputs(seed)
    whole = grpo.objective(config=config, **inputs)
    edges = [0, *sorted(cuts), 7]
    joined = grpo.Sums()
    for start, stop in itertools.pairwise(edges):
        part = {name: values[start:stop] for name, values in inputs.items()}
        joined = grpo.add(joined, grpo.objective(config=config, **part))
    np.testing.assert_allclose(joined, whole, rtol=1e-12, atol=1e-12)
    assert grpo.metrics(joined, config, 9)["loss"] == pytest.approx(grpo.metrics(whole, config, 9)["loss"])


@every_loss
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), garbage=st.sampled_from([np.nan, np.inf, -np.inf, 1e30, 88.0]))
def test_masked_garbage_and_padding_rows_never_matter(loss, seed, garbage):
    config, inputs = loss_config(loss), random_inputs(seed)
    whole = grpo.objective(config=config, **inputs)
    dirty = {name: np.where(inputs["mask"] > 0, values, garbage) for name, values in inputs.items() if "log" in name}
    dirty |= {"advantages": inputs["advantages"], "mask": inputs["mask"]}
    assert grpo.objective(config=config, **dirty) == whole
    padded = {name: np.concatenate([values, np.full_like(values[:2], garbage)]) for name, values in dirty.items()}
    padded["mask"][7:] = 1
    row_mask = np.array([1.0] * 7 + [0.0] * 2)
    np.testing.assert_allclose(grpo.objective(config=config, row_mask=row_mask, **padded), whole, rtol=1e-12)


def test_a_row_masked_out_whole_counts_as_a_completion():
    config = GrpoConfig(beta=0.0)
    sums = grpo.objective(np.zeros((2, 3)), np.ones(2), np.array([[1, 1, 1], [0, 0, 0]]), config)
    assert (sums.completions, sums.tokens) == (2, 3)
    assert sums.loss / grpo.denominator(sums, config, 3) == pytest.approx(-0.5)


def example_batch(**options) -> grpo.GroupBatch:
    """The row in GroupLayout's docstring."""
    return grpo.pack(
        [np.array([11, 12, 13, 14])],
        [[np.array([21, 22, 23]), np.array([31, 32])]],
        grpo.GroupLayout(prompt=5, group=2, completion=3),
        advantages=np.array([[0.5, -0.5]]),
        **options,
    )


def test_pack_gives_the_documented_row():
    batch = example_batch(rollout_logprobs=[[np.array([-1.0, -2.0, -3.0]), np.array([-4.0, -5.0])]])
    assert batch.tokens.tolist() == [[11, 12, 13, 14, 0, 21, 22, 23, 31, 32, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 4, 5, 6, 4, 5, 0]]
    assert batch.groups.tolist() == [[0, 0, 0, 0, -1, 0, 0, 0, 0, 0, -1]]
    assert batch.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 0]]
    assert batch.completion_mask.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0]]
    assert batch.advantages.tolist() == [[0, 0, 0, 0, 0, 0.5, 0.5, 0.5, -0.5, -0.5, 0]]
    assert batch.rollout_logprobs.tolist() == [[0, 0, 0, 0, 0, -1, -2, -3, -4, -5, 0]]
    assert batch.old_logprobs is None and batch.ref_logprobs is None
    assert {batch.tokens.dtype, batch.positions.dtype, batch.groups.dtype, batch.segments.dtype} == {np.dtype(np.int32)}
    assert {batch.completion_mask.dtype, batch.advantages.dtype, batch.rollout_logprobs.dtype} == {np.dtype(np.float32)}


def test_truncated_completions_can_be_masked():
    completions = [[np.array([21, 22, 23]), np.array([31, 32])]]
    truncated = np.array([[True, False]])
    kept = grpo.completion_masks(completions, truncated, mask_truncated=False)
    assert [mask.tolist() for mask in kept[0]] == [[1, 1, 1], [1, 1]]
    masks = grpo.completion_masks(completions, truncated, mask_truncated=True)
    logprobs = [[np.array([np.nan] * 3), np.array([-4.0, -5.0])]]
    batch = example_batch(completion_masks=masks, rollout_logprobs=logprobs)
    assert batch.completion_mask.tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0]]
    assert batch.advantages.tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, -0.5, -0.5, 0]]
    assert batch.rollout_logprobs.tolist() == [[0, 0, 0, 0, 0, 0, 0, 0, -4, -5, 0]]
    assert batch.segments.tolist() == example_batch().segments.tolist()
    assert grpo.real_completions(batch.groups, batch.layout).tolist() == [1, 1]


def test_separate_rows_repeat_the_prompt():
    batch = grpo.separate_rows(example_batch())
    assert batch.layout == grpo.GroupLayout(prompt=5, group=1, completion=3)
    assert batch.tokens.tolist() == [[11, 12, 13, 14, 0, 21, 22, 23], [11, 12, 13, 14, 0, 31, 32, 0]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 0, 4, 5, 6], [0, 1, 2, 3, 0, 4, 5, 0]]
    assert batch.groups.tolist() == [[0, 0, 0, 0, -1, 0, 0, 0], [0, 0, 0, 0, -1, 0, 0, -1]]
    assert batch.segments.tolist() == [[0, 0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 0]]
    assert batch.advantages.tolist() == [[0, 0, 0, 0, 0, 0.5, 0.5, 0.5], [0, 0, 0, 0, 0, -0.5, -0.5, 0]]
    assert batch.rollout_logprobs is None


def test_pack_names_what_does_not_fit():
    layout = grpo.GroupLayout(prompt=3, group=2, completion=2)
    one, two, three = np.arange(1), np.arange(2), np.arange(3)

    def packed(prompt=two, samples=(one, two), shape=(1, 2), **options):
        return grpo.pack([prompt], [list(samples)], layout, advantages=np.zeros(shape), **options)

    assert packed().tokens.shape == (1, 7)
    for message, options in {
        "prompt has 4 tokens": {"prompt": np.arange(4)},
        "prompt has 0 tokens": {"prompt": np.arange(0)},
        "1 completions": {"samples": (one,)},
        "completion has 3 tokens": {"samples": (one, three)},
        "as many groups": {"shape": (2, 2)},
        "3 mask values for 2 tokens": {"completion_masks": [[one, three]]},
        "log-probabilities are missing": {"rollout_logprobs": [[one]]},
    }.items():
        with pytest.raises(InputError, match=message):
            packed(**options)


@st.composite
def random_batches(draw) -> grpo.GroupBatch:
    layout = grpo.GroupLayout(
        prompt=draw(st.integers(1, 5)), group=draw(st.integers(2, 4)), completion=draw(st.integers(1, 4))
    )
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    count = draw(st.integers(1, 4))

    def ids(longest: int) -> np.ndarray:
        return rng.integers(1, 99, rng.integers(1, longest + 1))

    completions = [[ids(layout.completion) for _ in range(layout.group)] for _ in range(count)]
    return grpo.pack(
        [ids(layout.prompt) for _ in range(count)],
        completions,
        layout,
        advantages=rng.normal(size=(count, layout.group)),
        rollout_logprobs=[[-rng.exponential(1.0, len(ids)) for ids in group] for group in completions],
    )


def batch_objective(batch: grpo.GroupBatch, logprobs: np.ndarray) -> grpo.Sums:
    config = GrpoConfig(beta=0.0, rollout_correction="token")

    def view(array: Any) -> np.ndarray:
        return grpo.completion_view(array, batch.layout)

    return grpo.objective(
        view(logprobs),
        view(batch.advantages),
        view(batch.completion_mask),
        config,
        row_mask=grpo.real_completions(batch.groups, batch.layout),
        rollout_logprobs=view(batch.rollout_logprobs),
    )


@settings(deadline=None)
@given(batch=random_batches())
def test_separated_padded_and_cut_batches_have_the_same_sums(batch):
    def policy(batch: grpo.GroupBatch) -> np.ndarray:
        return -0.01 * batch.tokens - 0.1 * batch.positions

    whole = batch_objective(batch, policy(batch))
    separate = grpo.separate_rows(batch)
    np.testing.assert_allclose(batch_objective(separate, policy(separate)), whole, rtol=1e-12)
    padded = grpo.pad_rows(batch, 2 * ((batch.tokens.shape[0] + 1) // 2))
    np.testing.assert_allclose(batch_objective(padded, policy(padded)), whole, rtol=1e-12)
    joined = grpo.Sums()
    for part in grpo.split_rows(padded, 2):
        joined = grpo.add(joined, batch_objective(part, policy(part)))
    np.testing.assert_allclose(joined, whole, rtol=1e-12)


@settings(deadline=None)
@given(batch=random_batches())
def test_rows_of_the_separated_batch_are_in_the_order_of_the_view(batch):
    separate = grpo.separate_rows(batch)
    for name in ("tokens", "positions", "groups", "completion_mask", "advantages", "rollout_logprobs"):
        viewed = grpo.completion_view(getattr(batch, name), batch.layout)
        np.testing.assert_array_equal(getattr(separate, name)[:, batch.layout.prompt :], viewed)
    np.testing.assert_array_equal(grpo.separate_rows(separate).tokens, separate.tokens)


@given(values=hnp.arrays(np.float32, (6, 4), elements=st.floats(-9, 9, width=32)))
def test_completion_view_has_an_inverse(values):
    layout = grpo.GroupLayout(prompt=3, group=2, completion=4)
    spread = grpo.from_completion_view(values, layout)
    assert spread.shape == (3, layout.length) and spread.dtype == np.float32 and not spread[:, :3].any()
    np.testing.assert_array_equal(spread[1, 3:7], values[2])
    np.testing.assert_array_equal(grpo.completion_view(spread, layout), values)


def test_padding_rows_are_empty():
    batch = grpo.pad_rows(example_batch(), 3)
    assert (batch.groups[1:] == -1).all() and not batch.tokens[1:].any() and not batch.completion_mask[1:].any()
    assert grpo.real_completions(batch.groups, batch.layout).tolist() == [1, 1, 0, 0, 0, 0]
    assert batch.rollout_logprobs is None
    np.testing.assert_array_equal(grpo.rows(batch, slice(0, 1)).tokens, example_batch().tokens)
    with pytest.raises(InputError, match="cannot be padded to 2"):
        grpo.pad_rows(batch, 2)
    with pytest.raises(InputError, match="micro-batches of 2"):
        grpo.split_rows(batch, 2)


def test_counts_are_those_of_the_objective_over_real_completions():
    """A completion that is masked out counts, a row that is padding does not, and no token of either."""
    batch = random_batch(4, seed=3, masked=(1, 0))
    padded = grpo.pad_rows(batch, 6)
    tokens = float(batch.completion_mask.sum())
    assert grpo.counts(padded) == grpo.counts(batch) == grpo.Sums(completions=8.0, tokens=tokens)
    assert 0 < tokens < 4 * batch.layout.group * batch.layout.completion
