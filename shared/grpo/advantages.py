"""Advantages from the rewards of groups, which groups have no signal, and which tokens count in the loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from shared.errors import InputError

STD_FLOOR = 1e-4  # added to the standard deviation, as in the paper's trainer


def advantages(rewards: np.ndarray, scale: Literal["group", "batch", "none"]) -> np.ndarray:
    """The advantages of rewards `[groups, G]`: `[groups, G]` float64 (spec: grpo, sections 2 and 4).

    The mean of the group is subtracted, and `scale` says by what the result is divided:

        group  A = (r - mean) / (std of the group + 1e-4)        std with G - 1 in the denominator
        batch  A = (r - mean) / (std of all rewards + 1e-4)      std with groups * G - 1 in the denominator
        none   A = r - mean

    A group of equal rewards has advantages of exactly 0, without rounding errors. With `batch`, pass the rewards of the whole
    optimizer batch, since the result depends on all of them. Raises InputError if a group has fewer than two completions.
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
    """Which groups of rewards `[groups, G]` have equal rewards, and so advantages of 0: `[groups]` bool.

    Raises InputError if a group has fewer than two completions.
    """
    rewards = _checked(rewards)
    return rewards.max(axis=1) == rewards.min(axis=1)


def completion_masks(
    completions: Sequence[Sequence[np.ndarray]], truncated: np.ndarray, *, mask_truncated: bool
) -> list[list[np.ndarray]]:
    """The masks of tokens that count in the loss, in the form that `pack` takes: one float32 `[tokens]` for each completion.

    All tokens of a completion count, also its end-of-sequence token. With `mask_truncated`, no token counts of a completion that
    reached the length limit (`truncated`, `[groups, G]` bool). It is still counted as a completion.
    """
    return [
        [
            np.full(len(tokens), 0.0 if mask_truncated and is_truncated else 1.0, np.float32)
            for tokens, is_truncated in zip(*group, strict=True)
        ]
        for group in zip(completions, truncated, strict=True)
    ]


def _checked(rewards: np.ndarray) -> np.ndarray:
    rewards = np.asarray(rewards, np.float64)
    if rewards.ndim != 2 or rewards.shape[1] < 2:
        raise InputError(f"rewards of shape {rewards.shape}: must be [groups, completions] with 2 completions or more")
    return rewards
