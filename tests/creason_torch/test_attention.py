from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.llama.modeling_llama import eager_attention_forward

from creason_torch.model import attention
from creason_torch.model.attention import flex_group_attention, group_attention
from shared.errors import InputError
from shared.grpo import GroupBatch, GroupLayout, completion_view, pad_rows, separate_rows
from shared.policy.families import FAMILIES
from tests.support.attending import Shape, random_groups
from tests.support.families import tiny_network
from tests.support.groups import random_batch
from tests.support.recorded import Recorded

SIZE = 16  # of a head

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")]


SHAPES = [
    Shape(shared=1, kv_heads=2, rows=2, layout=GroupLayout(prompt=6, group=2, completion=4)),
    Shape(shared=3, kv_heads=2, rows=2, layout=GroupLayout(prompt=3, group=3, completion=5)),
    Shape(shared=4, kv_heads=1, rows=3, layout=GroupLayout(prompt=5, group=1, completion=3)),
    Shape(shared=2, kv_heads=3, rows=1, layout=GroupLayout(prompt=1, group=7, completion=1)),
]
PROMPT_ONLY = Shape(shared=2, kv_heads=3, rows=2, layout=GroupLayout(prompt=7, group=0, completion=0))


@pytest.fixture
def flex_gradients_on_a_cpu(monkeypatch):
    """PyTorch refuses them there, though the uncompiled form computes them."""
    monkeypatch.setattr(torch_flex, "_validate_device", lambda query, key, value: None)


def random_tensors(shape: Shape, seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """q, k, v `[B, heads, T, N]` and a cotangent of the output `[B, T, H, N]`."""
    rng = np.random.default_rng(seed)
    heads, time = shape.kv_heads * shape.shared, shape.layout.length
    sizes = [(shape.rows, count, time, SIZE) for count in (heads, shape.kv_heads, shape.kv_heads)]
    return [torch.tensor(rng.normal(size=size), dtype=dtype) for size in (*sizes, (shape.rows, time, heads, SIZE))]


def separated(values: torch.Tensor, layout: GroupLayout, axis: int) -> torch.Tensor:
    """Rows of groups as `separate_rows` makes them: a row for each completion, its prompt repeated."""
    values = values.movedim(axis, 1)
    prompt = values[:, : layout.prompt].repeat_interleave(max(1, layout.group), dim=0)
    if layout.group == 0:
        return prompt.movedim(1, axis)
    own = values[:, layout.prompt :].unflatten(1, (layout.group, layout.completion)).flatten(0, 1)
    return torch.cat([prompt, own], dim=1).movedim(1, axis)


def by_separate_rows(q, k, v, valid, layout) -> torch.Tensor:
    """Hugging Face's own eager attention under the ordinary causal mask; `[B * G, P + C, H, N]`."""
    q, k, v, visible = rows_and_mask(q, k, v, valid, layout)
    mask = torch.zeros(visible.shape, dtype=q.dtype).masked_fill(~visible, torch.finfo(q.dtype).min)
    module = SimpleNamespace(num_key_value_groups=q.shape[1] // k.shape[1], training=False)
    return eager_attention_forward(module, q, k, v, mask, scaling=SIZE**-0.5)[0]


def by_separate_rows_in_float64(q, k, v, valid, layout) -> torch.Tensor:
    """The same by PyTorch: Hugging Face's softmax is float32 whatever it is given."""
    q, k, v, visible = rows_and_mask(q, k, v, valid, layout)
    return scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True).transpose(1, 2)


def rows_and_mask(q, k, v, valid, layout) -> tuple[torch.Tensor, ...]:
    q, k, v = (separated(each, layout, 2) for each in (q, k, v))
    time = q.shape[2]
    causal = torch.ones(time, time, dtype=torch.bool).tril()
    return q, k, v, causal & separated(valid, layout, 1)[:, None, None]


def value_and_gradients(attend: Any, q, k, v, cotangent, valid, layout) -> list[torch.Tensor]:
    """The output as separate rows, and the gradients of q, k, v; nothing is asked of padding."""
    inputs = [each.clone().requires_grad_() for each in (q, k, v)]
    out = attend(*inputs, valid, layout)
    if out.shape == cotangent.shape:
        out = separated(out, layout, 1)
    # A prompt stands in each of its group's rows.
    share = torch.ones(layout.length)
    share[: layout.prompt] /= max(1, layout.group)
    wanted = separated(cotangent * share[:, None, None].to(cotangent) * valid[..., None, None], layout, 1)
    found = torch.where(separated(valid, layout, 1)[..., None, None], out, 0)
    return [found.detach(), *torch.autograd.grad(out, inputs, wanted)]


@st.composite
def cases(draw):
    shape = draw(st.sampled_from(SHAPES))
    prompts = draw(st.lists(st.integers(1, shape.layout.prompt), min_size=shape.rows, max_size=shape.rows))
    one_row = st.lists(
        st.integers(0, shape.layout.completion), min_size=shape.layout.group, max_size=shape.layout.group
    )
    lengths = draw(st.lists(one_row, min_size=shape.rows, max_size=shape.rows))
    return shape, torch.tensor(random_groups(shape, prompts, lengths).groups >= 0), draw(st.integers(0, 2**16))


@pytest.mark.parametrize(
    ("reference", "dtype", "bound"),
    [(by_separate_rows, torch.float32, 1e-6), (by_separate_rows_in_float64, torch.float64, 1e-14)],
)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(case=cases())
def test_values_and_gradients_equal_those_of_separate_rows(reference, dtype, bound, case):
    shape, valid, seed = case
    q, k, v, cotangent = random_tensors(shape, seed, dtype)
    # Keys and values of padding are garbage: none of it may reach a result.
    k, v = (torch.where(valid[:, None, :, None], each, 1e3) for each in (k, v))
    arguments = q, k, v, cotangent, valid, shape.layout
    found, expected = (value_and_gradients(attend, *arguments) for attend in (group_attention, reference))
    for name, ours, theirs in zip(("out", "q", "k", "v"), found, expected, strict=True):
        assert ours.dtype == dtype and ours.shape == theirs.shape
        largest = max(1.0, float(theirs.abs().max()))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound * largest, err_msg=name)


