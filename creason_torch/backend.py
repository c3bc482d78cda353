"""What `shared.training` drives: builds the learner and the engine in every process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from creason_torch import plain, zero
from creason_torch.learner import Learner, check_supported
from creason_torch.model import stored_weights
from creason_torch.rollout import Engine, make_engine
from shared.backend import Completion
from shared.config import OptimizerConfig, RunConfig


class Backend:
    """See `shared.backend.Backend` for the contract."""

    name = "torch"
    checkpoints_in_buckets = False  # a checkpoint becomes whole by being renamed

    def __init__(self, config: RunConfig):
        check_supported(config.learner)
        if config.learner.compute_dtype == "float32":
            # By default a GPU may round the operands of a float32 product.
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        zero.start_processes()
        self.device = zero.device()
        self.process, self.processes = dist.get_rank(), dist.get_world_size()

    def barrier(self) -> None:
        """See `shared.backend.Backend`."""
        dist.barrier()

    def agreed(self, flag: bool) -> bool:
        """See `shared.backend.Backend`."""
        found = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def learner(
        self, config: RunConfig, model: Path, *, optimizer: OptimizerConfig, steps: int, reference: bool
    ) -> Learner:
        """See `shared.backend.Backend`."""
        return Learner(config, model, self.device, optimizer=optimizer, steps=steps, reference=reference)

    def engine(self, config: RunConfig, model: Path, *, stop_tokens: Sequence[int]) -> Engine:
        """See `shared.backend.Backend`."""
        return make_engine(config, model, stop_tokens=stop_tokens, device=self.device)

    def load(self, engine: Engine, model: Path) -> None:
        """See `shared.backend.Backend`."""
        engine.load(stored_weights(model))

    def plain_logprobs(
        self, engine: Engine, model: Path, prompts: Sequence[np.ndarray], completions: Sequence[Completion]
    ) -> list[np.ndarray]:
        """See `shared.backend.Backend`. Each process computes all of it by itself."""
        return plain.completion_logprobs(engine.config, model, self.device, prompts, completions)
