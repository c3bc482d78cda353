"""Groups of completions as arrays: the layout of a row, and functions that make, reshape, pad and split batches of rows."""

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
    """The layout of a row: `prompt` positions, then `group` completions of `completion` positions each.

    Example: with prompt = 5, group = 2, completion = 3, a prompt of 4 tokens and completions of 3 and 2 tokens give the row

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
        """The number of positions in a row (T)."""
        return self.prompt + self.group * self.completion


@dataclasses.dataclass(frozen=True)
class GroupBatch:
    """A batch of rows. Each row holds a whole group: the prompt once, then its completions. All arrays are `[batch, time]`.

    `groups` is the index of the group in its row (-1: padding). `segments` is 0 for the prompt and 1..G for the completions.
    `positions` of each completion continue from the end of the prompt. `advantages` and the three arrays of log-probabilities
    are 0 where `completion_mask` is 0. `old_logprobs` is None if each set of rollouts is used for one update only;
    `ref_logprobs` is None without a reference policy.
    """

    layout: GroupLayout
    tokens: np.ndarray  # int32
    positions: np.ndarray  # int32
    groups: np.ndarray  # int32
    segments: np.ndarray  # int32
    completion_mask: np.ndarray  # float32: 1 where a token counts in the loss
    advantages: np.ndarray  # float32
    rollout_logprobs: np.ndarray | None  # float32; None if the tokens do not come from a rollout engine
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
    """Make a batch with one row for each prompt and its `layout.group` completions.

    `prompts` and `completions` are token ids, each `[tokens]`; `advantages` is `[groups, G]`. `completion_masks` (default: all
    tokens count) and `rollout_logprobs` have one `[tokens]` array for each completion. Log-probabilities are set to 0 where the
    mask is 0. `old_logprobs` and `ref_logprobs` are None. Raises InputError that names the group which does not fit the layout.
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
    masks, token_advantages, token_logprobs = (np.zeros(shape, np.float32) for _ in range(3))
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
            masks[place] = 1.0 if completion_masks is None else _same_length(completion_masks, row, sample, ids, "mask")
            token_advantages[place] = advantages[row, sample] * masks[place]
            if rollout_logprobs is not None:
                logprobs = _same_length(rollout_logprobs, row, sample, ids, "log-probabilities")
                token_logprobs[place] = np.where(masks[place] > 0, logprobs, 0.0)
    return GroupBatch(
        layout=layout,
        tokens=tokens,
        positions=positions,
        groups=groups,
        segments=segments,
        completion_mask=masks,
        advantages=token_advantages,
        rollout_logprobs=None if rollout_logprobs is None else token_logprobs,
        old_logprobs=None,
        ref_logprobs=None,
    )


def completion_view(array: Any, layout: GroupLayout) -> Any:
    """The completions of `array` `[batch, time]` as separate rows: `[batch * G, completion]`. For arrays of any library."""
    return array[:, layout.prompt :].reshape(array.shape[0] * layout.group, layout.completion)


def from_completion_view(values: np.ndarray, layout: GroupLayout) -> np.ndarray:
    """The inverse of `completion_view`: `values` `[batch * G, completion]` as `[batch, time]`, with 0 for the prompt."""
    batch = values.shape[0] // layout.group
    prompt = np.zeros((batch, layout.prompt), values.dtype)
    return np.concatenate([prompt, values.reshape(batch, layout.group * layout.completion)], axis=1)


def real_completions(groups: Any, layout: GroupLayout) -> Any:
    """Which rows of `completion_view` are completions: `[batch * G]` float32, 0 for those of empty rows, else 1.

    `groups` is the array `[batch, time]` of the batch, of any library. A completion whose mask is 0 everywhere has 1.
    """
    return (groups[:, 0] >= 0).repeat(layout.group).astype("float32")


def separate_rows(batch: GroupBatch) -> GroupBatch:
    """The same completions with one completion in each row, and its prompt repeated (so `layout.group` is 1).

    The order is that of `completion_view`.
    """
    layout = batch.layout

    def separate(array: np.ndarray) -> np.ndarray:
        prompt = array[:, : layout.prompt].repeat(layout.group, axis=0)
        return np.concatenate([prompt, completion_view(array, layout)], axis=1)

    separated = _changed_arrays(batch, separate)
    return dataclasses.replace(
        separated, layout=dataclasses.replace(layout, group=1), segments=np.minimum(separated.segments, 1)
    )


def rows(batch: GroupBatch, chosen: slice) -> GroupBatch:
    """The batch with only the `chosen` rows."""
    return _changed_arrays(batch, lambda array: array[chosen])


def split_rows(batch: GroupBatch, size: int) -> list[GroupBatch]:
    """The batch as micro-batches of `size` rows each. Raises InputError if its rows are not a multiple of it; see `pad_rows`."""
    count = batch.tokens.shape[0]
    if size < 1 or count % size:
        raise InputError(f"{count} rows cannot be split into micro-batches of {size}: pad them to a multiple of it")
    return [rows(batch, slice(start, start + size)) for start in range(0, count, size)]


def pad_rows(batch: GroupBatch, count: int) -> GroupBatch:
    """The batch with empty rows (only padding, no completion) at its end, so that it has `count` rows.

    Raises InputError if it has more rows already.
    """
    missing = count - batch.tokens.shape[0]
    if missing < 0:
        raise InputError(
            f"{batch.tokens.shape[0]} rows cannot be padded to {count}: give at least as many as there are"
        )
    padded = _changed_arrays(batch, lambda array: np.pad(array, ((0, missing), (0, 0))))
    padded.groups[count - missing :] = -1
    return padded


def _changed_arrays(batch: GroupBatch, change: Callable[[np.ndarray], np.ndarray]) -> GroupBatch:
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
    """The values of one completion, `nested[row][sample]`. Raises InputError if there is not one value for each token."""
    try:
        values = nested[row][sample]
    except IndexError:
        raise InputError(f"group {row}, completion {sample}: its {what} are missing") from None
    if len(values) != len(ids):
        raise InputError(f"group {row}, completion {sample}: {len(values)} {what} values for {len(ids)} tokens")
    return values