def some_padding(shape: Shape) -> torch.Tensor:
    """Prompts and completions of unequal length, the last row empty where there are several."""
    layout, rng = shape.layout, np.random.default_rng(3)
    lengths = rng.integers(0, layout.completion + 1, (shape.rows, layout.group))
    groups = random_groups(shape, list(rng.integers(1, layout.prompt + 1, shape.rows)), lengths.tolist()).groups
    if shape.rows > 1:
        groups[-1] = -1
    return torch.tensor(groups >= 0)


@pytest.mark.parametrize("shape", SHAPES)
def test_flex_attention_equals_the_plain_form(shape, flex_gradients_on_a_cpu):
    arguments = *random_tensors(shape, 1), some_padding(shape), shape.layout
    plain = value_and_gradients(group_attention, *arguments)
    flex = value_and_gradients(flex_group_attention, *arguments)
    for name, ours, reference in zip(("out", "q", "k", "v"), flex, plain, strict=True):
        assert ours.isfinite().all()
        np.testing.assert_allclose(ours, reference, rtol=0, atol=2e-6, err_msg=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_flex_attention_on_a_gpu_equals_the_plain_form(shape):
    q, k, v, cotangent = random_tensors(shape, 1)
    plain = value_and_gradients(group_attention, q, k, v, cotangent, some_padding(shape), shape.layout)

    def on_gpu(q, k, v, valid, layout):
        return flex_group_attention(q.cuda(), k.cuda(), v.cuda(), valid.cuda(), layout).cpu()

    flex = value_and_gradients(on_gpu, q, k, v, cotangent, some_padding(shape), shape.layout)
    for name, ours, reference in zip(("out", "q", "k", "v"), flex, plain, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=5e-3, err_msg=name)


@pytest.mark.parametrize("attend", [group_attention, flex_group_attention])
def test_rows_without_completions_are_plain_causal_attention(attend):
    shape = PROMPT_ONLY
    q, k, v, _ = random_tensors(shape, 2)
    valid = torch.arange(7) < torch.tensor([[7], [4]])
    with torch.no_grad():
        found, expected = attend(q, k, v, valid, shape.layout), by_separate_rows(q, k, v, valid, shape.layout)
    np.testing.assert_allclose(found[valid], expected[valid], rtol=0, atol=1e-6)


@pytest.mark.parametrize("attend", [group_attention, flex_group_attention])
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_rows_of_padding_are_finite_and_reach_no_gradient(attend, shape, flex_gradients_on_a_cpu):
    """A row without any token, as fills the last micro-batch, beside whole rows."""
    q, k, v, cotangent = random_tensors(shape, 3)
    valid = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool)
    valid[-1] = False
    found = value_and_gradients(attend, q, k, v, cotangent, valid, shape.layout)
    for gradient in found[1:]:
        assert not gradient[-1].any() and gradient.isfinite().all() and gradient[:-1].abs().max() > 0.1
    q[-1], k[-1], v[-1] = 7.0, -3.0, 1e20
    assert attend(q, k, v, valid, shape.layout).isfinite().all()
    again = value_and_gradients(attend, q, k, v, cotangent, valid, shape.layout)
    for ours, other in zip(found, again, strict=True):
        assert torch.equal(ours, other)


