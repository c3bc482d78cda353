"""The backend that `shared.training.loop` calls: it builds the learner and the engine in every process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from creason_torch import zero
from creason_torch.learner.learner import Learner, check_supported
from creason_torch.model.decoder import stored_weights
from creason_torch.plan import forecast
from creason_torch.rollout import Engine, engine_kind, make_engine, plain
from shared.backend import Completion, Workload
from shared.config import OptimizerConfig, RunConfig, with_compute_dtype
from shared.runs.forecast import Need


class Backend:
    """See `shared.backend.Backend` for the contract."""

    name = "torch"
    checkpoints_in_buckets = False  # a checkpoint is completed by renaming a folder, which buckets cannot do

    def __init__(self, config: RunConfig):
        config = self.resolved(config)
        check_supported(config)
        if config.learner.compute_dtype == "float32":
            # By default a GPU may round the operands of a float32 product (to TF32).
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.set_float32_matmul_precision("highest")
        zero.start_processes()
        self.device = zero.device()
        self.device_kind = self.device.type
        self.process, self.processes = dist.get_rank(), dist.get_world_size()

    def resolved(self, config: RunConfig) -> RunConfig:
        """See `shared.backend.Backend`. ZeRO stage 0 keeps no float32 master weights, so its `auto` is float32."""
        fast = zero.fast_bfloat16() and config.torch.zero_stage > 0
        return with_compute_dtype(config, "bfloat16" if fast else "float32")

    def barrier(self) -> None:
        """See `shared.backend.Backend`."""
        dist.barrier()

    def any_process(self, flag: bool) -> bool:
        """See `shared.backend.Backend`."""
        flag_of_any = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(flag_of_any, op=dist.ReduceOp.MAX)
        return bool(flag_of_any)

    def same(self, value: bytes) -> bool:
        """See `shared.backend.Backend`."""
        own = torch.frombuffer(bytearray(value), dtype=torch.uint8).to(self.device)
        every = zero.from_all(own).reshape(self.processes, -1)
        return bool((every == every[0]).all())

    def need(self, config: RunConfig, model: Path, workload: Workload, *, trains: bool) -> Need:
        """See `shared.backend.Backend`."""
        return forecast.need(self.resolved(config), model, self.device, workload, trains=trains)

    def learner(
        self, config: RunConfig, model: Path, *, optimizer: OptimizerConfig, steps: int, reference: bool
    ) -> Learner:
        """See `shared.backend.Backend`."""
        config = self.resolved(config)
        return Learner(config, model, self.device, optimizer=optimizer, steps=steps, reference=reference)

    def engine(
        self, config: RunConfig, model: Path, *, stop_tokens: Sequence[int], workload: Workload | None = None
    ) -> Engine:
        """See `shared.backend.Backend`."""
        config = self.resolved(config)
        return make_engine(config, model, stop_tokens=stop_tokens, device=self.device, workload=workload)

    def engine_kind(self, config: RunConfig) -> str:
        """See `shared.backend.Backend`."""
        return engine_kind(config)

    def load(self, engine: Engine, model: Path) -> None:
        """See `shared.backend.Backend`."""
        engine.load(stored_weights(model))

    def plain_logprobs(
        self, engine: Engine, model: Path, prompts: Sequence[np.ndarray], completions: Sequence[Completion]
    ) -> list[np.ndarray]:
        """See `shared.backend.Backend`. Each process computes all completions by itself."""
        return plain.completion_logprobs(engine.config, model, self.device, prompts, completions)
