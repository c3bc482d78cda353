"""What a device's memory holds: asked of the device, and of the compiler, which says what a program will need."""

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
MOST = 2**31 - 1  # what `distributed.least` takes
# How the TPU compiler says that a program needs more memory than a chip has, in its two forms: needed, then there.
REFUSED = re.compile(
    r"(?:Used ([\d.]+)([MGT]) of ([\d.]+)([MG]) hbm|temporaries \(([\d.]+)([MGT])\) exceeds available HBM \(([\d.]+)([MG])\))"
)


class TooLarge(Exception):
    """A program that needs more memory than a device has; bytes."""

    def __init__(self, needed: float, limit: float):
        super().__init__(f"{needed / GIB:.1f} of {limit / GIB:.1f} GiB")
        self.needed, self.limit = needed, limit


def free_bytes(mesh: jax.sharding.Mesh) -> int | None:
    """What is free on the fullest device of all processes, which must all call this; None where devices do not say.

    CPU devices share what the machine, or the container, has left: each of them gets its part.
    """
    told = [device.memory_stats() for device in mesh.local_devices]
    if on_cpu(mesh):
        sharers = len(mesh.local_devices) * distributed.processes_here()
        return distributed.least(min(host.free_bytes(sharers) // MIB, MOST)) * MIB
    if not all(told):
        return None
    return distributed.least(min(int(USED * each["bytes_limit"] - each["bytes_in_use"]) // MIB for each in told)) * MIB


def on_cpu(mesh: jax.sharding.Mesh) -> bool:
    """Whether the devices are a machine's processors."""
    return mesh.devices.flat[0].platform == "cpu"


def compiled(lowered: Any, options: Mapping[str, Any] | None = None) -> Any:
    """The compiled program. Raises TooLarge where the compiler refuses it for its memory."""
    try:
        return lowered.compile(compiler_options=dict(options) if options else None)
    except jax.errors.JaxRuntimeError as error:
        refused = REFUSED.search(str(error))
        if not refused:
            raise
        number, unit, limit, limit_unit = (group for group in refused.groups() if group is not None)
        raise TooLarge(_size(number, unit), _size(limit, limit_unit)) from error


def reserved(program: Any) -> int:
    """Bytes that a compiled program takes on a device while it runs, arguments included."""
    sizes = program.memory_analysis()
    code = sizes.generated_code_size_in_bytes
    return sizes.argument_size_in_bytes + own_outputs(sizes) + sizes.temp_size_in_bytes + code


def own_outputs(sizes: Any) -> int:
    """Of a program's sizes the bytes of outputs that are not written over arguments."""
    return max(0, sizes.output_size_in_bytes - sizes.alias_size_in_bytes)


def bytes_on_device(tree: Any) -> int:
    """Of a tree of arrays, or of shapes with shardings, in one device's memory."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
        if not sharding.is_on_host(leaf.sharding)
    )


def fitting(most: int, free: float, needed: Callable[[int], float]) -> int:
    """The number up to `most` for which no more than `free` is needed, close to the greatest; 0 where one is too many.

    `needed` is slow to ask and grows about linearly: first as if all of it grew, then along the line through the last two.
    """
    number, need = most, needed(most)
    slope = need / most
    while need > free:
        if number == 1:
            return 0
        fewer = max(1, min(number - 1, math.floor(number - (need - free) / slope)))
        less = needed(fewer)
        if less < need:
            slope = (need - less) / (number - fewer)
        number, need = fewer, less
    return number


def _size(number: str, unit: str) -> float:
    return float(number) * {"M": MIB, "G": GIB, "T": 1_024 * GIB}[unit]
