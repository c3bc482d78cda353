"""The Flax backend: GRPO on TPU pods (and GPUs, and CPUs) under `jax.jit` with named shardings."""

import importlib.metadata
import importlib.util
import os

from shared.runs import devices


def platforms() -> str:
    """The platforms that JAX should start, as a value for JAX_PLATFORMS; "" leaves the choice to JAX.

    By itself JAX also starts libtpu where it is installed (`launch.plan` needs it), and libtpu prints pages of errors on a
    machine without a TPU. So on such a machine the value does not name it.
    """
    if os.environ.get("JAX_PLATFORMS") or importlib.util.find_spec("libtpu") is None or devices.tpu_chips():
        return ""
    plugins = {entry.name for entry in importlib.metadata.entry_points(group="jax_plugins")}
    if not plugins:
        return "cpu"
    if all("cuda" in name for name in plugins):
        return "cuda,cpu" if devices.has_nvidia_gpu() else "cpu"
    return ""  # an accelerator of another vendor: JAX knows its platform, this file does not


if chosen := platforms():
    os.environ["JAX_PLATFORMS"] = chosen  # before JAX is imported; processes started from here do the same
