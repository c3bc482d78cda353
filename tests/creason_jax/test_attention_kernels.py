"""The kernels of each platform against a naive attention in float64, and compiled for a TPU."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from creason_jax.mesh import sharding
from creason_jax.model import group_attention
from creason_jax.model.attention import choose as choosing
from creason_jax.model.attention import chunked, flash, reference, splash
from creason_jax.plan import topology
from shared.config import JaxConfig
from shared.errors import InputError
from shared.grpo import GroupLayout
from tests.support.attending import Shape, full_mask, naive, random_arrays, random_case, random_groups

pytestmark = pytest.mark.slow

LAYOUT = GroupLayout(prompt=140, group=3, completion=100)  # no multiples of a block
PAPER = GroupLayout(prompt=9_000, group=7, completion=2_000)
KERNELS = {
    "chunked": chunked.group_attention,
    "flash": functools.partial(flash.group_attention, implementation="xla"),
    "splash": functools.partial(splash.group_attention, interpret=True),
}
needs_libtpu = pytest.mark.skipif(not topology.installed(), reason="libtpu, the TPU compiler, is not installed")


def value_and_gradients(attend, q, k, v, cotangent, valid, layout):
    @jax.jit
    def both(q, k, v, cotangent):
        out, back = jax.vjp(lambda q, k, v: attend(q, k, v, valid, layout), q, k, v)
        return out, *back(cotangent)

    return [np.asarray(each) for each in both(q, k, v, cotangent)]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(
    ("shape", "prompts", "lengths"),
    [
        (Shape(shared=3, kv_heads=2, rows=2, layout=LAYOUT), [140, 37], [[100, 1, 0], [20, 100, 64]]),
        (Shape(shared=1, kv_heads=2, rows=1, layout=GroupLayout(prompt=256, group=1, completion=128)), [1], [[128]]),
        (
            Shape(shared=2, kv_heads=1, rows=2, layout=GroupLayout(prompt=150, group=0, completion=0)),
            [150, 9],
            [[], []],
        ),
    ],
    ids=["groups of three with padding", "whole blocks", "prompts alone"],
)
def test_kernel_equals_a_naive_attention(kernel, shape, prompts, lengths):
    (q, k, v, cotangent), valid, mask = random_case(shape, prompts, lengths, seed=1)
    found = value_and_gradients(KERNELS[kernel], q, k, v, cotangent, valid, shape.layout)
    expected = naive(q, k, v, cotangent, mask)
    for name, ours, wanted in zip(("out", "q", "k", "v"), found, expected, strict=True):
        assert np.isfinite(ours).all()
        where = valid if name == "out" else np.ones_like(valid)
        np.testing.assert_allclose(ours[where], wanted[where], rtol=1e-5, atol=3e-5, err_msg=name)


@pytest.mark.parametrize("kernel", KERNELS)
def test_rows_without_any_token_are_finite_and_reach_no_gradient(kernel):
    shape = Shape(shared=2, kv_heads=1, rows=2, layout=LAYOUT)
    q, k, v, cotangent = random_arrays(shape, LAYOUT.length, seed=3)
    valid = np.ones(q.shape[:2], bool)
    valid[-1] = False
    cotangent[-1] = 0
    for found in value_and_gradients(KERNELS[kernel], q, k, v, cotangent, valid, LAYOUT)[1:]:
        assert np.isfinite(found).all() and not found[-1].any() and np.abs(found[0]).max() > 0.1


@pytest.mark.parametrize(("tensor", "kv_heads"), [(2, 2), (4, 2)])
def test_a_kernel_on_a_mesh_equals_one_on_a_device(monkeypatch, tensor, kv_heads):
    """(4, 2): key-value heads are repeated, so that each device holds those that its queries read."""
    monkeypatch.setitem(choosing.KERNELS, "splash", KERNELS["splash"])
    mesh = sharding.make_mesh(JaxConfig(mesh_data=2, mesh_fsdp=1, mesh_tensor=tensor), jax.devices()[: 2 * tensor])
    shape = Shape(
        shared=8 // kv_heads, kv_heads=kv_heads, rows=2, layout=GroupLayout(prompt=100, group=2, completion=60)
    )
    batch = random_groups(shape, [100, 37], [[60, 1], [20, 44]])
    valid = batch.groups >= 0
    arrays = random_arrays(shape, shape.layout.length, seed=4)
    arrays[-1] = np.where(valid[..., None, None], arrays[-1], 0)
    spread = functools.partial(group_attention, mesh=mesh, kernel="splash")
    found = value_and_gradients(spread, *arrays, valid, shape.layout)
    expected = value_and_gradients(reference.group_attention, *arrays, valid, shape.layout)
    for ours, wanted in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=3e-5)


def test_blocks_of_the_mask_equal_the_whole_mask():
    layout = GroupLayout(prompt=24, group=3, completion=16)
    mask = splash.GroupMask(layout)
    position = np.arange(layout.length)
    segments = np.maximum(0, (position - layout.prompt) // layout.completion + 1)
    whole = full_mask(np.zeros((1, layout.length), int), segments[None])[0]
    np.testing.assert_array_equal(mask[:, :], whole)
    for size in (4, 8):
        for row in range(0, layout.length, size):
            for column in range(0, layout.length, size):
                index = slice(row, row + size), slice(column, column + size)
                np.testing.assert_array_equal(mask[index], whole[index])


@pytest.mark.parametrize("kernel", ["chunked", "splash"])
def test_the_papers_row_needs_no_array_of_time_by_time(kernel):
    """Read from the program before compilation: nothing may rely on an optimisation."""
    batch, heads, kv_heads, size = 1, 4, 2, 16
    arrays = [
        jax.ShapeDtypeStruct((batch, PAPER.length, count, size), jnp.bfloat16) for count in (heads, kv_heads, kv_heads)
    ]
    valid = jnp.ones((batch, PAPER.length), bool)
    attend = {"chunked": chunked, "splash": splash}[kernel].group_attention

    def gradients(q, k, v):
        return jax.grad(lambda *qkv: attend(*qkv, valid, PAPER).astype(jnp.float32).sum(), argnums=(0, 1, 2))(q, k, v)

    linear = heads * 128 * 23_552  # the kernel keeps a row's log-sum-exps in 128 lanes; lengths in whole blocks
    assert largest_array(jax.make_jaxpr(gradients)(*arrays).jaxpr) <= linear < PAPER.prompt**2 / 4


def largest_array(jaxpr) -> int:
    """Elements of the largest array that a program makes, in whatever it calls."""
    sizes = [int(np.prod(out.aval.shape)) for eqn in jaxpr.eqns for out in eqn.outvars if hasattr(out.aval, "shape")]
    inner = [largest_array(each) for eqn in jaxpr.eqns for each in jax.core.jaxprs_in_params(eqn.params)]
    return max(sizes + inner, default=0)


@pytest.mark.parametrize(
    ("platform", "dtype", "size", "layout", "kernel", "reason"),
    [
        ("tpu", "bfloat16", 128, PAPER, "splash", "a TPU"),
        ("tpu", "float32", 64, PAPER, "splash", "a TPU"),
        ("tpu", "bfloat16", 128, LAYOUT, "reference", "short rows"),
        ("gpu", "bfloat16", 128, PAPER, "flash", "a GPU, bfloat16"),
        ("gpu", "float32", 128, PAPER, "chunked", "computes no float32"),
        ("gpu", "bfloat16", 192, PAPER, "chunked", "heads of a multiple of 8 up to 128, not 192"),
        ("gpu", "bfloat16", 128, GroupLayout(prompt=9_001, group=7, completion=2_000), "chunked", "even lengths"),
        ("cpu", "float32", 128, PAPER, "chunked", "no kernel for cpu"),
        ("cpu", "float32", 128, LAYOUT, "reference", "short rows"),
    ],
)
def test_the_choice_names_its_reason(platform, dtype, size, layout, kernel, reason):
    found, why = choosing.choose(platform, jnp.dtype(dtype), (1, layout.length, 40, size), layout)
    assert found == kernel
    assert reason in why


def test_the_choice_is_logged_once(caplog):
    layout = GroupLayout(prompt=11, group=2, completion=3)  # not used elsewhere
    shape = Shape(shared=1, kv_heads=1, rows=1, layout=layout)
    choosing._say.cache_clear()
    with caplog.at_level("INFO"):
        for _ in range(2):
            group_attention(*random_arrays(shape, layout.length, 0)[:3], jnp.ones((1, layout.length), bool), layout)
    assert [record.getMessage() for record in caplog.records if "attention:" in record.getMessage()] == [
        "attention: reference (short rows on cpu)"
    ]


# Compiled for a TPU that is not here.


@needs_libtpu
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "dtype", "precision"),
    [(8, 2, 128, "bfloat16", "default"), (20, 5, 64, "float32", "highest")],
)
def test_splash_compiles_for_a_tpu_forwards_and_backwards(heads, kv_heads, size, dtype, precision):
    """Four devices along tensor: each key-value head of the 2 twice, of the 5 four times."""
    slice_devices = topology.devices("v5e:2x2")
    mesh = sharding.make_mesh(JaxConfig(mesh_fsdp=1, mesh_tensor=4), list(slice_devices))
    layout = GroupLayout(prompt=700, group=2, completion=300)

    def array(count):
        split = NamedSharding(mesh, PartitionSpec(sharding.BATCH, None, "tensor" if count % 4 == 0 else None))
        return jax.ShapeDtypeStruct((1, layout.length, count, size), dtype, sharding=split)

    def gradients(q, k, v):
        valid = jnp.arange(layout.length)[None] % 290 < 250

        def total(q, k, v):
            return group_attention(q, k, v, valid, layout, mesh=mesh).astype(jnp.float32).sum()

        return jax.grad(total, argnums=(0, 1, 2))(q, k, v)

    with jax.default_matmul_precision(precision):
        traced = jax.jit(gradients).trace(array(heads), array(kv_heads), array(kv_heads))
        compiled = traced.lower(lowering_platforms=("tpu",)).compile()
    text = compiled.as_text()
    assert len(re.findall(r'custom_call_target="tpu_custom_call"', text)) == 3  # forward, dq, dkv
    rows = -(-700 // 256) * 256 + 2 * 512
    assert compiled.memory_analysis().temp_size_in_bytes < heads // 4 * rows * rows * 2


@needs_libtpu
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5p", "is not GENERATION:SHAPE; examples: v4"),
        ("v5p:4y4", "is not GENERATION:SHAPE"),
        ("v99:2x2", "the TPU compiler knows no such slice"),
        ("v6e:5x5", "the TPU compiler knows no such slice"),
    ],
)
def test_a_slice_that_does_not_exist_is_refused(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        topology.devices(name)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(topology, "installed", lambda: False)
    with pytest.raises(InputError, match="pip install libtpu"):
        topology.devices("v5p:2x2x2")
