"""The mesh, and the slice, on which a run fits and is fastest: candidates by arithmetic, the best of them by compiling."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from creason_jax.mesh import sharding
from creason_jax.mesh.chips import SHAPES, Chip, chip_of
from creason_jax.model import DecoderConfig
from creason_jax.plan import plan as planning
from creason_jax.plan.plan import Plan
from shared.config import LearnerConfig, Remat, RunConfig
from shared.errors import InputError
from shared.grpo import GroupLayout
from shared.runs.memory import GIB

REMATS: tuple[Remat, ...] = ("layer", "dots", "none")
TRIED = 3  # candidates of a slice that are compiled before the next larger slice is looked at
LARGEST_RING = 32  # beyond so many devices the TPU compiler writes a gather as a sum, which moves twice as much


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A slice and a way to use it, with what arithmetic says of them."""

    topology: str
    learner: LearnerConfig
    decode_together: int  # rollout.mesh_tensor
    bytes: float  # in the memory of a chip, at the fullest moment
    seconds: float  # of one update's products at the chip's peak, padded rows included


def search(
    config: RunConfig, model: DecoderConfig, name: str, *, say: Callable[[str], None] = lambda line: None
) -> Plan | None:
    """The plan of the best candidate that fits, or None. `name` is a slice, or a generation whose slices are all tried,
    smallest first: the first slice with a candidate that the compiler accepts ends the search.

    Raises InputError for a generation that is not known.
    """
    generation, _, shape = name.partition(":")
    chip = chip_of(name)
    for each in (shape,) if shape else SHAPES[generation]:
        topology = f"{generation}:{each}"
        cores = 2 if generation == "v4" else 1  # devices of a chip, as this compiler counts
        devices = cores * math.prod(int(n) for n in each.split("x"))
        found = list(candidates(config, model, topology, devices, chip))
        # What arithmetic puts a little beyond the memory is left to the compiler to judge.
        likely = sorted((c for c in found if c.bytes < 1.1 * chip.hbm), key=lambda c: (c.seconds, c.bytes))
        least = min(found, key=lambda c: c.bytes, default=None)
        if not likely and least is not None:
            say(f"{topology}: {least.bytes / GIB:.0f} GiB a chip at least, of {chip.hbm / GIB:.0f}")
        for candidate in likely[:TRIED]:
            axes = candidate.learner
            say(f"{topology}: data {axes.mesh_data}, fsdp {axes.mesh_fsdp}, tensor {axes.mesh_tensor}, remat {axes.remat}, "
                f"{axes.micro_batch_rows} rows, {candidate.decode_together} decode together; about "
                f"{candidate.bytes / GIB:.0f} GiB")  # fmt: skip
            rollout = dataclasses.replace(config.rollout, mesh_tensor=candidate.decode_together)
            tried = dataclasses.replace(config, learner=axes, rollout=rollout)
            try:
                # The fullest step first: what it refuses needs no others.
                if planning.plan(tried, model, topology, steps=("update",), say=say).fits:
                    whole = planning.plan(tried, model, topology, say=say)
                    if whole.fits:
                        return whole
            except InputError as error:
                say(str(error))
    return None


def candidates(config: RunConfig, model: DecoderConfig, topology: str, devices: int, chip: Chip) -> Iterator[Candidate]:
    """Every mesh that divides the devices and the model, with all that the backward pass may keep on the chip.

    Nothing is offloaded: what the way to the host and back costs, arithmetic of the chip cannot say.
    """
    layout = GroupLayout(
        prompt=config.rollout.max_prompt_tokens, group=config.grpo.group_size, completion=config.rollout.max_new_tokens
    )
    rows = config.grpo.questions_per_step
    tensors = sharding.tensor_ways(model, devices)
    # Decoding reads every weight for every token, so the more devices share them the better.
    together = max(tensors)
    for tensor in tensors:
        for fsdp in _divisors(devices // tensor):
            if model.hidden_size % fsdp or fsdp > LARGEST_RING:
                continue
            data = devices // tensor // fsdp
            width = min(-(-config.learner.micro_batch_rows // (data * fsdp)), -(-rows // (data * fsdp))) * data * fsdp
            for remat in REMATS:
                axes = dataclasses.replace(
                    config.learner,
                    mesh_data=data,
                    mesh_fsdp=fsdp,
                    mesh_tensor=tensor,
                    remat=remat,
                    sequence_parallel=tensor > 1 and layout.length % tensor == 0,
                )
                forward = planning.forward_flops(model, layout)
                again = {"none": 0.0, "dots": planning.attention_flops(model, layout), "layer": forward}[remat]
                work = (3 * forward + again) * -(-rows // width) * width
                needed = _bytes(config, model, layout, axes, width // (data * fsdp)) + 2.0 * model.num_params / together
                seconds = work / devices / chip.flops
                yield Candidate(
                    topology=topology, learner=axes, decode_together=together, bytes=needed, seconds=seconds
                )


def _bytes(config: RunConfig, model: DecoderConfig, layout: GroupLayout, axes: LearnerConfig, rows: int) -> float:
    """Of a chip during the update: state and gradients, and what the backward pass keeps."""
    tensor, tokens = axes.mesh_tensor, rows * layout.length
    copies = 3 + (config.grpo.beta > 0 and axes.reference_memory == "device")  # weights, gradients, new gradients
    moments = 2 * {"float32": 4.0, "bfloat16": 2.0}[axes.moments_dtype]
    state = (4.0 * copies + moments) * model.num_params / (tensor * axes.mesh_fsdp)
    layer = 2.0 * tokens * (6 * model.hidden_size + (5 * model.intermediate_size + 6 * model.hidden_size) / tensor)
    stream = 2.0 * tokens * model.hidden_size * model.num_hidden_layers / (tensor if axes.sequence_parallel else 1)
    heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
    products = 2.0 * tokens * (model.hidden_size + (2 * model.intermediate_size + heads) / tensor)
    kept = {
        "none": layer * model.num_hidden_layers,
        "dots": stream + layer + products * model.num_hidden_layers,
        "layer": stream + layer,
        "offload": layer,
    }[axes.remat]
    head = 10.0 * model.hidden_size * model.vocab_size / tensor
    return state + kept + head


def _divisors(number: int) -> list[int]:
    return [way for way in range(1, number + 1) if number % way == 0]
