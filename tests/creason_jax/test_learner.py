from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import Phi3ForCausalLM, get_cosine_schedule_with_warmup

from creason_jax.model import DecoderConfig, abstract_params, forward, load_params
from shared import grpo
from shared.config import OptimizerConfig, Remat
from shared.errors import InputError
from shared.grpo import GroupBatch, GroupLayout, Sums
from shared.grpo.schedule import learning_rate
from tests.support.small import (
    LAYOUT,
    MODEL,
    VOCABULARY,
    distance,
    flat,
    gradients,
    make_learner,
    on_host,
    put_back,
    random_batch,
)
from tests.support.tiny import hugging_face_logprobs

pytestmark = pytest.mark.slow

NO_CLIP = {"max_grad_norm": 1e9}
GROUPS = GroupLayout(prompt=10, group=7, completion=6)


@pytest.fixture(scope="module")
def shared_learner(model):
    learner = make_learner(model, learner={"micro_batch_rows": 4, "remat": "none"}, optimizer=NO_CLIP)
    return learner, on_host(learner.state)


@pytest.fixture
def learner(shared_learner):
    """The same learner for many tests, each time as new: its update is compiled once for `random_batch(8)`."""
    found, state = shared_learner
    put_back(found, state)
    return found


# The update: layouts, micro-batches, padding.


@pytest.fixture(scope="module")
def expected(model):
    """The update with 5 questions x 7 completions, one of them masked out whole, as 5 rows at once."""
    return grouped_update(model, rows=5, separate=False)


def grouped_update(model, *, rows: int, separate: bool):
    config: dict[str, Any] = {"micro_batch_rows": rows, "remat": "none"}
    learner = make_learner(model, learner=config, optimizer=NO_CLIP)
    batch = random_batch(5, layout=GROUPS, masked=(1, 3))
    metrics = learner.update(grpo.separate_rows(batch) if separate else batch)
    return metrics, gradients(learner), flat(learner.state.params)


@pytest.mark.parametrize(
    ("separate", "rows"),
    [(False, 1), (True, 1), (True, 5), (True, 35)],
    ids=lambda value: {True: "separate", False: "groups"}.get(value) if isinstance(value, bool) else str(value),
)
def test_update_is_the_same_however_the_completions_are_laid_out_and_cut(model, expected, separate, rows):
    """Rows of a whole group against a row for each completion; micro-batches of one row, of some, of all."""
    metrics, found, params = grouped_update(model, rows=rows, separate=separate)
    assert metrics["completions"] == 35 and metrics["tokens"] == expected[0]["tokens"]
    for name, value in expected[0].items():
        assert metrics[name] == pytest.approx(value, rel=1e-6, abs=1e-8), name
    assert distance(found, expected[1]) < 1e-6
    assert distance(params, expected[2]) < 1e-6


def test_gradient_and_loss_are_those_of_float64(model, expected, tmp_path):
    """Hugging Face's model in float64 gives log-probabilities, `shared.grpo.objective` the loss; its finite differences
    go back through the model."""
    batch = grpo.separate_rows(random_batch(5, layout=GROUPS, masked=(1, 3)))
    config = make_learner(model).config
    network = Phi3ForCausalLM.from_pretrained(model, dtype=torch.float64, attn_implementation="eager")
    logprobs = hugging_face_logprobs(network, batch)
    policy = logprobs.detach().numpy()
    view = {
        name: grpo.completion_view(getattr(batch, name), batch.layout)
        for name in ("advantages", "ref_logprobs", "rollout_logprobs")
    }
    mask = grpo.completion_view(batch.completion_mask, batch.layout)

    def sums(values: np.ndarray) -> Sums:
        return grpo.objective(values, mask=mask, config=config.grpo, detached=policy, **view)

    divisor = grpo.denominator(sums(policy), config.grpo, GROUPS.completion)
    slope = np.zeros_like(policy)
    for place in zip(*np.nonzero(mask), strict=True):
        step = np.zeros_like(policy)
        step[place] = 1e-5
        slope[place] = (sums(policy + step).loss - sums(policy - step).loss) / 2e-5 / divisor
    logprobs.backward(torch.tensor(slope))
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(weight.grad)
    network.to(torch.float32).save_pretrained(tmp_path)
    learner = make_learner(model)
    reference = flat(load_params(tmp_path, learner.model, learner.shardings))
    norm = math.sqrt(sum(float((leaf.astype(np.float64) ** 2).sum()) for leaf in reference.values()))

    assert expected[0]["loss"] == pytest.approx(sums(policy).loss / divisor, rel=1e-5)
    assert expected[0]["kl"] == pytest.approx(sums(policy).kl / mask.sum(), rel=1e-5)
    assert expected[0]["grad_norm"] == pytest.approx(norm, rel=1e-6)
    assert distance(expected[1], reference) < 1e-5


