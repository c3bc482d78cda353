"""The backend that `shared.training.loop` calls: it builds the learner and the engine on one mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from creason_jax import distributed
from creason_jax.learner.learner import Learner
from creason_jax.mesh import memory, sharding
from creason_jax.model import DecoderConfig, abstract_params, load_params
from creason_jax.plan import forecast
from creason_jax.rollout import plain
from creason_jax.rollout.engine import Engine
from shared.backend import Completion, Workload
from shared.config import OptimizerConfig, RunConfig, with_compute_dtype
from shared.errors import InputError
from shared.runs import memory as host
from shared.runs.forecast import Need

DEVICE_KINDS = {"gpu": "cuda", "tpu": "tpu"}  # JAX's name of a platform -> `device_kind`


class Backend:
    """See `shared.backend.Backend` for the contract."""

    name = "jax"
    checkpoints_in_buckets = True

    def __init__(self, config: RunConfig, *, devices: list[jax.Device] | None = None):
        """On `devices`, all there are if None."""
        self.device_kind = DEVICE_KINDS.get(distributed.local_devices()[0].platform, "cpu")
        config = self.resolved(config)
        if config.learner.compute_dtype == "float32":
            # On TPU and GPU the default precision of a float32 product is lower than float32.
            jax.config.update("jax_default_matmul_precision", "highest")
        self.mesh = sharding.make_mesh(config.jax, devices)
        self.process, self.processes = jax.process_index(), jax.process_count()

    def resolved(self, config: RunConfig) -> RunConfig:
        """See `shared.backend.Backend`. On a CPU, XLA's matrix products are no faster in bfloat16 (docs/measurements.md)."""
        return with_compute_dtype(config, "bfloat16" if _fast_bfloat16(jax.local_devices()[0]) else "float32")

    def barrier(self) -> None:
        """See `shared.backend.Backend`."""
        distributed.barrier()

    def any_process(self, flag: bool) -> bool:
        """See `shared.backend.Backend`."""
        return distributed.any_process(flag)

    def same(self, value: bytes) -> bool:
        """See `shared.backend.Backend`."""
        return distributed.same(value)

    def need(self, config: RunConfig, model: Path, workload: Workload, *, trains: bool) -> Need:
        """See `shared.backend.Backend`."""
        return forecast.need(self.resolved(config), model, self.mesh, workload, trains=trains)

    def learner(
        self, config: RunConfig, model: Path, *, optimizer: OptimizerConfig, steps: int, reference: bool
    ) -> Learner:
        """See `shared.backend.Backend`."""
        config = self.resolved(config)
        return Learner(config, model, self.mesh, optimizer=optimizer, steps=steps, reference=reference)

    def engine(
        self, config: RunConfig, model: Path, *, stop_tokens: Sequence[int], workload: Workload | None = None
    ) -> Engine:
        """See `shared.backend.Backend`."""
        config = self.resolved(config)
        shape = DecoderConfig.read(model, longest=config.longest_sequence)
        return Engine(config, shape, self.mesh, stop_tokens=stop_tokens, workload=workload)

    def engine_kind(self, config: RunConfig) -> str:
        """See `shared.backend.Backend`."""
        return "jax"

    def load(self, engine: Engine, model: Path) -> None:
        """See `shared.backend.Backend`."""
        shardings = sharding.param_shardings(engine.model, self.mesh)
        shapes = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract_params(engine.model),
            shardings,
        )
        needed = memory.bytes_on_device(shapes) + memory.bytes_on_device(engine.abstract_params())
        free = memory.free_bytes(self.mesh)
        if free is not None and needed > free:
            raise InputError(
                f"{model}: loading its weights takes {host.text(needed)} of the {host.text(free)} that are free on a device; "
                "take a smaller model, a larger machine, more devices, or compute_dtype = 'bfloat16'"
            )
        engine.load(load_params(model, engine.model, shardings))

    def plain_logprobs(
        self, engine: Engine, model: Path, prompts: Sequence[np.ndarray], completions: Sequence[Completion]
    ) -> list[np.ndarray]:
        """See `shared.backend.Backend`."""
        return plain.completion_logprobs(engine, model, prompts, completions)


def _fast_bfloat16(device: jax.Device) -> bool:
    """Whether the device computes bfloat16 in hardware: a TPU, or an NVIDIA GPU of the Ampere generation or later."""
    capability = str(getattr(device, "compute_capability", "8.0"))
    return device.platform != "cpu" and (not capability[0].isdecimal() or float(capability) >= 8.0)
