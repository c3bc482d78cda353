"""What a run will need, said before it begins: tokens, memory, disk, steps at risk. A run that cannot fit is refused.

Each backend counts the state of its learner and engine exactly (its `plan/forecast.py`). Temporary arrays are estimated by
`update_temporaries`; docs/measurements.md compares the estimate with what was measured.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shared.backend import Workload
from shared.config import Remat, RunConfig
from shared.errors import InputError
from shared.grpo import GroupLayout
from shared.runs import memory
from shared.storage import buckets

FACTOR = 2.0  # temporaries that were measured are at least their estimate divided by this
BLOCK = 128  # queries whose attention scores exist at once where a row is computed in blocks


class Decoder(NamedTuple):
    """The sizes of a model that temporaries depend on."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    vocabulary: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, by what they are for. Of several devices the one that needs most.

    Learning and generating take turns: an update needs `gradients` and `update_temporaries`, generating needs `kv_cache` and
    `rollout_temporaries`.
    """

    weights: float  # the learner's and the engine's
    gradients: float = 0.0
    optimizer_state: float = 0.0
    reference: float = 0.0
    kv_cache: float = 0.0
    update_temporaries: float = 0.0
    rollout_temporaries: float = 0.0
    free: float | None = None  # None: not known
    least_kv_cache: float = 0.0  # of the engine with one slot, which is enough
    place: str = "this machine"

    @property
    def learns(self) -> bool:
        """Whether an update needs more than generating."""
        return self.gradients + self.update_temporaries >= self.kv_cache + self.rollout_temporaries

    @property
    def temporaries(self) -> float:
        """Temporaries at the moment when most memory is needed."""
        return self.update_temporaries if self.learns else self.rollout_temporaries

    @property
    def needed(self) -> float:
        """Bytes at the moment when most are needed, with all slots that the config asks for."""
        return self._state + max(self.gradients + self.update_temporaries, self.kv_cache + self.rollout_temporaries)

    @property
    def least(self) -> float:
        """Bytes that are needed in any case: temporaries may be the estimate divided by `FACTOR`, and one slot is enough."""
        return self._state + max(
            self.gradients + self.update_temporaries / FACTOR, self.least_kv_cache + self.rollout_temporaries / FACTOR
        )

    @property
    def _state(self) -> float:
        return self.weights + self.optimizer_state + self.reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """What a backend says a run needs, before it begins."""

    memory: Memory
    parameters: int
    checkpoint_bytes: float  # of one checkpoint, all devices together


def update_temporaries(
    model: Decoder, layout: GroupLayout, rows: float, *, item: int, remat: Remat, chunk: int, whole_scores: float
) -> float:
    """Bytes that one device needs for an update of so many rows at once, without weights and gradients; an estimate.

    `item`: bytes of a number in the compute dtype. `chunk`: tokens whose logits exist at once. `whole_scores`: attention makes
    an array of at most so many scores whole, and computes a larger one in blocks (kernels of GPUs and TPUs: 0).
    `remat` says what stays in memory for the backward pass. One layer is computed at a time, with all its arrays, mostly in
    float32. The factors were chosen to match what XLA reserves on a CPU for 11 shapes (docs/measurements.md).
    """
    tokens = rows * layout.length
    hidden, ffn = 4.0 * tokens * model.hidden, 4.0 * tokens * model.ffn
    scores = _scores(model, layout, rows, whole_scores)
    relative_size = item / 4  # of a number in the compute dtype, to one in float32
    saved_by_layer = {
        "none": relative_size * (8 * hidden + 4.5 * ffn) + 2.5 * scores,
        "dots": relative_size * (5 * hidden + 2 * ffn),
        "layer": relative_size * hidden,
        "offload": 0.0,
    }[remat]
    one_layer = 5 * hidden + 5 * ffn + 3 * scores
    scored_tokens = min(chunk, rows * layout.group * layout.completion)
    return model.layers * saved_by_layer + one_layer + 2.5 * 4 * scored_tokens * model.vocabulary


def _scores(model: Decoder, layout: GroupLayout, rows: float, whole_scores: float) -> float:
    """Bytes of those attention scores of one layer, in float32, that exist at once."""
    completions = layout.group * layout.completion
    count = rows * model.heads * (layout.prompt**2 + completions * (layout.prompt + layout.completion))
    if count > whole_scores:
        count = min(count, rows * model.heads * BLOCK * (layout.prompt + layout.completion))
    return 4.0 * count


def layout_of(config: RunConfig, workload: Workload) -> GroupLayout:
    """The longest row of a step, as `shared.training.rollouts.layout_of` makes it."""
    prompt, bucket = config.rollout.max_prompt_tokens, config.learner.length_bucket
    if bucket:
        prompt = min(prompt, -(-workload.prompt_tokens // bucket) * bucket)
    group = config.grpo.group_size if config.learner.group_layout else 1
    return GroupLayout(prompt=prompt, group=group, completion=config.rollout.max_new_tokens)


def rows_of(config: RunConfig) -> int:
    """How many rows a step's batch has."""
    return config.grpo.questions_per_step * (1 if config.learner.group_layout else config.grpo.group_size)


def tokens_line(prompts: Sequence[np.ndarray], new_tokens: int, note: str = "") -> str:
    """A line on the tokens of the prompts (ids `[time]` each), and on the most that a completion may have."""
    lengths = [len(prompt) for prompt in prompts]
    return (
        f"tokens   prompts: median {int(np.median(lengths)):,}, longest {max(lengths):,}; completions: at most "
        f"{new_tokens:,}{note}"
    )


