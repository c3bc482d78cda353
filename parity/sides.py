"""The two backends behind one small face: a learner and an engine on one device, and their arrays by Hugging Face name."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
import torch
from safetensors.numpy import load_file

import creason_jax.learner.learner
import creason_jax.rollout.engine
import creason_torch.learner.learner
from creason_jax.mesh import sharding
from creason_jax.model import DecoderConfig, save_params
from creason_torch import zero
from creason_torch.rollout import make_engine
from parity.families import EOS
from parity.recorded import LAYOUT, QUESTIONS
from shared.config import RunConfig, validate
from shared.errors import InputError

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

    name: str

    def learner(self, config: RunConfig, model: Path, *, steps: int, reference: bool = False) -> Any:
        """Its learner on one device."""
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


class JaxSide:
    """The Flax backend."""

    name = "jax"

    def learner(self, config: RunConfig, model: Path, *, steps: int, reference: bool = False) -> Any:
        """See `Side`."""
        mesh = self._mesh(config)
        return creason_jax.learner.learner.Learner(
            config, model, mesh, optimizer=config.optimizer, steps=steps, reference=reference
        )

    def weights(self, learner: Any) -> dict[str, np.ndarray]:
        """See `Side`."""
        return _exported(learner.state.params, learner.model)

    def moments(self, learner: Any) -> dict[str, np.ndarray]:
        """See `Side`."""
        return _exported(learner.state.moments.mu, learner.model)

    def engine(self, config: RunConfig, model: Path) -> Any:
        """See `Side`."""
        return creason_jax.rollout.engine.Engine(
            config, DecoderConfig.read(model, longest=config.longest_sequence), self._mesh(config), stop_tokens=(EOS,)
        )

    def _mesh(self, config: RunConfig) -> jax.sharding.Mesh:
        count = config.jax.mesh_data * max(1, config.jax.mesh_fsdp) * config.jax.mesh_tensor
        return sharding.make_mesh(config.jax, jax.devices()[:count])


class TorchSide:
    """The PyTorch backend."""

    name = "torch"

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


SIDES: tuple[Side, Side] = (JaxSide(), TorchSide())


def gradient(side: Side, learner: Any) -> dict[str, np.ndarray]:
    """The clipped gradient of a learner's first update: Adam's first moment over 1 - b1."""
    assert learner.step == 1
    return {name: value / np.float32(1 - learner.optimizer.b1) for name, value in side.moments(learner).items()}


def _exported(tree: Any, model: DecoderConfig) -> dict[str, np.ndarray]:
    """A tree shaped like the parameters, fused and named as Hugging Face has it."""
    with tempfile.TemporaryDirectory() as folder:
        save_params(Path(folder), tree, model)
        return load_file(Path(folder) / "model.safetensors")
