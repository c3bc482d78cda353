"""The two backends behind one small face: a learner and an engine on one device, and their arrays by Hugging Face name."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import torch
from safetensors.numpy import load_file

import creason_jax.learner.loss
import creason_jax.model.logprobs
import creason_torch.learner.learner
import creason_torch.learner.loss
import creason_torch.model.logprobs
from creason_jax.backend import Backend as JaxBackend
from creason_jax.learner.learner import Learner
from creason_jax.mesh import sharding
from creason_jax.model import DecoderConfig, save_params
from creason_jax.rollout.engine import Engine
from creason_torch import zero
from creason_torch.backend import Backend as TorchBackend
from creason_torch.rollout import make_engine
from parity.families import EOS
from parity.recorded import LAYOUT, QUESTIONS
from shared import grpo
from shared.backend import Workload
from shared.config import OptimizerConfig, RunConfig, validate
from shared.errors import InputError
from shared.policy import weight_files

SECTIONS: dict[str, dict[str, Any]] = {
    # Old log-probabilities are recorded, so ratios are not 1 and some are clipped.
    "grpo": {"group_size": LAYOUT.group, "questions_per_step": QUESTIONS, "steps": 20, "epsilon_high": 0.15},
    "rollout": {"max_prompt_tokens": LAYOUT.prompt, "max_new_tokens": LAYOUT.completion, "slots": 4, "prefill_batch": 2},
    "learner": {"compute_dtype": "float32", "logprob_chunk": 64, "micro_batch_rows": QUESTIONS, "remat": "none"},
    "jax": {"mesh_fsdp": 1},
    "optimizer": {"learning_rate": 1e-3, "max_grad_norm": 1e9},
    "torch": {"zero_stage": 0, "rollout_engine": "hf"},
}  # fmt: skip


def run_config(**sections: Mapping[str, Any]) -> RunConfig:
    """The configuration that both learners get; `sections` replace fields of each."""
    return validate({"name": "parity", **{name: SECTIONS[name] | dict(sections.get(name, {})) for name in SECTIONS}})


def pin_precision(device: str) -> None:
    """Float32 products in float32, on both sides. Raises InputError where a side has no such device."""
    jax.config.update("jax_default_matmul_precision", "highest")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device=cuda: PyTorch sees no GPU on this machine; use --device=cpu")
    if device == "cuda" and jax.default_backend() != "gpu":
        raise InputError("--device=cuda: JAX sees no GPU; install jax[cuda13] and do not set JAX_PLATFORMS=cpu")
    zero.start_processes()


class Side(Protocol):
    """One backend."""

    @property
    def name(self) -> str:
        """As `--backend` has it."""
        ...

    def backend(self, config: RunConfig) -> Any:
        """Its `shared.backend.Backend` on the first device only: a small run gains nothing from pretended ones."""
        ...

    def learner(self, config: RunConfig, model: Path, *, steps: int, reference: bool = False) -> Any:
        """Its learner on the devices that `config.learner` names."""
        ...

    def weights(self, learner: Any) -> dict[str, np.ndarray]:
        """The learner's float32 weights by Hugging Face name."""
        ...

    def moments(self, learner: Any) -> dict[str, np.ndarray]:
        """Adam's first moment by Hugging Face name."""
        ...

    def engine(self, config: RunConfig, model: Path) -> Any:
        """Its plain engine, for the policy in `model`; it must be published to."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxSide:
    """The Flax backend; a fault (`parity.faults`) takes the place of one of its parts."""

    learner_class: type[Learner] = Learner
    engine_class: type[Engine] = Engine
    target_logprobs: Callable[..., Any] = creason_jax.model.logprobs.target_logprobs
    kl_estimate: Callable[..., Any] = creason_jax.learner.loss.kl_estimate

    @property
    def name(self) -> str:
        """See `Side`."""
        return "jax"

    def backend(self, config: RunConfig) -> JaxBackend:
        """See `Side`."""
        return _OfSide(self, config)

    def learner(self, config: RunConfig, model: Path, *, steps: int, reference: bool = False) -> Any:
        """See `Side`."""
        return self.learner_class(
            config, model, _mesh(config), optimizer=config.optimizer, steps=steps, reference=reference
        )

    def weights(self, learner: Any) -> dict[str, np.ndarray]:
        """See `Side`."""
        return _exported(learner.state.params, learner.model)

    def moments(self, learner: Any) -> dict[str, np.ndarray]:
        """See `Side`."""
        return _exported(learner.state.moments.mu, learner.model)

    def engine(self, config: RunConfig, model: Path) -> Any:
        """See `Side`."""
        shape = DecoderConfig.read(model, longest=config.longest_sequence)
        return self.engine_class(config, shape, _mesh(config), stop_tokens=(EOS,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TorchSide:
    """The PyTorch backend."""

    target_logprobs: Callable[..., Any] = creason_torch.model.logprobs.target_logprobs
    kl_estimate: Callable[..., Any] = creason_torch.learner.loss.kl_estimate

    @property
    def name(self) -> str:
        """See `Side`."""
        return "torch"

    def backend(self, config: RunConfig) -> TorchBackend:
        """See `Side`."""
        return TorchBackend(config)

    def learner(self, config: RunConfig, model: Path, *, steps: int, reference: bool = False) -> Any:
        """See `Side`."""
        return creason_torch.learner.learner.Learner(
            config, model, zero.device(), optimizer=config.optimizer, steps=steps, reference=reference
        )

    def weights(self, learner: Any) -> dict[str, np.ndarray]:
        """See `Side`."""
        return {name: zero.master(param).cpu().numpy() for name, param in learner.weights.items()}

    def moments(self, learner: Any) -> dict[str, np.ndarray]:
        """See `Side`."""
        return {
            name: zero.moment(learner.engine, param, "exp_avg").cpu().numpy() for name, param in learner.weights.items()
        }

    def engine(self, config: RunConfig, model: Path) -> Any:
        """See `Side`."""
        return make_engine(config, model, stop_tokens=(EOS,), device=zero.device())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """What a parity run checks: what both backends take from `shared.grpo`, and the two backends."""

    advantages: Callable[..., np.ndarray] = grpo.advantages
    completion_masks: Callable[..., Any] = grpo.completion_masks
    jax: JaxSide = JaxSide()
    torch: TorchSide = TorchSide()

    @property
    def sides(self) -> tuple[JaxSide, TorchSide]:
        """Both backends."""
        return self.jax, self.torch


def gradient(side: Side, learner: Any) -> dict[str, np.ndarray]:
    """The clipped gradient of a learner's first update: Adam's first moment over 1 - b1."""
    assert learner.step == 1
    return {name: value / np.float32(1 - learner.optimizer.b1) for name, value in side.moments(learner).items()}


class _OfSide(JaxBackend):
    """Builds the learner and the engine of a side."""

    def __init__(self, side: JaxSide, config: RunConfig):
        super().__init__(config, devices=jax.devices()[:1])
        self._side = side

    def learner(
        self, config: RunConfig, model: Path, *, optimizer: OptimizerConfig, steps: int, reference: bool
    ) -> Learner:
        """See `shared.backend.Backend`."""
        return self._side.learner_class(
            self.resolved(config), model, self.mesh, optimizer=optimizer, steps=steps, reference=reference
        )

    def engine(
        self, config: RunConfig, model: Path, *, stop_tokens: Sequence[int], workload: Workload | None = None
    ) -> Engine:
        """See `shared.backend.Backend`."""
        config = self.resolved(config)
        shape = DecoderConfig.read(model, longest=config.longest_sequence)
        return self._side.engine_class(config, shape, self.mesh, stop_tokens=stop_tokens, workload=workload)


def _mesh(config: RunConfig) -> jax.sharding.Mesh:
    """The devices that `config.jax` names: one, but where a rung asks for more."""
    count = config.jax.mesh_data * max(1, config.jax.mesh_fsdp) * config.jax.mesh_tensor
    return sharding.make_mesh(config.jax, jax.devices()[:count])


def _exported(tree: Any, model: DecoderConfig) -> dict[str, np.ndarray]:
    """A tree shaped like the parameters, fused and named as Hugging Face has it."""
    with tempfile.TemporaryDirectory() as folder:
        save_params(Path(folder), tree, model)
        return load_file(Path(folder) / weight_files.SINGLE)