def cut_line(prompts: Sequence[np.ndarray], config: RunConfig) -> str:
    """A line on prompts that are longer than `rollout.max_prompt_tokens`, and how to keep them whole; "" where there are none."""
    limit = config.rollout.max_prompt_tokens
    lengths = [len(prompt) for prompt in prompts]
    cut = sum(length > limit for length in lengths)
    if not cut:
        return ""
    what = "lose their beginning" if config.grpo.overlong_prompts == "truncate_left" else "are left out"
    return (
        f"warning  {cut:,} of {len(lengths):,} prompts are longer than rollout.max_prompt_tokens = {limit:,} and {what}; "
        f"--config.rollout.max_prompt_tokens={max(lengths)} keeps them whole"
    )


def memory_line(sizes: Memory) -> str:
    """A line on the memory that is needed and the memory that is free. Every program says it in these words."""
    parts = {
        "weights": sizes.weights,
        "gradients": sizes.gradients,
        "optimizer state": sizes.optimizer_state,
        "reference": sizes.reference,
        "KV cache": sizes.kv_cache,
        "temporaries": sizes.temporaries,
        "free": sizes.free,
    }
    listed = ", ".join(f"{name} {memory.text(size)}" for name, size in parts.items() if size)
    when = "in an update" if sizes.learns else "while it generates"
    return f"memory   about {memory.text(sizes.needed)} needed on {sizes.place}, most of it {when}: {listed}{_shortage(sizes)}"


def _shortage(sizes: Memory) -> str:
    """What will happen where the estimate, but not the least need, is above the free memory; "" where all fits."""
    if sizes.free is None or sizes.needed <= sizes.free:
        return ""
    fewer = dataclasses.replace(sizes, kv_cache=sizes.least_kv_cache)
    return "; fewer slots will decode at once" if fewer.needed <= sizes.free else "; it may not fit"


def disk_line(config: RunConfig, need: Need, folder: Path | str) -> str:
    """Lines on the disk that checkpoints take, the disk that is free, and the steps that are lost if the machine fails."""
    keep, every = config.checkpoint.keep, min(config.checkpoint.every, config.steps)
    size = memory.text(need.checkpoint_bytes)
    free = "free: not known" if buckets.is_address(folder) else f"free {memory.text(free_disk(Path(folder)))}"
    return (
        f"disk     checkpoints of {size}: up to {memory.text(disk_needed(config, need))} with {keep} kept and one that is "
        f"written; {free}\n"
        f"at risk  if the machine fails, at most {every:,} of the {config.steps:,} steps must be computed again (a checkpoint "
        f"is written every {config.checkpoint.every:,} steps: checkpoint.every)"
    )


def disk_needed(config: RunConfig, need: Need) -> float:
    """Bytes of the checkpoints that stay and of the one that is being written; a short run makes fewer."""
    saves = -(-config.steps // config.checkpoint.every)
    return min(saves, config.checkpoint.keep + 1) * need.checkpoint_bytes


def free_disk(folder: Path) -> int:
    """Free bytes on the disk where a folder is, or will be."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(nearest).free


def refuse(config: RunConfig, need: Need, workload: Workload, *, folder: Path | str | None) -> None:
    """Raise InputError where the run cannot fit, even if temporaries are half of their estimate.

    The disk must have room for two checkpoints in `folder`; None: this process writes none.
    """
    sizes = need.memory
    if sizes.free is not None and sizes.least > sizes.free:
        raise InputError(
            f"{memory_line(sizes).removeprefix('memory   ')}; it cannot fit; what helps: {_helps(config, sizes, workload)}"
        )
    if folder is None or buckets.is_address(folder):
        return
    needed, free = min(2 * need.checkpoint_bytes, disk_needed(config, need)), free_disk(Path(folder))
    if needed > free:
        raise InputError(
            f"{folder}: checkpoints need {memory.text(needed)} and {memory.text(free)} are free; what helps: room on this "
            "disk, checkpoint.folder on another one"
        )


def _helps(config: RunConfig, sizes: Memory, workload: Workload) -> str:
    """Changes of the config by which the run would need less memory."""
    helps, rollout = [], config.rollout
    prompts_are_shorter = workload.prompt_tokens < 0.9 * rollout.max_prompt_tokens
    if sizes.learns and sizes.update_temporaries > sizes.gradients:
        if prompts_are_shorter and not config.learner.length_bucket:
            helps.append(f"rollout.max_prompt_tokens = {workload.prompt_tokens} (the longest prompt)")
        if config.learner.micro_batch_rows > 1:
            helps.append("learner.micro_batch_rows = 1")
        if config.learner.remat == "none":
            helps.append("learner.remat = 'layer'")
        helps.append(f"fewer rollout.max_new_tokens (now {rollout.max_new_tokens}) or grpo.group_size")
    elif not sizes.learns and sizes.kv_cache + sizes.rollout_temporaries > sizes.weights:
        helps.append(f"fewer new tokens (now {rollout.max_new_tokens}), a smaller rollout.prefill_batch")
    if sizes.reference:
        helps.append("grpo.beta = 0 (no reference)")
    return ", ".join([*helps, "a smaller model", "more memory or more devices"])
