"""Read parameters back by name: SHA-256 digests of rows, to check that the engine holds the learner's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from shared.backend import Probe


def digest(rows: torch.Tensor) -> str:
    """The SHA-256 digest of a tensor's bytes in its own dtype, as vLLM's servers compute it."""
    return hashlib.sha256(rows.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def digests(weights: Mapping[str, nn.Parameter], probes: Sequence[Probe]) -> list[str]:
    """The SHA-256 digest of each probe's rows, in the dtype of the network. Every process must call it.

    The parameters may be sharded; only one at a time is gathered whole.
    """
    import deepspeed

    results = []
    for probe in probes:
        with deepspeed.zero.GatheredParameters([weights[probe.name]]):
            results.append(digest(rows_of(weights[probe.name], probe)))
    return results


def rows_of(tensor: torch.Tensor, probe: Probe) -> torch.Tensor:
    """The rows of a whole tensor that the probe names."""
    return tensor if probe.rows is None else tensor[list(probe.rows)]
