"""Groups of completions as arrays: the layout of a row, and building, viewing and cutting batches of rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from shared.errors import InputError

# What one update needs of a batch, all `[batch, time]`, and what may be None in one.
ARRAYS = ("tokens", "positions", "groups", "completion_mask", "advantages")
OPTIONAL_ARRAYS = ("rollout_logprobs", "old_logprobs", "ref_logprobs")


@dataclasses.dataclass(frozen=True)
class GroupLayout:
    """Where things are in a row: `prompt` positions, then `group` completions of `completion` positions each.

    With prompt 5, group 2, completion 3 a row of a 4-token prompt and completions of 3 and 2 tokens is

        tokens     p p p p . a a a b b .
        positions  0 1 2 3 0 4 5 6 4 5 0
        groups     0 0 0 0 - 0 0 0 0 0 -     (- is -1: padding)
        segments   0 0 0 0 0 1 1 1 2 2 0
    """

    prompt: int
    group: int
    completion: int

    @property
    def length(self) -> int:
        """Positions in a row (T)."""
        return self.prompt + self.group * self.completion


@dataclasses.dataclass(frozen=True)
class GroupBatch:
    """Rows of whole groups: a prompt once, then its completions. All arrays are `[batch, time]`.

    `groups` is the index of the group in its row (-1: padding), `segments` 0 for the prompt and 1..G for completions,
    `positions` continue from the prompt's end in each completion. The three log-probability arrays and `advantages` are
    meaningful where `completion_mask` is 1 and 0 elsewhere; `old_logprobs` is None on policy (one update for a set of
    rollouts), `ref_logprobs` is None without a reference policy.
    """

    layout: GroupLayout
    tokens: np.ndarray  # int32
    positions: np.ndarray  # int32
    groups: np.ndarray  # int32
    segments: np.ndarray  # int32
    completion_mask: np.ndarray  # float32: 1 where a token counts in the loss
    advantages: np.ndarray  # float32
    rollout_logprobs: np.ndarray | None  # float32; None where no engine made the tokens
    old_logprobs: np.ndarray | None
    ref_logprobs: np.ndarray | None


def pack(
    prompts: Sequence[np.ndarray],
    completions: Sequence[Sequence[np.ndarray]],
    layout: GroupLayout,
    *,
    advantages: np.ndarray,
    completion_masks: Sequence[Sequence[np.ndarray]] | None = None,
    rollout_logprobs: Sequence[Sequence[np.ndarray]] | None = None,
) -> GroupBatch:
    """A batch with one row for each prompt and its `layout.group` completions; `old_` and `ref_logprobs` are None.

    `prompts` and `completions` are token ids, `advantages` `[groups, G]`; `completion_masks` (default: every token
    counts) and `rollout_logprobs` have one array for each completion, as long as its tokens. Log-probabilities are kept
    where the mask is 1. Raises InputError naming the group that does not fit the layout.
    """
    advantages = np.asarray(advantages)
    if advantages.shape != (len(prompts), layout.group) or len(completions) != len(prompts):
        raise InputError(
            f"{len(prompts)} prompts, {len(completions)} groups of completions, advantages of shape {advantages.shape}: "
            f"must be as many groups everywhere, of {layout.group}"
        )
    shape = (len(prompts), layout.length)
    tokens, positions, segments = (np.zeros(shape, np.int32) for _ in range(3))
    groups = np.full(shape, -1, np.int32)
    mask, spread, rollout = (np.zeros(shape, np.float32) for _ in range(3))
    for row, (prompt, samples) in enumerate(zip(prompts, completions, strict=True)):
        _check_fits(row, prompt, samples, layout)
        tokens[row, : len(prompt)] = prompt
        positions[row, : len(prompt)] = np.arange(len(prompt))
        groups[row, : len(prompt)] = 0
        for sample, ids in enumerate(samples):
            start = layout.prompt + sample * layout.completion
            place = (row, slice(start, start + len(ids)))
            tokens[place] = ids
            positions[place] = len(prompt) + np.arange(len(ids))
            groups[place] = 0
            segments[place] = sample + 1
            mask[place] = 1.0 if completion_masks is None else _same_length(completion_masks, row, sample, ids, "mask")
            spread[place] = advantages[row, sample] * mask[place]
            if rollout_logprobs is not None:
                logprobs = _same_length(rollout_logprobs, row, sample, ids, "log-probabilities")
                rollout[place] = np.where(mask[place] > 0, logprobs, 0.0)
    return GroupBatch(
        layout=layout,
        tokens=tokens,
        positions=positions,
        groups=groups,
        segments=segments,
        completion_mask=mask,
        advantages=spread,
        rollout_logprobs=None if rollout_logprobs is None else rollout,
        old_logprobs=None,
        ref_logprobs=None,
    )


def completion_view(array: Any, layout: GroupLayout) -> Any:
    """The completions of `array` `[batch, time]` as rows `[batch * G, completion]`; for arrays of any library."""
    return array[:, layout.prompt :].reshape(array.shape[0] * layout.group, layout.completion)


def from_completion_view(values: np.ndarray, layout: GroupLayout) -> np.ndarray:
    """The inverse of `completion_view`: `[batch, time]` with `values` in the completions and 0 on the prompt."""
    batch = values.shape[0] // layout.group
    prompt = np.zeros((batch, layout.prompt), values.dtype)
    return np.concatenate([prompt, values.reshape(batch, layout.group * layout.completion)], axis=1)


def real_completions(groups: Any, layout: GroupLayout) -> Any:
    """`[batch * G]` float32, in the order of `completion_view`: 1 for completions, 0 for those of empty rows.

    `groups` is the batch's `[batch, time]` array, of any library. A completion whose mask is all zero is a real one.
    """
    return (groups[:, 0] >= 0).repeat(layout.group).astype("float32")


def separate_rows(batch: GroupBatch) -> GroupBatch:
    """The same completions in the order of `completion_view`, one to a row, its prompt repeated (layout group = 1)."""
    layout = batch.layout

    def separate(array: np.ndarray) -> np.ndarray:
        prompt = array[:, : layout.prompt].repeat(layout.group, axis=0)
        return np.concatenate([prompt, completion_view(array, layout)], axis=1)

    separated = _each_array(batch, separate)
    return dataclasses.replace(
        separated, layout=dataclasses.replace(layout, group=1), segments=np.minimum(separated.segments, 1)
    )


def rows(batch: GroupBatch, chosen: slice) -> GroupBatch:
    """The batch of only the `chosen` rows."""
    return _each_array(batch, lambda array: array[chosen])


def split_rows(batch: GroupBatch, size: int) -> list[GroupBatch]:
    """The batch in micro-batches of `size` rows. Raises InputError unless `size` divides its rows; see `pad_rows`."""
    count = batch.tokens.shape[0]
    if size < 1 or count % size:
        raise InputError(f"{count} rows cannot be split into micro-batches of {size}: pad them to a multiple of it")
    return [rows(batch, slice(start, start + size)) for start in range(0, count, size)]


def pad_rows(batch: GroupBatch, count: int) -> GroupBatch:
    """The batch with empty rows (all padding, no completion) after its own, `count` rows in all."""
    missing = count - batch.tokens.shape[0]
    if missing < 0:
        raise InputError(
            f"{batch.tokens.shape[0]} rows cannot be padded to {count}: give at least as many as there are"
        )
    padded = _each_array(batch, lambda array: np.pad(array, ((0, missing), (0, 0))))
    padded.groups[count - missing :] = -1
    return padded


def _each_array(batch: GroupBatch, change: Callable[[np.ndarray], np.ndarray]) -> GroupBatch:
    names = [field.name for field in dataclasses.fields(batch) if field.name != "layout"]
    arrays = {name: getattr(batch, name) for name in names}
    changed: dict[str, Any] = {name: change(array) for name, array in arrays.items() if array is not None}
    return dataclasses.replace(batch, **changed)


def _check_fits(row: int, prompt: np.ndarray, samples: Sequence[np.ndarray], layout: GroupLayout) -> None:
    if not 1 <= len(prompt) <= layout.prompt:
        raise InputError(f"group {row}: its prompt has {len(prompt)} tokens; the layout holds 1 to {layout.prompt}")
    if len(samples) != layout.group:
        raise InputError(f"group {row}: it has {len(samples)} completions; the layout holds {layout.group}")
    longest = max(len(ids) for ids in samples)
    if longest > layout.completion:
        raise InputError(f"group {row}: a completion has {longest} tokens; the layout holds up to {layout.completion}")


def _same_length(
    nested: Sequence[Sequence[np.ndarray]], row: int, sample: int, ids: np.ndarray, what: str
) -> np.ndarray:
    try:
        values = nested[row][sample]
    except IndexError:
        raise InputError(f"group {row}, completion {sample}: its {what} are missing") from None
    if len(values) != len(ids):
        raise InputError(f"group {row}, completion {sample}: {len(values)} {what} values for {len(ids)} tokens")
    return values
