"""The mesh, and one table that says over which mesh axis each dimension of each parameter is split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from creason_jax.axes import AXES, BATCH, TENSOR
from creason_jax.model import DecoderConfig, abstract_params
from shared.config import JaxConfig
from shared.errors import InputError

# Logical names of a parameter's dimensions, by the last two parts of its path; stacked layers have "layers" in front.
LOGICAL: dict[str, tuple[str | None, ...]] = {
    "embed.kernel": ("vocab", "embed"),
    "head.kernel": ("embed", "vocab"),
    "q.kernel": ("embed", "heads", None),
    "k.kernel": ("embed", "kv_heads", None),
    "v.kernel": ("embed", "kv_heads", None),
    "o.kernel": ("heads", None, "embed"),
    "gate.kernel": ("embed", "ffn"),
    "up.kernel": ("embed", "ffn"),
    "down.kernel": ("ffn", "embed"),
    "q.bias": ("heads", None),
    "k.bias": ("kv_heads", None),
    "v.bias": ("kv_heads", None),
    "o.bias": (None,),
    "gate.bias": ("ffn",),
    "up.bias": ("ffn",),
    "down.bias": (None,),
    "q_norm.scale": (None,),
    "k_norm.scale": (None,),
    "input_norm.scale": (None,),
    "post_norm.scale": (None,),
    "attention_norm.scale": (None,),
    "mlp_norm.scale": (None,),
    "norm.scale": (None,),
}
LEARNER_RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "ffn": "tensor", "vocab": "tensor"}
# The engine does not split `embed`: an all-gather of all weights for every token would cost more than the memory that it saves.
ENGINE_RULES = {**LEARNER_RULES, "embed": None}


def make_mesh(config: JaxConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """The mesh `data, fsdp, tensor`. Raises InputError where the axes do not multiply to the number of devices."""
    devices = jax.devices() if devices is None else devices
    data_and_tensor = config.mesh_data * config.mesh_tensor
    fsdp = len(devices) // data_and_tensor if config.mesh_fsdp == -1 else config.mesh_fsdp
    if data_and_tensor * fsdp != len(devices):
        raise InputError(
            f"jax.mesh_data x mesh_fsdp x mesh_tensor = {config.mesh_data} x {config.mesh_fsdp} x "
            f"{config.mesh_tensor} does not make the {len(devices)} devices that are here; "
            f"{_remedy(config, len(devices))}"
        )
    shape = (config.mesh_data, fsdp, config.mesh_tensor)
    return Mesh(_arranged(devices, shape), AXES, axis_types=(AxisType.Auto,) * 3)


def engine_mesh(mesh: Mesh, tensor: int) -> Mesh:
    """The engine's mesh: the learner's devices in the same order, `tensor` of them along the tensor axis, the rest along data.

    0 gives the learner's own mesh. Decoding reads all weights for every token, so the engine often splits them over more
    devices than the learner does. Raises InputError where `tensor` does not divide the number of devices.
    """
    if not tensor:
        return mesh
    if mesh.size % tensor:
        raise InputError(
            f"jax.rollout_mesh_tensor = {tensor} does not divide the {mesh.size} devices; nearest that does: "
            f"{_nearest_divisor(mesh.size, tensor)}"
        )
    return Mesh(mesh.devices.reshape(-1, 1, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


def _arranged(devices: list[jax.Device], shape: tuple[int, int, int]) -> np.ndarray:
    """Devices `[data, fsdp, tensor]`. On a TPU neighbours along a mesh axis are neighbours on the torus. Only the data axis
    crosses slices, because the network between slices is slow."""
    if devices[0].platform != "tpu":
        return np.asarray(devices).reshape(shape)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, fsdp, tensor = shape
    if data % slices:
        raise InputError(
            f"jax.mesh_data = {data} is no multiple of the {slices} slices, which only `data` can span; "
            f"nearest that is: {max(slices, round(data / slices) * slices)}"
        )
    return mesh_utils.create_hybrid_device_mesh(
        (data // slices, fsdp, tensor), (slices, 1, 1), devices, allow_split_physical_axes=True
    )


def _remedy(config: JaxConfig, devices: int) -> str:
    """Which axis to change, and to what, so that the others can stay."""
    if devices % config.mesh_data:
        return f"nearest jax.mesh_data: {_nearest_divisor(devices, config.mesh_data)}"
    left = devices // config.mesh_data
    if left % config.mesh_tensor:
        return f"nearest jax.mesh_tensor: {_nearest_divisor(left, config.mesh_tensor)}"
    return f"set jax.mesh_fsdp = {left // config.mesh_tensor}, or -1 for whatever is left"


def _nearest_divisor(number: int, target: int) -> int:
    return min((way for way in range(1, number + 1) if number % way == 0), key=lambda way: abs(way - target))


def tensor_ways(model: DecoderConfig, devices: int) -> list[int]:
    """The sizes that the tensor axis may have for this model on so many devices, smallest first."""
    sizes = (devices, model.num_attention_heads, model.intermediate_size, model.vocab_size)
    return [way for way in range(1, devices + 1) if not any(size % way for size in sizes)]


def check_divisible(model: DecoderConfig, mesh: Mesh, prefix: str = "mesh") -> None:
    """Raise InputError where a dimension cannot be split evenly (KV heads are replicated instead). `prefix` begins the names
    of the fields that made this mesh: "mesh", or "rollout_mesh" for one that decodes."""
    for name, size, axis in (
        ("num_attention_heads", model.num_attention_heads, "tensor"),
        ("intermediate_size", model.intermediate_size, "tensor"),
        ("vocab_size", model.vocab_size, "tensor"),
        ("hidden_size", model.hidden_size, "fsdp"),
    ):
        ways = mesh.shape[axis]
        if size % ways:
            nearest = _nearest_divisor(size, ways)
            raise InputError(
                f"jax.{prefix}_{axis} = {ways} does not divide {name} = {size}; nearest that does: {nearest}"
            )


def param_shardings(model: DecoderConfig, mesh: Mesh, rules: Mapping[str, str | None] = LEARNER_RULES) -> Any:
    """A NamedSharding for every parameter."""

    def sharding_of(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        keys = [str(part.key) for part in path]
        logical = LOGICAL[".".join(keys[-2:])]
        axes = [rules.get(name) if name else None for name in logical]
        if "layers" in keys:
            axes = [None, *axes]
        divides = [axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in zip(axes, leaf.shape)]
        return NamedSharding(mesh, PartitionSpec(*divides))

    return jax.tree_util.tree_map_with_path(sharding_of, abstract_params(model))


def on_host(shardings: Any) -> Any:
    """The same shardings, but in host memory: the part of each device is in the memory of its own host."""
    return jax.tree.map(lambda sharding: sharding.with_memory_kind("pinned_host"), shardings)


def is_on_host(sharding: jax.sharding.Sharding) -> bool:
    """Whether arrays with this sharding take no memory of a device."""
    return sharding.memory_kind == "pinned_host"


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """The sharding of a batch: rows over data and fsdp, after `leading` unsplit dimensions (such as micro-batches)."""
    return NamedSharding(mesh, PartitionSpec(*([None] * leading), BATCH))


def stream_axis(mesh: Mesh, length: int, sequence_parallel: bool) -> str | None:
    """The mesh axis that splits hidden states `[batch, length, model]` along time between layers, or None.

    It is the tensor axis with `sequence_parallel`, if that axis divides `length`."""
    return TENSOR if sequence_parallel and length % mesh.shape[TENSOR] == 0 else None


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that is whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_ways(mesh: Mesh) -> int:
    """The number of parts into which the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
