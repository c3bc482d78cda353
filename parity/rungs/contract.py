"""Rung 0: advantages, masks and batches, which both backends take from one place, against closed forms and by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from parity import recorded
from parity.check import Check, largest_relative, unequal
from parity.families import EOS
from parity.sides import Subject
from parity.world import World
from shared import grpo
from shared.grpo import GroupLayout

STD_FLOOR = 1e-4  # stated again, not taken from what is checked


def checks(world: World) -> Iterator[Check]:
    """Advantages against their closed form; a hand-written batch."""
    group = recorded.GROUP
    rewards = (np.arange(group) < np.arange(group + 1)[:, None]).astype(np.float64)
    found = {f"{right} of {group} right": row for right, row in enumerate(world.subject.advantages(rewards, "group"))}
    expected = {name: _closed_form(right, group) for right, name in enumerate(found)}
    yield Check.of("contract", "advantages", "all", "closed form", largest_relative(found, expected), 1e-12)
    equal = np.full((1, group), 1 / 3)  # whose mean is not exactly a third
    uniform = {"advantages of equal rewards": world.subject.advantages(equal, "group")}
    yield Check.of("contract", "uniform group", "all", "exactly 0", unequal(uniform, _zeros(uniform)), 0)
    yield Check.of("contract", "masks and positions", "all", "by hand", unequal(*_by_hand(world.subject)), 0)


def _closed_form(right: int, group: int) -> np.ndarray:
    """(r - mean) / (std + 1e-4) of `right` ones among `group` rewards, std with group - 1 in the denominator."""
    mean = right / group
    std = np.sqrt(right * (group - right) / (group * (group - 1)))
    centred = np.where(np.arange(group) < right, 1 - mean, -mean)
    return centred / (std + STD_FLOOR)


def _by_hand(subject: Subject) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two completions: one whose only token ends it, one that is cut and so not counted."""
    layout = GroupLayout(prompt=4, group=2, completion=3)
    completions = [[np.array([EOS]), np.array([7, 8, 9])]]
    masks = subject.completion_masks(completions, np.array([[False, True]]), mask_truncated=True)
    made = grpo.pack(
        [np.array([5, 6, 5])], completions, layout, advantages=np.array([[1.0, -1.0]]), completion_masks=masks
    )
    found = {
        name: getattr(made, name)[0] for name in ("tokens", "positions", "groups", "completion_mask", "advantages")
    }
    expected = {
        "tokens": np.array([5, 6, 5, 0, EOS, 0, 0, 7, 8, 9]),
        "positions": np.array([0, 1, 2, 0, 3, 0, 0, 3, 4, 5]),
        "groups": np.array([0, 0, 0, -1, 0, -1, -1, 0, 0, 0]),
        "completion_mask": np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 0]),
        "advantages": np.array([0, 0, 0, 0, 1, 0, 0, 0, 0, 0]),
    }
    return found, expected


def _zeros(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.zeros_like(value) for name, value in arrays.items()}