@pytest.mark.parametrize("attend", [group_attention, flex_group_attention])
def test_a_completion_is_unmoved_by_its_siblings_and_moved_by_its_prompt(attend):
    shape = SHAPES[1]
    layout = shape.layout
    valid = torch.tensor(random_groups(shape, [3, 2], [[5, 3, 0], [1, 4, 5]]).groups >= 0)
    q, k, v, _ = random_tensors(shape, 5)
    start, end = layout.prompt + layout.completion, layout.prompt + 2 * layout.completion  # the second completion

    def second(k, v):
        return attend(q, k, v, valid, layout)[:, start : start + 3]

    others = np.r_[layout.prompt : start, end : layout.length]
    changed = [each.clone() for each in (k, v)]
    for each in changed:
        each[:, :, others] += 2
    assert torch.equal(second(*changed), second(k, v))
    for each in changed:
        each[:, :, 0] += 2
    assert (second(*changed) - second(k, v)).abs().amax(dim=(0, 2, 3)).min() > 1e-3


def test_the_mask_of_flex_attention_is_made_once_for_all_layers():
    valid = some_padding(SHAPES[0])
    mask = attention._block_mask(valid, SHAPES[0].layout)
    assert attention._block_mask(valid, SHAPES[0].layout) is mask
    assert attention._block_mask(valid.clone(), SHAPES[0].layout) is not mask
    shorter = GroupLayout(prompt=4, group=2, completion=5)
    assert attention._block_mask(valid, shorter) is not attention._block_mask(valid, SHAPES[0].layout)


def test_flex_attention_skips_blocks_that_nobody_sees():
    """Three completions of two blocks each: of its 49 blocks a row sees the causal ones over its prompt and itself."""
    layout = GroupLayout(prompt=128, group=3, completion=256)
    mask = attention._block_mask(torch.ones(1, layout.length, dtype=torch.bool), layout)
    assert int((mask.kv_num_blocks + mask.full_kv_num_blocks).sum()) == 1 + 3 * (2 + 3)


def test_no_tensor_is_quadratic_in_the_row():
    shape = Shape(shared=2, kv_heads=2, rows=1, layout=GroupLayout(prompt=61, group=6, completion=23))
    layout, heads = shape.layout, 4
    valid = torch.ones(1, layout.length, dtype=torch.bool)
    with Recorded() as recorded:
        value_and_gradients(group_attention, *random_tensors(shape, 0), valid, layout)
    over_prompt = heads * layout.group * layout.completion * layout.prompt
    assert recorded.largest() == max(over_prompt, heads * layout.prompt**2) < heads * layout.length**2


def test_bfloat16_keeps_scores_in_float32():
    """Scores near 300, where bfloat16 numbers lie 2 apart, still tell two keys apart whose scores differ by 0.35."""
    layout = GroupLayout(prompt=2, group=1, completion=1)
    q = torch.full((1, 1, 3, 8), 16, dtype=torch.bfloat16)
    k = torch.zeros(1, 1, 3, 8, dtype=torch.bfloat16)
    k[0, 0, :2], k[0, 0, 1, 0] = 6.5, 6.4375
    v = torch.zeros(1, 1, 3, 8, dtype=torch.bfloat16)
    v[0, 0, 0] = 1.0
    out = group_attention(q, k, v, torch.ones(1, 3, dtype=torch.bool), layout)
    assert out.dtype == torch.bfloat16
    gap = 16 * 0.0625 * 8**-0.5
    np.testing.assert_allclose(out[0, 1:, 0].float(), 1 / (1 + np.exp(-gap)), rtol=5e-3)


def test_the_scale_of_the_network_is_used():
    shape = SHAPES[0]
    q, k, v, _ = random_tensors(shape, 6)
    valid = some_padding(shape)
    for attend in (group_attention, flex_group_attention):
        usual = attend(q, k, v, valid, shape.layout)
        np.testing.assert_allclose(attend(q / 4, k, v, valid, shape.layout, scale=1.0), usual, rtol=0, atol=1e-6)


