"""Find the slice and the mesh on which a run fits and is fastest: arithmetic ranks the candidates, compiling checks the best."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

from creason_jax.mesh import sharding
from creason_jax.mesh.chips import SHAPES, Chip, chip_of
from creason_jax.model import DecoderConfig
from creason_jax.plan import plan as planning
from creason_jax.plan.plan import Plan
from shared.config import JaxConfig, Remat, RunConfig
from shared.errors import InputError
from shared.grpo import GroupLayout
from shared.runs.memory import GIB

REMATS: tuple[Remat, ...] = ("layer", "dots", "none")
TRIED = 3  # candidates of a slice that are compiled before the search goes on to the next larger slice
LARGEST_RING = 32  # over more devices the TPU compiler makes an all-reduce of an all-gather: twice the bytes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A slice and a mesh on it, with estimates of memory and time."""

    topology: str
    jax: JaxConfig
    remat: Remat  # learner.remat
    bytes: float  # in the memory of a chip, at the fullest moment
    seconds: float  # of one update's products at the chip's peak, padded rows included


def search(
    config: RunConfig, model: DecoderConfig, name: str, *, say: Callable[[str], None] = lambda line: None
) -> Plan | None:
    """The plan of the best candidate that fits, or None.

    `name` is a slice, or a generation: then its slices are tried from the smallest, and the search ends at the first slice with
    a candidate that fits by the compiler's figures. `say` is called with lines on progress. Raises InputError for an unknown
    generation.
    """
    generation, _, only_shape = name.partition(":")
    chip = chip_of(name)
    for shape in (only_shape,) if only_shape else SHAPES[generation]:
        topology = f"{generation}:{shape}"
        cores = 2 if generation == "v4" else 1  # devices of a chip, as this compiler counts
        devices = cores * math.prod(int(n) for n in shape.split("x"))
        all_candidates = list(candidates(config, model, topology, devices, chip))
        # The estimate may be a little too high, so candidates up to 10 % above the memory are compiled too.
        likely = sorted((c for c in all_candidates if c.bytes < 1.1 * chip.hbm), key=lambda c: (c.seconds, c.bytes))
        least = min(all_candidates, key=lambda c: c.bytes, default=None)
        if not likely and least is not None:
            say(f"{topology}: {least.bytes / GIB:.0f} GiB a chip at least, of {chip.hbm / GIB:.0f}")
        for candidate in likely[:TRIED]:
            axes = candidate.jax
            say(f"{topology}: data {axes.mesh_data}, fsdp {axes.mesh_fsdp}, tensor {axes.mesh_tensor}, remat {candidate.remat}, "
                f"{config.learner.micro_batch_rows} rows, {axes.rollout_mesh_tensor} decode together; about "
                f"{candidate.bytes / GIB:.0f} GiB")  # fmt: skip
            learner = dataclasses.replace(config.learner, remat=candidate.remat)
            candidate_config = dataclasses.replace(config, learner=learner, jax=axes)
            try:
                # The update needs the most memory, so it is compiled first, alone: if it does not fit, the rest is not compiled.
                if planning.plan(candidate_config, model, topology, steps=("update",), say=say).fits:
                    full_plan = planning.plan(candidate_config, model, topology, say=say)
                    if full_plan.fits:
                        return full_plan
            except InputError as error:
                say(str(error))
    return None


def candidates(config: RunConfig, model: DecoderConfig, topology: str, devices: int, chip: Chip) -> Iterator[Candidate]:
    """Every mesh that divides the devices and the model, with each kind of remat in `REMATS`.

    remat = "offload" is left out: these estimates cannot say how long the copies to the host and back take.
    """
    layout = GroupLayout(
        prompt=config.rollout.max_prompt_tokens, group=config.grpo.group_size, completion=config.rollout.max_new_tokens
    )
    rows = config.grpo.questions_per_step
    tensors = sharding.tensor_ways(model, devices)
    # Decoding reads every weight for every token, so it splits the weights over as many devices as possible.
    decode_ways = max(tensors)
    for tensor in tensors:
        for fsdp in _divisors(devices // tensor):
            if model.hidden_size % fsdp or fsdp > LARGEST_RING:
                continue
            data = devices // tensor // fsdp
            width = min(-(-config.learner.micro_batch_rows // (data * fsdp)), -(-rows // (data * fsdp))) * data * fsdp
            axes = dataclasses.replace(
                config.jax,
                mesh_data=data,
                mesh_fsdp=fsdp,
                mesh_tensor=tensor,
                sequence_parallel=tensor > 1 and layout.length % tensor == 0,
                rollout_mesh_tensor=decode_ways,
            )
            for remat in REMATS:
                forward = planning.forward_flops(model, layout)
                recomputed = {"none": 0.0, "dots": planning.attention_flops(model, layout), "layer": forward}[remat]
                work = (3 * forward + recomputed) * -(-rows // width) * width
                update = _bytes(config, model, layout, axes, remat, width // (data * fsdp))
                needed = update + 2.0 * model.num_params / decode_ways
                seconds = work / devices / chip.flops
                yield Candidate(topology=topology, jax=axes, remat=remat, bytes=needed, seconds=seconds)


def _bytes(
    config: RunConfig, model: DecoderConfig, layout: GroupLayout, axes: JaxConfig, remat: Remat, rows: int
) -> float:
    """Of a chip during the update: state and gradients, and what the backward pass keeps."""
    tensor, tokens = axes.mesh_tensor, rows * layout.length
    copies = 3 + (config.grpo.beta > 0 and axes.reference_memory == "device")  # weights, gradients, new gradients
    moments = 2 * {"float32": 4.0, "bfloat16": 2.0}[axes.moments_dtype]
    state = (4.0 * copies + moments) * model.num_params / (tensor * axes.mesh_fsdp)
    layer = 2.0 * tokens * (6 * model.hidden_size + (5 * model.intermediate_size + 6 * model.hidden_size) / tensor)
    stream = 2.0 * tokens * model.hidden_size * model.num_hidden_layers / (tensor if axes.sequence_parallel else 1)
    heads = (model.num_attention_heads + 2 * model.num_key_value_heads) * model.head_dim
    products = 2.0 * tokens * (model.hidden_size + (2 * model.intermediate_size + heads) / tensor)
    activations = {
        "none": layer * model.num_hidden_layers,
        "dots": stream + layer + products * model.num_hidden_layers,
        "layer": stream + layer,
        "offload": layer,
    }[remat]
    head = 10.0 * model.hidden_size * model.vocab_size / tensor
    return state + activations + head


def _divisors(number: int) -> list[int]:
    return [way for way in range(1, number + 1) if number % way == 0]
