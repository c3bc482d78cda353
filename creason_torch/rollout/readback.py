"""Parameters read back by name, to compare what the engine holds with the learner's: SHA-256 of some rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from shared.backend import Probe


def digest(rows: torch.Tensor) -> str:
    """Of a tensor's bytes in its own number format. As vLLM's servers compute it."""
    return hashlib.sha256(rows.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def digests(weights: Mapping[str, nn.Parameter], probes: Sequence[Probe]) -> list[str]:
    """Of a learner's parameters, sharded or not; one at a time is whole, and every process must call it."""
    import deepspeed

    found = []
    for probe in probes:
        with deepspeed.zero.GatheredParameters([weights[probe.name]]):
            found.append(digest(rows_of(weights[probe.name], probe)))
    return found


def rows_of(tensor: torch.Tensor, probe: Probe) -> torch.Tensor:
    """The rows of a whole tensor that the probe names."""
    return tensor if probe.rows is None else tensor[list(probe.rows)]
