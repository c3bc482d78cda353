"""An estimate of the device memory that a run needs, from shapes and shardings only: reads no weights, compiles nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from creason_jax.learner.learner import Learner
from creason_jax.mesh import memory, sharding
from creason_jax.model import DecoderConfig, abstract_params
from creason_jax.model.attention.choose import LARGE_SCORES
from creason_jax.rollout.engine import Engine
from shared.backend import Sampling, Workload
from shared.config import RunConfig
from shared.runs import forecast
from shared.runs.forecast import Decoder, Memory, Need

# On a CPU the same memory also holds the compiler and about five compiled programs: 0.4 to 0.5 GiB, measured.
COMPILER = 400 * 2**20
PLACES = {"gpu": "each GPU", "tpu": "each chip"}  # JAX's name of a platform -> words for its devices


def need(config: RunConfig, model: Path, mesh: jax.sharding.Mesh, workload: Workload, *, trains: bool) -> Need:
    """See `shared.backend.Backend`. Every process must call it."""
    shape = DecoderConfig.read(model, longest=config.longest_sequence)
    free = memory.free_bytes(mesh)
    return of_shape(config, shape, mesh, workload, trains=trains, free=free)


def of_shape(
    config: RunConfig,
    shape: DecoderConfig,
    mesh: jax.sharding.Mesh,
    workload: Workload,
    *,
    trains: bool,
    free: float | None,
) -> Need:
    """As `need`, for a model's shape and for devices that may be absent, with `free` bytes on each (None: unknown)."""
    engine = Engine(config, shape, mesh, stop_tokens=(0,), workload=workload)
    published = memory.bytes_on_device(engine.abstract_params())
    requests = [_greedy(config), *([_drawn(config)] if trains else [])]
    generating = [_rollout(engine, sampling) for sampling in requests]
    caches, least, temporaries = max(generating, key=lambda needs: needs[0] + needs[2])
    platform = mesh.devices.flat[0].platform
    compiler = COMPILER / len(mesh.local_devices) if memory.on_cpu(mesh) else 0
    common: dict[str, Any] = {
        "kv_cache": caches,
        "least_kv_cache": least,
        "free": free,
        "place": PLACES.get(platform, "this machine" if mesh.size == 1 else f"each of {mesh.size} devices"),
    }
    if not trains:
        shardings = sharding.param_shardings(shape, mesh)
        read = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_params(shape),
            shardings,
        )
        # While the weights are read, they exist in float32 too.
        loading = max(temporaries, memory.bytes_on_device(read) - caches)
        estimate = Memory(weights=published, rollout_temporaries=loading + compiler, **common)
        return Need(memory=estimate, parameters=shape.num_params, checkpoint_bytes=0)
    learner = Learner(
        config, shape, mesh, optimizer=config.optimizer, steps=config.steps, reference=config.grpo.beta > 0
    )
    state, layout = learner.state, forecast.layout_of(config, workload)
    params = memory.bytes_on_device(state.params)
    _, width = learner.micro_batches(forecast.rows_of(config))
    tensor = mesh.shape["tensor"]
    sizes = Decoder(shape.num_hidden_layers, shape.hidden_size, shape.intermediate_size // tensor,
                    -(-shape.num_attention_heads // tensor), shape.vocab_size // tensor)  # fmt: skip
    estimate = Memory(
        weights=params + published,
        gradients=2 * params,  # the sum over micro-batches, and the gradients of one micro-batch
        optimizer_state=memory.bytes_on_device(state.moments),
        reference=memory.bytes_on_device(state.reference),
        update_temporaries=compiler
        + forecast.update_temporaries(
            sizes, layout, width / sharding.batch_ways(mesh), item=jnp.dtype(config.learner.compute_dtype).itemsize,
            remat=config.learner.remat, chunk=config.learner.logprob_chunk, whole_scores=LARGE_SCORES if platform == "cpu" else 0,
        ),
        rollout_temporaries=temporaries + compiler,
        **common,
    )  # fmt: skip
    whole = sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(state))
    return Need(memory=estimate, parameters=shape.num_params, checkpoint_bytes=whole)


def _rollout(engine: Engine, sampling: Sampling) -> tuple[float, float, float]:
    """Bytes on a device: the caches of all its slots, the caches of one slot, and the temporary arrays of prefill."""
    caches = memory.bytes_on_device(engine.abstract_slots(sampling))
    share = engine.slots(sampling) // sharding.batch_ways(engine.mesh)
    width = engine.prefill_width(sampling) // sharding.batch_ways(engine.mesh)
    return caches, caches / share, engine.of_texts(width, engine.longest_prompt) / forecast.FACTOR


def _greedy(config: RunConfig) -> Sampling:
    """The sampling of an evaluation."""
    limit = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
    return Sampling(group_size=1, temperature=0.0, max_new_tokens=limit)


def _drawn(config: RunConfig) -> Sampling:
    """The sampling of a training step."""
    rollout = config.rollout
    return Sampling(
        group_size=config.grpo.group_size,
        temperature=rollout.temperature,
        max_new_tokens=rollout.max_new_tokens,
        top_k=rollout.top_k,
        top_p=rollout.top_p,
        min_p=rollout.min_p,
    )