def test_directional_derivatives_are_those_of_finite_differences(learner):
    batch = random_batch(8)
    view = {name: grpo.completion_view(getattr(batch, name), LAYOUT) for name in ("advantages", "ref_logprobs")}
    mask = grpo.completion_view(batch.completion_mask, LAYOUT)
    start = on_host(learner.state)
    base = grpo.completion_view(learner.logprobs(batch, "policy"), LAYOUT)
    learner.update(batch)
    slopes = gradients(learner)
    rng = np.random.default_rng(5)

    def loss(path: str, moved: np.ndarray) -> float:
        params = jax.tree_util.tree_map_with_path(
            lambda where, leaf: leaf + moved if jax.tree_util.keystr(where) == path else leaf, start.params
        )
        put_back(learner, start._replace(params=params))
        logprobs = grpo.completion_view(learner.logprobs(batch, "policy"), LAYOUT)
        sums = grpo.objective(logprobs, mask=mask, config=learner.config.grpo, detached=base, **view)
        return sums.loss / grpo.denominator(sums, learner.config.grpo, LAYOUT.completion)

    for path in ("['embed']['kernel']", "['layers']['k']['kernel']", "['layers']['post_norm']['scale']"):
        slope = slopes[path].astype(np.float64)
        # Half along the gradient, so that the difference stands out of float32's rounding.
        direction = slope / np.linalg.norm(slope) + 0.5 * unit(rng.normal(size=slope.shape))
        step = 0.02 * direction.astype(np.float32)
        found = loss(path, step) - loss(path, -step)
        assert found == pytest.approx(2 * float((slope * step).sum()), rel=5e-3), path


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values)


def longer_prompt(batch: GroupBatch, more: int) -> GroupBatch:
    """The same batch with `more` positions of padding after each prompt, garbage in them."""
    layout = dataclasses.replace(batch.layout, prompt=batch.layout.prompt + more)
    garbage = {"tokens": 7, "groups": -1}

    def widen(name: str, array: np.ndarray | None) -> np.ndarray | None:
        if array is None:
            return None
        between = np.full((array.shape[0], more), garbage.get(name, 0), array.dtype)
        return np.concatenate([array[:, : batch.layout.prompt], between, array[:, batch.layout.prompt :]], axis=1)

    names = [field.name for field in dataclasses.fields(batch) if field.name != "layout"]
    return dataclasses.replace(batch, layout=layout, **{name: widen(name, getattr(batch, name)) for name in names})


@pytest.mark.parametrize("more", [1, 17])
def test_logprobs_do_not_depend_on_the_padding_of_prompts(learner, more):
    batch = random_batch(8)
    expected = learner.logprobs(batch, "policy")[:, LAYOUT.prompt :]
    found = learner.logprobs(longer_prompt(batch, more), "policy")
    np.testing.assert_allclose(found[:, LAYOUT.prompt + more :], expected, rtol=0, atol=2e-6)
    assert not found[:, : LAYOUT.prompt + more].any()
    assert not expected[batch.completion_mask[:, LAYOUT.prompt :] == 0].any()


def test_update_does_not_depend_on_the_padding_of_prompts(learner, shared_learner):
    batch = random_batch(8)
    expected, slopes = learner.update(batch), gradients(learner)
    put_back(learner, shared_learner[1])
    found = learner.update(longer_prompt(batch, 17))
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6)
    assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-6)
    assert distance(gradients(learner), slopes) < 1e-6


