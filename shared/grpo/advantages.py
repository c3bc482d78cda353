"""From the rewards of groups to advantages, and which groups and tokens carry a signal at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from shared.errors import InputError

STD_FLOOR = 1e-4  # added to the standard deviation, as in the paper's trainer


def advantages(rewards: np.ndarray, scale: Literal["group", "batch", "none"]) -> np.ndarray:
    """Advantages `[groups, G]`, float64, of rewards `[groups, G]` (spec: grpo, sections 2 and 4).

    Always centred by the mean of the group, then by `scale`:

        group  A = (r - mean) / (std of the group + 1e-4)        std with G - 1 in the denominator
        batch  A = (r - mean) / (std of all rewards + 1e-4)      std with groups * G - 1 in the denominator
        none   A = r - mean

    A group of equal rewards is exactly 0, whatever its rounding. With `batch`, pass the rewards of the whole optimizer
    batch: the result depends on all of them. Raises InputError unless there are at least two completions in a group.
    """
    rewards = _checked(rewards)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    centred = np.where(uniform_groups(rewards)[:, None], 0.0, centred)
    if scale == "none" or not rewards.size:
        return centred
    if scale == "batch":
        return centred / (rewards.std(ddof=1) + STD_FLOOR)
    return centred / (rewards.std(axis=1, ddof=1, keepdims=True) + STD_FLOOR)


def uniform_groups(rewards: np.ndarray) -> np.ndarray:
    """Which groups have equal rewards and so no advantage: bool `[groups]` of rewards `[groups, G]`."""
    rewards = _checked(rewards)
    return rewards.max(axis=1) == rewards.min(axis=1)


def completion_masks(
    completions: Sequence[Sequence[np.ndarray]], truncated: np.ndarray, *, mask_truncated: bool
) -> list[list[np.ndarray]]:
    """The tokens that count in the loss, as `pack` takes them: float32, one array for each completion.

    All tokens of a completion count, its end-of-sequence token included; with `mask_truncated` none of a completion that
    hit the length limit (`truncated`, bool `[groups, G]`) does. Such a completion still counts as a completion.
    """
    return [
        [
            np.full(len(tokens), 0.0 if mask_truncated and cut else 1.0, np.float32)
            for tokens, cut in zip(*group, strict=True)
        ]
        for group in zip(completions, truncated, strict=True)
    ]


def _checked(rewards: np.ndarray) -> np.ndarray:
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise InputError(f"rewards of shape {rewards.shape}: must be [groups, completions] with 2 completions or more")
    return rewards
