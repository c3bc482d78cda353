"""Checksums of values: those of the stated formula, on every mesh and on both backends."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from creason_jax.checkpoint.checksums import checksums
from creason_jax.mesh import sharding
from creason_torch.checkpoint.from_jax import checksum
from shared.config import JaxConfig

# 1.0, 2.0 and -0.5 in float32 are 0x3f800000, 0x40000000 and 0xbf000000. With their places times 0x9e3779b1 they are
# 0x3f800000, 0xde3779b1 and 0x836ef362, which MurmurHash3's last steps make into
SCATTERED = (0xB1AAB1B6, 0x240BCFFF, 0x514E57E0)


def by_hand(values: np.ndarray) -> int:
    """The formula with Python's own whole numbers."""
    total = 0
    flat = values.reshape(-1)
    for place, bits in enumerate(flat.view({2: np.uint16, 4: np.uint32}[flat.dtype.itemsize]).tolist()):
        mixed = bits ^ (place * 0x9E3779B1 % 2**32)
        mixed = (mixed ^ (mixed >> 16)) * 0x85EBCA6B % 2**32
        mixed = (mixed ^ (mixed >> 13)) * 0xC2B2AE35 % 2**32
        total += mixed ^ (mixed >> 16)
    return total % 2**32


def test_three_values():
    array = np.array([1.0, 2.0, -0.5], np.float32)
    expected = sum(SCATTERED) % 2**32
    assert checksum(array) == by_hand(array) == expected
    assert checksums({"a": array}) == {"a": {"dtype": "float32", "sums": [expected]}}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5, 2), (2, 400, 500)], ids=str)
def test_the_formula_on_both_backends(shape, dtype):
    drawn = 1_000 * np.random.default_rng(0).normal(size=shape)
    array = np.asarray(jnp.asarray(drawn, jnp.float32).astype(dtype))
    if array.size < 1_000:
        assert checksum(array) == by_hand(array)
    assert checksums({"a": array})["a"] == {"dtype": dtype, "sums": [checksum(array)]}
    if array.ndim > 1:
        assert checksums({"layers": {"a": array}})["layers.a"]["sums"] == [checksum(layer) for layer in array]


@pytest.mark.parametrize("kind", ["device", "pinned_host"])
def test_a_mesh_and_the_hosts_memory_change_nothing(kind):
    array = jax.random.normal(jax.random.key(1), (4, 8, 16))
    mesh = sharding.make_mesh(JaxConfig(mesh_data=2, mesh_fsdp=2, mesh_tensor=2))
    for split in (PartitionSpec(), PartitionSpec(None, "fsdp", "tensor"), PartitionSpec(("data", "fsdp", "tensor"))):
        if split and split[0] is not None:
            split = PartitionSpec(None, split[0])
        placed = jax.device_put(array, NamedSharding(mesh, split, memory_kind=kind))
        assert checksums({"layers": {"a": placed}}) == checksums({"layers": {"a": array}})


def test_one_bit_anywhere_changes_it_and_so_do_two_signs_and_another_order():
    array = np.asarray(jax.random.normal(jax.random.key(2), (5, 4)))
    saved = checksum(array)
    for place in range(array.size):
        for bit in range(32):
            changed = array.reshape(-1).copy()
            changed.view(np.uint32)[place] ^= np.uint32(1 << bit)
            assert checksum(changed) != saved
        other = array.reshape(-1).copy()
        other[[place, place - 1]] *= -1
        assert checksum(other) != saved
    assert checksum(array[::-1]) != saved