def test_empty_rows_never_matter_wherever_they_are_and_whatever_they_hold(learner, shared_learner):
    five = random_batch(5)
    expected, slopes = learner.update(five), gradients(learner)
    put_back(learner, shared_learner[1])
    order = np.array([5, 0, 1, 6, 2, 7, 3, 4])
    batch = grpo.pad_rows(five, 8)
    names = [field.name for field in dataclasses.fields(batch) if field.name != "layout"]
    batch = dataclasses.replace(batch, **{n: v if (v := getattr(batch, n)) is None else v[order] for n in names})
    empty = batch.groups[:, 0] < 0
    for array, garbage in ((batch.tokens, 11), (batch.positions, 3), (batch.advantages, 9.0)):
        array[empty] = garbage
    found = learner.update(batch)
    assert found["completions"] == expected["completions"] == 10
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-8), name
    assert distance(gradients(learner), slopes) < 1e-6


# Ratios and the reference policy.


def test_a_token_that_the_embedding_lacks_is_named(learner):
    """A lookup would take another row in silence."""
    batch = random_batch(8)
    place = tuple(np.argwhere(batch.groups >= 0)[-1])
    for token in (VOCABULARY, -1):
        batch.tokens[place] = token
        for use in (learner.update, lambda batch: learner.logprobs(batch, "policy")):
            with pytest.raises(InputError, match=f"batch: token id {token} is beyond the model's embedding, which has"):
                use(batch)


def test_ratio_is_exactly_one_on_policy_and_the_reference_equals_the_policy_at_first(learner):
    batch = random_batch(8)
    batch = dataclasses.replace(batch, ref_logprobs=learner.logprobs(batch, "reference"))
    metrics = learner.update(batch)
    assert metrics["ratio"] == 1.0
    assert metrics["clip_fraction"] == 0.0
    assert 0 <= metrics["kl"] < 1e-10
    assert learner.update(batch)["ratio"] == 1.0
    assert learner.update(batch)["kl"] > 1e-4  # the policy has moved away


def test_old_logprobs_give_a_ratio_that_moves_from_the_second_inner_step_on(model):
    """And without KL no reference is kept: nothing to synchronise, nothing to save."""
    learner = make_learner(
        model,
        reference=False,
        learner={"micro_batch_rows": 8, "remat": "none"},
        grpo={"inner_steps": 2, "beta": 0.0, "loss": "dapo", "rollout_correction": "token"},
    )
    assert learner.state.reference is None
    assert len(jax.tree.leaves(learner.state)) == 3 * len(jax.tree.leaves(learner.state.params)) + 2
    batch = dataclasses.replace(random_batch(8), ref_logprobs=None)
    batch = dataclasses.replace(batch, old_logprobs=learner.logprobs(batch, "policy"))
    first, second = learner.update(batch), learner.update(batch)
    learner.sync_reference()
    assert learner.state.reference is None
    assert first["ratio"] == pytest.approx(1.0, abs=1e-6) and first["clip_fraction"] == 0.0
    assert abs(second["ratio"] - 1.0) > 1e-3 and second["clip_fraction"] > 0.0
    assert first["kl"] == second["kl"] == 0.0
    expected = grpo.objective(
        **{
            name: grpo.completion_view(array, LAYOUT)
            for name, array in {
                "logprobs": batch.old_logprobs,
                "advantages": batch.advantages,
                "mask": batch.completion_mask,
                "old_logprobs": batch.old_logprobs,
                "rollout_logprobs": batch.rollout_logprobs,
            }.items()
        },
        config=learner.config.grpo,
    )
    assert first["loss"] == pytest.approx(expected.loss / expected.tokens, rel=1e-5)
    assert first["rollout_correction"] == pytest.approx(expected.correction / expected.tokens, rel=1e-5)
    assert first["logprob_gap_max"] == pytest.approx(expected.gap_max, rel=1e-5)


