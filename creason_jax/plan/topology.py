"""The devices of TPU slices that are not connected, from the compiler in libtpu, to compile programs for them."""

from __future__ import annotations

import functools
import importlib.util
import os

import jax
from jax.experimental import topologies

from shared.errors import InputError

# What libtpu would ask the TPU VM that it expects to run on. These values do not limit the topologies that it compiles for.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile at once: none of them opens a device
}
EXAMPLES = "v4:4x4x4, v5e:16x16, v5p:4x4x4, v6e:8x8"


def installed() -> bool:
    """Whether libtpu, and so the TPU compiler, is installed."""
    return importlib.util.find_spec("libtpu") is not None


@functools.cache
def devices(name: str) -> tuple[jax.Device, ...]:
    """The devices of a slice such as `v5p:4x4x4`: a TPU generation, and the chips along each axis of its torus.

    Raises InputError where libtpu is not installed or does not know the slice.
    """
    if not installed():
        raise InputError("compiling for a TPU needs libtpu: `pip install libtpu`, with the version in constraints.txt")
    kind, colon, shape = name.partition(":")
    if not (colon and kind and all(part.isdigit() and int(part) > 0 for part in shape.split("x"))):
        raise InputError(f"topology {name!r} is not GENERATION:SHAPE; examples: {EXAMPLES}")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        return tuple(topologies.get_topology_desc(name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"topology {name!r}: the TPU compiler knows no such slice ({_first_line(error)}); "
                         f"examples: {EXAMPLES}") from None  # fmt: skip


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