def grouped_states(network: Any, batch: GroupBatch) -> torch.Tensor:
    return network.model(
        input_ids=torch.tensor(batch.tokens),
        position_ids=torch.tensor(batch.positions),
        use_cache=False,
        group_layout=batch.layout,
        valid=torch.tensor(batch.groups >= 0),
    ).last_hidden_state


def separate_states(network: Any, batch: GroupBatch) -> torch.Tensor:
    """Hugging Face's eager attention over the same completions, each after its own copy of the prompt."""
    rows = separate_rows(batch)
    return network.model(
        input_ids=torch.tensor(rows.tokens),
        attention_mask=torch.tensor(rows.groups >= 0),
        position_ids=torch.tensor(rows.positions),
        use_cache=False,
    ).last_hidden_state


def gradients(network: Any, states: torch.Tensor, cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
    network.zero_grad()
    states.backward(cotangent)
    return {name: weight.grad.clone() for name, weight in network.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_hidden_states_and_gradients_of_separate_rows(family, checkpointing):
    attention.register()
    batch = random_batch(3, seed=1)
    layout = batch.layout
    ours, theirs = tiny_network(family, attention=attention.NAME), tiny_network(family)
    ours.train()
    if checkpointing:
        ours.gradient_checkpointing_enable()
    found, expected = grouped_states(ours, batch), separate_states(theirs, batch)

    counted = torch.tensor(batch.completion_mask)
    own = found[:, layout.prompt :].reshape(3 * layout.group, layout.completion, -1)
    there = torch.tensor(completion_view(batch.groups, layout) >= 0)
    np.testing.assert_allclose(own[there].detach(), expected[:, layout.prompt :][there].detach(), rtol=0, atol=5e-6)
    prompt = torch.tensor(batch.groups[:, : layout.prompt] >= 0)
    first_copy = expected[:: layout.group, : layout.prompt]
    np.testing.assert_allclose(
        found[:, : layout.prompt][prompt].detach(), first_copy[prompt].detach(), rtol=0, atol=5e-6
    )

    cotangent = torch.randn(found.shape, generator=torch.Generator().manual_seed(2)) * counted[..., None]
    ours_gradients = gradients(ours, found, cotangent)
    expected_gradients = gradients(theirs, expected, separated(cotangent, layout, 1))
    assert ours_gradients.keys() == expected_gradients.keys() and len(ours_gradients) > 10
    for name, reference in expected_gradients.items():
        assert (ours_gradients[name] - reference).norm() < 1e-5 * reference.norm(), name


def test_a_network_called_on_flex_attention_gives_the_same(monkeypatch):
    attention.register()
    batch = random_batch(2, seed=3)
    network = tiny_network("llama", attention=attention.NAME).eval()
    with torch.no_grad():
        plain = grouped_states(network, batch)
        monkeypatch.setattr(attention, "group_attention", flex_group_attention)
        flex = grouped_states(network, batch)
    there = torch.tensor(batch.groups >= 0)
    np.testing.assert_allclose(flex[there], plain[there], rtol=0, atol=5e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_empty_rows_reach_no_gradient_of_a_network(family):
    attention.register()
    network = tiny_network(family, attention=attention.NAME).train()
    batch = random_batch(2, seed=4)
    padded = pad_rows(batch, 3)
    padded.tokens[padded.groups < 0] = 77
    cotangent = torch.tensor(padded.completion_mask)[..., None]
    states, more = grouped_states(network, batch), grouped_states(network, padded)
    assert more.isfinite().all()
    expected = gradients(network, states, cotangent[:2].expand_as(states))
    for name, gradient in gradients(network, more, cotangent.expand_as(more)).items():
        assert gradient.isfinite().all(), name
        assert (gradient - expected[name]).norm() <= 1e-6 * expected[name].norm(), name


def test_what_is_not_computed_is_refused():
    attention.register()
    batch = random_batch(1)
    longest = batch.layout.prompt + batch.layout.completion
    with pytest.raises(InputError, match=f"sliding_window is {longest - 1} in config.json"):
        grouped_states(tiny_network("phi3", attention=attention.NAME, sliding_window=longest - 1), batch)
    grouped_states(tiny_network("phi3", attention=attention.NAME, sliding_window=longest), batch)
    network = tiny_network("qwen3", attention=attention.NAME, attention_dropout=0.1)
    grouped_states(network.eval(), batch)
    with pytest.raises(InputError, match=r"attention_dropout is 0.1 in config.json"):
        grouped_states(network.train(), batch)