def test_reference_is_a_tenth_old_and_nine_tenths_new_in_float32(learner):
    old = flat(learner.state.reference)
    learner.update(random_batch(8))
    new = flat(learner.state.params)
    learner.sync_reference()
    nine, one = np.float32(0.9), np.float32(1.0) - np.float32(0.9)
    for path, found in flat(learner.state.reference).items():
        assert found.dtype == np.float32
        assert not np.array_equal(new[path], old[path])
        # A fused multiply-add rounds once where NumPy rounds twice; no more than that.
        parts = np.abs(nine * new[path]) + np.abs(one * old[path])
        assert (np.abs(found - (nine * new[path] + one * old[path])) <= parts * np.finfo(np.float32).eps).all()
    kept = flat(learner.state.reference)
    learner.update(random_batch(8))
    assert all(np.array_equal(kept[path], leaf) for path, leaf in flat(learner.state.reference).items())


# What one step moves and compiles.


def test_update_compiles_once_and_moves_only_its_batch_and_scalars(learner, monkeypatch):
    """Every transfer is asked for. A CPU's guard does not see those to the host: they are counted, and looked for in
    the program."""
    learner.update(random_batch(8))
    learner.sync_reference()
    compiled = learner.compiled_updates()
    fetched: list[Any] = []
    device_get = jax.device_get
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(tree) or device_get(tree))
    for seed in range(3):
        with jax.transfer_guard("disallow"):
            learner.update(random_batch(8, seed=seed))
            learner.sync_reference()
    assert learner.compiled_updates() == compiled
    assert len(fetched) == 3
    assert all(leaf.size == 1 for leaf in jax.tree.leaves(fetched))
    text = learner.lower_update(LAYOUT, 8).compile().as_text()
    for word in ("callback", "outfeed", "infeed", " send(", " recv("):
        assert word not in text


def test_recomputed_layers_need_the_memory_of_about_one_layer():
    layers, tokens = 8, jax.ShapeDtypeStruct((4, 64), jnp.int32)
    config = DecoderConfig(vocab_size=VOCABULARY, **(MODEL | {"num_hidden_layers": layers, "intermediate_size": 1_024}))

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, None]:
        return q, None

    def temporary(remat: Remat) -> int:
        def loss(params: Any, tokens: jax.Array) -> jax.Array:
            return forward(params, config, tokens, tokens, attend, dtype=jnp.dtype("float32"), remat=remat)[0].sum()

        compiled = jax.jit(jax.grad(loss)).lower(abstract_params(config), tokens).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary("layer") < 2 / layers * temporary("none")


# Optimizer and schedule, on a loss whose gradient is known: it is made of two fixed trees, weighted by the batch.


@pytest.fixture(scope="module")
def trees(model):
    """Two random trees like the parameters, each of norm 1."""
    rng = np.random.default_rng(3)
    shapes = jax.tree.map(lambda leaf: leaf.shape, make_learner(model).state.params)
    found = []
    for _ in range(2):
        tree = jax.tree.map(lambda shape: rng.normal(size=shape), shapes, is_leaf=lambda node: isinstance(node, tuple))
        norm = math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(tree)))
        found.append(jax.tree.map(lambda leaf, norm=norm: (leaf / norm).astype(np.float32), tree))
    return found


@pytest.fixture(scope="module")
def shared_linear(model, trees):
    learner = make_learner(
        model, steps=20, reference=False, optimizer={"eps": 1e-8, "weight_decay": 0.1, "max_grad_norm": 1.0}
    )

    def micro_loss(params: Any, rows: dict[str, jax.Array], layout: GroupLayout) -> tuple[jax.Array, Any]:
        a, b = rows["advantages"][0, 0], rows["advantages"][0, 1]
        leaves = zip(*map(jax.tree.leaves, (params, *trees)), strict=True)
        # The update divides by the completions of the batch.
        value = layout.group * sum((leaf * (a * x + b * y)).sum() for leaf, x, y in leaves)
        one, none = jnp.float32(1), jnp.float32(0)
        sums = Sums(*[none] * len(Sums._fields))._replace(loss=value, completions=one, tokens=one)
        return value, (sums, {"entropy": none, "logprob": none})

    learner._micro_loss = micro_loss
    return learner, on_host(learner.state)


