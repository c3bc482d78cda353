"""What the rungs share: each family's model on disk, its float64 twin, and the batches recorded for it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from parity import recorded, reference
from parity.config import ParityConfig
from parity.families import FAMILIES, write_family
from parity.sides import Subject
from shared import grpo
from shared.errors import InputError
from shared.grpo import GroupBatch


class Case:
    """A family's tiny model in `folder`, and batches around its policy."""

    def __init__(self, family: str, folder: Path, seed: int):
        self.family = family
        self.folder = folder
        self.seed = seed
        write_family(family, folder, seed=seed)
        self._batches: dict[tuple[int, float], GroupBatch] = {}

    @functools.cached_property
    def network(self) -> PreTrainedModel:
        """The model in float64."""
        return reference.network(self.folder)

    def batch(self, number: int = 0, *, scale: float = 1.0) -> GroupBatch:
        """Batch `number`: old, reference and rollout log-probabilities are near those of the model as it is on disk."""
        if (number, scale) not in self._batches:
            made = recorded.batch(self.seed + number, scale=scale)
            with torch.no_grad():
                scored = reference.logprobs(self.network, made).numpy()
            whole = grpo.from_completion_view(scored, made.layout)
            self._batches[number, scale] = recorded.around(made, whole, self.seed + number)
        return self._batches[number, scale]


class World:
    """A parity run: its options, a folder to work in, what is checked, and what the report shows beside the checks (`curves`,
    `notes`)."""

    def __init__(self, config: ParityConfig, folder: Path, subject: Subject):
        unknown = [name for name in config.families if name not in FAMILIES]
        if unknown:
            raise InputError(f"unknown family {unknown[0]!r}; there are {', '.join(FAMILIES)}")
        self.config = config
        self.folder = folder
        self.subject = subject
        self.sides = subject.sides
        self.families = config.families or tuple(FAMILIES)
        self.curves: dict[str, Any] = {}
        self.notes: list[str] = []
        self._cases: dict[str, Case] = {}

    def case(self, family: str = "") -> Case:
        """The case of a family; of the first one where none is named."""
        family = family or self.families[0]
        if family not in self._cases:
            self._cases[family] = Case(family, self.folder / "models" / family, self.config.seed)
        return self._cases[family]
