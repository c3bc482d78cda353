"""The Flax backend: GRPO on TPU pods (and GPUs, and CPUs) under `jax.jit` with named shardings."""

import importlib.metadata
import importlib.util
import os

from shared.runs import devices


def platforms() -> str:
    """What JAX shall start, for JAX_PLATFORMS; "" leaves the choice to JAX.

    Left to itself JAX also starts libtpu where that is installed, and libtpu prints pages of complaints where there is no TPU
    (it is installed for `launch.plan`). So without a TPU its name is left out.
    """
    if os.environ.get("JAX_PLATFORMS") or importlib.util.find_spec("libtpu") is None or devices.tpu_chips():
        return ""
    plugins = {entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")}
    if not plugins:
        return "cpu"
    if all("cuda" in name for name in plugins):
        return "cuda,cpu" if devices.has_nvidia_gpu() else "cpu"
    return ""  # another maker's accelerator: JAX knows its name, this file does not


if chosen := platforms():
    os.environ["JAX_PLATFORMS"] = chosen  # before JAX is imported; processes started from here do the same
