"""What `shared.training` drives: builds the learner and the engine on one mesh."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from creason_jax import distributed, plain, sharding
from creason_jax.learner import Learner
from creason_jax.model import DecoderConfig, load_params
from creason_jax.rollout import Engine
from shared.backend import Completion
from shared.config import OptimizerConfig, RunConfig


class Backend:
    """See `shared.backend.Backend` for the contract."""

    name = "jax"
    checkpoints_in_buckets = True

    def __init__(self, config: RunConfig):
        if config.learner.compute_dtype == "float32":
            # On TPU and GPU the default precision of a float32 product is lower than float32.
            jax.config.update("jax_default_matmul_precision", "highest")
        self.mesh = sharding.make_mesh(config.learner)
        self.process, self.processes = jax.process_index(), jax.process_count()

    def barrier(self) -> None:
        """See `shared.backend.Backend`."""
        distributed.barrier()

    def agreed(self, flag: bool) -> bool:
        """See `shared.backend.Backend`."""
        return distributed.agreed(flag)

    def learner(
        self, config: RunConfig, model: Path, *, optimizer: OptimizerConfig, steps: int, reference: bool
    ) -> Learner:
        """See `shared.backend.Backend`."""
        return Learner(config, model, self.mesh, optimizer=optimizer, steps=steps, reference=reference)

    def engine(self, config: RunConfig, model: Path, *, stop_tokens: Sequence[int]) -> Engine:
        """See `shared.backend.Backend`."""
        shape = DecoderConfig.read(model, longest=config.longest_sequence)
        return Engine(config, shape, self.mesh, stop_tokens=stop_tokens)

    def load(self, engine: Engine, model: Path) -> None:
        """See `shared.backend.Backend`."""
        engine.load(load_params(model, engine.model, sharding.param_shardings(engine.model, self.mesh)))

    def plain_logprobs(
        self, engine: Engine, model: Path, prompts: Sequence[np.ndarray], completions: Sequence[Completion]
    ) -> list[np.ndarray]:
        """See `shared.backend.Backend`."""
        return plain.completion_logprobs(engine, model, prompts, completions)