@pytest.fixture
def linear(shared_linear):
    """A learner as new whose `update(weights_batch(a, b))` has the gradient a first + b second."""

    def prepared(**optimizer: float):
        learner, state = shared_linear
        learner.optimizer = dataclasses.replace(learner.config.optimizer, **optimizer)
        put_back(learner, state)
        return learner

    return prepared


def weights_batch(a: float, b: float) -> GroupBatch:
    batch = random_batch(1)
    batch.advantages[0, :2] = a, b
    return batch


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8])
def test_twenty_updates_are_those_of_torch_adamw(linear, trees, scale):
    """Gradients of 0.5 to 2 x the limit, and elements from far above Adam's eps to far below it. PyTorch computes in
    float64; optax's bias correction, 1 - b2 ** step in float32, costs 1e-5 of the first updates."""
    learner = linear(warmup_ratio=0.1)
    start = jax.tree.leaves(on_host(learner.state.params))
    weights = [torch.nn.Parameter(torch.tensor(leaf, dtype=torch.float64)) for leaf in start]
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)
    rng = np.random.default_rng(4)
    for step in range(20):
        a, b = np.float32(scale * [0.5, 1.0, 2.0][step % 3] * unit(rng.normal(size=2)))
        slopes = [np.float64(a) * x + np.float64(b) * y for x, y in zip(*map(jax.tree.leaves, trees), strict=True)]
        norm = math.sqrt(sum(float((slope**2).sum()) for slope in slopes))
        metrics = learner.update(weights_batch(a, b))
        assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)  # before clipping
        assert metrics["learning_rate"] == learning_rate(step, learner.optimizer, 20)
        for weight, slope in zip(weights, slopes, strict=True):
            weight.grad = torch.tensor(slope / max(1.0, norm))
        optimizer.param_groups[0]["lr"] = metrics["learning_rate"]
        optimizer.step()
    for found, weight, before in zip(jax.tree.leaves(on_host(learner.state.params)), weights, start, strict=True):
        wanted = weight.detach().numpy()
        moved = np.linalg.norm(wanted - before)
        assert moved > 1e-3 * np.linalg.norm(before)
        assert np.linalg.norm(found - wanted) < 3e-5 * moved
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)


def test_masters_move_at_the_papers_learning_rate(linear):
    learner = linear(learning_rate=1e-6)
    before = flat(learner.state.params)
    learner.update(weights_batch(1.0, 0.0))
    for path, leaf in flat(learner.state.params).items():
        assert leaf.dtype == np.float32
        assert (leaf != before[path]).mean() > 0.9


def test_first_update_has_rate_zero_and_changes_no_weight(linear):
    learner = linear(warmup_ratio=0.1)
    before = flat(learner.state.params)
    assert learner.update(weights_batch(1.0, 0.0))["learning_rate"] == 0.0
    assert all(np.array_equal(leaf, before[path]) for path, leaf in flat(learner.state.params).items())
    assert all(leaf.any() for leaf in flat(learner.state.moments.mu).values())
    assert learner.update(weights_batch(1.0, 0.0))["learning_rate"] > 0.0
    assert not any(np.array_equal(leaf, before[path]) for path, leaf in flat(learner.state.params).items())
    assert learner.compiled_updates() == 1  # over all tests with this learner


@pytest.mark.parametrize(("steps", "ratio"), [(100, 0.1), (37, 0.1), (6_000, 0.1), (50, 0.0), (10, 0.55)])
def test_learning_rate_is_that_of_transformers_at_every_update(steps, ratio):
    config = OptimizerConfig(learning_rate=3e-4, warmup_ratio=ratio)
    warmup = math.ceil(ratio * steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    used = [factor(step) * 3e-4 for factor in schedule.lr_lambdas for step in range(steps + 1)]
    assert used[0] == optimizer.param_groups[0]["lr"]
    for step in {0, 1, warmup - 1, warmup, warmup + 1, steps // 2, steps - 1, steps} - {-1}:
        assert learning_rate(step, config, steps) == pytest.approx(used[step], rel=0, abs=1e-12), step
    assert learning_rate(0, config, steps) == (0.0 if ratio else 3e-4)
