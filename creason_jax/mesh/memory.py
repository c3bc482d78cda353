"""Memory of a device: how much is free, as the device reports it, and how much a program needs, as the compiler reports it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from creason_jax import distributed
from creason_jax.mesh import sharding
from shared.runs import memory as host
from shared.runs.memory import GIB, USED

MIB = 2**20
MOST = 2**31 - 1  # the largest number that `distributed.least` accepts
# The two forms of the TPU compiler's error for a program that needs more memory than a chip has: needed, then available.
REFUSED = re.compile(
    r"(?:Used ([\d.]+)([MGT]) of ([\d.]+)([MG]) hbm|temporaries \(([\d.]+)([MGT])\) exceeds available HBM \(([\d.]+)([MG])\))"
)


class TooLarge(Exception):
    """A program needs more memory than a device has. `needed` and `limit` are in bytes."""

    def __init__(self, needed: float, limit: float):
        super().__init__(f"{needed / GIB:.1f} of {limit / GIB:.1f} GiB")
        self.needed, self.limit = needed, limit


def free_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """Free bytes on the device that has the least, over all processes; None where devices do not report their memory.

    Every process must call it. CPU devices share the free memory of the machine or container equally.
    """
    if on_cpu(mesh):
        sharers = len(mesh.local_devices) * distributed.processes_here()
        return distributed.least(min(host.free_bytes(sharers) // MIB, MOST)) * MIB
    device_stats = [device.memory_stats() for device in mesh.local_devices]
    if not all(device_stats):
        return None
    free_mib = [int(USED * stats["bytes_limit"] - stats["bytes_in_use"]) // MIB for stats in device_stats]
    return distributed.least(min(free_mib)) * MIB


def on_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Whether the devices of the mesh are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"


def compiled(lowered: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Compile a lowered program. Raises TooLarge where it needs more memory than the device has."""
    try:
        return lowered.compile(compiler_options=dict(options) if options else None)
    except jax.errors.JaxRuntimeError as error:
        refused = REFUSED.search(str(error))
        if not refused:
            raise
        number, unit, limit, limit_unit = (group for group in refused.groups() if group is not None)
        raise TooLarge(_size(number, unit), _size(limit, limit_unit)) from error


def reserved(program: Any) -> int:
    """Bytes of device memory that a compiled program uses while it runs, its arguments included."""
    sizes = program.memory_analysis()
    code = sizes.generated_code_size_in_bytes
    return sizes.argument_size_in_bytes + own_outputs(sizes) + sizes.temp_size_in_bytes + code


def own_outputs(sizes: Any) -> int:
    """Bytes of a program's outputs that are not written over its donated arguments. `sizes`: its `memory_analysis()`."""
    return max(0, sizes.output_size_in_bytes - sizes.alias_size_in_bytes)


def bytes_on_device(tree: Any) -> int:
    """Bytes that a tree of arrays, or of shapes with shardings, takes in one device's memory."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not sharding.is_on_host(leaf.sharding)
    )


def fitting(most: int, free: float, needed: Callable[[int], float]) -> int:
    """A number n up to `most` with needed(n) <= free, close to the greatest such n; 0 if there is none.

    `needed` is slow and grows about linearly. The first step assumes that it is proportional to n; each later step follows
    the line through the last two points.
    """
    number, need = most, needed(most)
    slope = need / most
    while need > free:
        if number == 1:
            return 0
        fewer = max(1, min(number - 1, math.floor(number - (need - free) / slope)))
        fewer_need = needed(fewer)
        if fewer_need < need:
            slope = (need - fewer_need) / (number - fewer)
        number, need = fewer, fewer_need
    return number


def _size(number: str, unit: str) -> float:
    return float(number) * {"M": MIB, "G": GIB, "T": 1_024 * GIB}[unit]
