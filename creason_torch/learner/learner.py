"""The learner: sharded weights, optimizer state and reference policy; the update with gradient accumulation; under DeepSpeed."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from creason_torch import zero
from creason_torch.checkpoint.checkpoint import Checkpoints
from creason_torch.learner import loss
from creason_torch.model.decoder import (
    Policy,
    build_network,
    check_tables,
    fix_rotation,
    load_weights,
    read_config,
    save_params,
)
from creason_torch.rollout import readback
from shared import grpo
from shared.backend import Probe, check_tokens, scoring_temperature
from shared.config import OptimizerConfig, RunConfig
from shared.grpo import (
    ARRAYS,
    OPTIONAL_ARRAYS,
    GroupBatch,
    Sums,
    completion_view,
    from_completion_view,
    metrics,
    pad_rows,
)
from shared.grpo.schedule import learning_rate
from shared.options.checks import check
from shared.policy import weight_files
from shared.storage import files

# What this backend knows of the options for memory.
KNOWN = {
    "learner.remat": ("none", "layer"),
    "jax.moments_dtype": ("float32",),
    "jax.reference_memory": ("device",),
}


def check_supported(config: RunConfig) -> None:
    """Raise InputError for an option of the learner that only the JAX backend has."""
    for name, known in KNOWN.items():
        value, remedy = operator.attrgetter(name)(config), " or ".join(map(repr, known))
        check(value in known, name, value, f"only the JAX backend does that; set {remedy}")


class Learner:
    """Twin of the JAX learner; see `shared.backend.Learner` for the contract."""

    def __init__(
        self,
        config: RunConfig,
        model: Path,
        device: torch.device,
        *,
        optimizer: OptimizerConfig,
        steps: int,
        reference: bool,
    ):
        check_supported(config)
        self.config = config
        self.optimizer = optimizer
        self.steps = steps
        self.device = device
        self.model_folder = model
        self.network_config = read_config(model)
        self.step = 0
        self._checkpoints: Checkpoints | None = None
        settings = zero.deepspeed_config(config, optimizer)
        policy = self._load(settings)
        self.engine, *_ = zero.initialize(model=policy, model_parameters=policy.parameters(), config=settings)
        self.weights = policy.named_weights()
        if self.engine.bfloat16_enabled():
            # DeepSpeed made the float32 masters from bfloat16 weights: set them from the stored values.
            load_weights(model, self.weights, zero.set_master)
        self.reference: Any = None
        self.reference_weights: dict[str, torch.nn.Parameter] = {}
        if reference:
            settings = zero.deepspeed_config(config, None)
            reference_policy = self._load(settings).eval().requires_grad_(False)
            self.reference_weights = reference_policy.named_weights()
            self.reference = reference_policy.to(device)
            if settings["zero_optimization"]["stage"] == 3:
                self.reference, *_ = zero.initialize(model=reference_policy, config=settings)
        for network in (self.engine.module, self.reference):
            if network is not None:
                check_tables(network)
        self.reference_masters = zero.Slices(self.reference_weights)
        for name in self.reference_weights:
            self.reference_masters.set(name, zero.master(self.weights[name]))

    def logprobs(self, batch: GroupBatch, which: Literal["policy", "reference"]) -> np.ndarray:
        """See `shared.backend.Learner`."""
        check_tokens(batch.tokens[batch.groups >= 0], "batch", self.network_config.vocab_size)
        network = self.engine if which == "policy" else self.reference
        network.eval()
        with torch.no_grad():
            scored = [self._completion_logprobs(network, rows, batch)[0] for rows in self._micro_batches(batch, ARRAYS)]
        flat = self._from_all(torch.cat(scored))
        whole = from_completion_view(flat, batch.layout)[: batch.tokens.shape[0]]
        return np.where(batch.completion_mask > 0, whole, np.float32(0))

    def update(self, batch: GroupBatch) -> dict[str, float]:
        """See `shared.backend.Learner`."""
        check_tokens(batch.tokens[batch.groups >= 0], "batch", self.network_config.vocab_size)
        names = ARRAYS + tuple(name for name in OPTIONAL_ARRAYS if getattr(batch, name) is not None)
        longest = self.config.rollout.max_new_tokens
        divisor = grpo.denominator(grpo.counts(batch), self.config.grpo, longest)
        # The only division: by the counts of the whole batch. DeepSpeed averages over processes, but the sum is needed, so the
        # scale has the number of processes as a factor.
        scale = dist.get_world_size() / divisor
        parts = list(self._micro_batches(batch, names))
        self.engine.train()
        total: Sums | None = None
        extra = torch.zeros(2, dtype=torch.float32, device=self.device)
        for index, rows in enumerate(parts):
            self.engine.set_gradient_accumulation_boundary(index == len(parts) - 1)
            sums, micro_extra = self._micro_loss(rows, batch)
            self.engine.backward(sums.loss * scale)
            sums = Sums._make(value.detach() for value in sums)
            total = sums if total is None else loss.add(total, sums)
            extra += micro_extra
        rate = learning_rate(self.step, self.optimizer, self.steps)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = rate
        norm = zero.step(self.engine)
        self.step += 1
        assert total is not None
        sums, entropy, logprob = self._over_processes(total, extra)
        described = metrics(sums, self.config.grpo, longest, entropy=entropy, logprob=logprob)
        return {**described, "grad_norm": norm, "learning_rate": rate}

    def sync_reference(self) -> None:
        """See `shared.backend.Learner`. Only one parameter at a time is gathered whole."""
        mixup = self.config.grpo.ref_mixup
        for name, param in self.reference_weights.items():
            mixed = mixup * zero.master(self.weights[name]) + (1.0 - mixup) * self.reference_masters.whole(name)
            self._set_reference(name, param, mixed)

    def publish(self, engine: Any) -> None:
        """See `shared.backend.Learner`."""
        engine.load(zero.gathered(self.weights, self.config.torch.publish_bucket_mb * 2**20), version=self.step)

    def digests(self, probes: Sequence[Probe]) -> list[str]:
        """See `shared.backend.Learner`."""
        return readback.digests(self.weights, probes)

    def save(self, folder: Path | str, step: int, extra: Mapping[str, int]) -> None:
        """See `shared.backend.Learner`."""
        self._manager(folder).save(step, self._state(), {**extra, "updates": self.step})

    def restore(self, folder: Path | str, step: int | None = None) -> tuple[int, dict[str, int]] | None:
        """See `shared.backend.Learner`."""
        restored = self._manager(folder).open(step, self.network_config)
        if restored is None:
            return None
        at, extra, arrays = restored
        self.step = extra.pop("updates")
        zero.make_moments(self.engine, self.step)
        for name, param in self.weights.items():
            whole_shape = zero.shape(param)
            zero.set_master(param, arrays.read("params", name, whole_shape).to(self.device))
            for key in zero.MOMENTS:
                zero.set_moment(self.engine, param, key, arrays.read(key, name, whole_shape).to(self.device))
        for name, param in self.reference_weights.items():
            self._set_reference(name, param, arrays.read("reference", name, zero.shape(param)).to(self.device))
        return at, extra

    def finish_saves(self) -> None:
        """See `shared.backend.Learner`. Nothing to wait for: `save` returns when the checkpoint is written."""

    def export(self, folder: Path) -> None:
        """See `shared.backend.Learner`."""
        masters = ((name, zero.master(param)) for name, param in self.weights.items())
        if dist.get_rank() > 0:
            for _ in masters:  # every process takes part in the all-gather of each parameter
                pass
        else:
            with files.replacing(folder) as temporary:
                temporary.mkdir()
                save_params(temporary, masters)
                weight_files.copy_config_and_tokenizer(self.model_folder, temporary)
        dist.barrier()

    def _load(self, settings: Mapping[str, Any]) -> Policy:
        """The policy in `model_folder` in the compute dtype; under ZeRO-3 it is sharded while it is read."""
        learner = self.config.learner
        dtype = getattr(torch, learner.compute_dtype)
        with zero.sharded(settings):
            network = build_network(
                self.model_folder, dtype, longest=self.config.longest_sequence, remat=learner.remat == "layer"
            )
            network = network.to(self.device)  # type: ignore[arg-type]
        fix_rotation(network, self.config.longest_sequence)
        policy = Policy(
            network,
            chunk=learner.logprob_chunk,
            temperature=scoring_temperature(self.config.grpo, self.config.rollout.temperature),
        )
        load_weights(self.model_folder, policy.named_weights(), zero.write)
        return policy

    def _manager(self, folder: Path | str) -> Checkpoints:
        if self._checkpoints is None or self._checkpoints.folder != Path(folder):
            self._checkpoints = Checkpoints(Path(folder), keep=self.config.checkpoint.keep)
        return self._checkpoints

    def _state(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """Everything that training changes, one whole float32 tensor at a time, as (kind, name, tensor)."""
        for name, param in self.weights.items():
            yield "params", name, zero.master(param)
            for key in zero.MOMENTS:
                yield key, name, zero.moment(self.engine, param, key)
        for name in self.reference_weights:
            yield "reference", name, self.reference_masters.whole(name)

    def _set_reference(self, name: str, param: torch.nn.Parameter, value: torch.Tensor) -> None:
        self.reference_masters.set(name, value)
        zero.write(param, value)

    def _micro_batches(self, batch: GroupBatch, names: tuple[str, ...]) -> Iterator[dict[str, torch.Tensor]]:
        """This process's micro-batches; empty rows fill up the last one. Every process has the same number of them."""
        processes = dist.get_world_size()
        rows = batch.tokens.shape[0]
        width = min(-(-self.config.learner.micro_batch_rows // processes), -(-rows // processes))
        count = -(-rows // (width * processes))
        batch = pad_rows(batch, count * width * processes)
        for index in range(count):
            begin = (dist.get_rank() * count + index) * width
            yield {
                name: torch.from_numpy(getattr(batch, name)[begin : begin + width]).to(self.device) for name in names
            }

    def _completion_logprobs(
        self, network: Any, rows: dict[str, torch.Tensor], batch: GroupBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of every completion token, both `[rows * G, C]` float32."""
        return network(rows["tokens"].long(), rows["positions"].long(), rows["groups"], batch.layout)

    def _from_all(self, own: torch.Tensor) -> np.ndarray:
        """The rows of all processes, concatenated in the order of ranks."""
        return zero.from_all(own).cpu().numpy()

    def _micro_loss(self, rows: dict[str, torch.Tensor], batch: GroupBatch) -> tuple[Sums, torch.Tensor]:
        logprobs, entropies = self._completion_logprobs(self.engine, rows, batch)
        view = {name: completion_view(values, batch.layout) for name, values in rows.items()}
        mask = view["completion_mask"]
        sums = loss.objective(
            logprobs,
            view["advantages"],
            mask,
            self.config.grpo,
            row_mask=(rows["groups"][:, 0] >= 0).float().repeat_interleave(batch.layout.group),
            old_logprobs=view.get("old_logprobs"),
            ref_logprobs=view.get("ref_logprobs"),
            rollout_logprobs=view.get("rollout_logprobs"),
        )
        counted = mask > 0
        zeros = torch.zeros_like(entropies)
        extra = [torch.where(counted, values.detach(), zeros).sum() for values in (entropies, logprobs)]
        return sums, torch.stack(extra)

    def _over_processes(self, sums: Sums, extra: torch.Tensor) -> tuple[Sums, float, float]:
        """All-reduce: the sums over the whole batch, its summed entropy and its summed log-probability."""
        largest = sums.gap_max.clone()
        values = torch.stack([*(value.float() for value in sums), *extra])
        dist.all_reduce(values)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        *totals, entropy, logprob = values.tolist()
        return Sums._make(totals)._replace(gap_max=float(largest)), entropy, logprob
