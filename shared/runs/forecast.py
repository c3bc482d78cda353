"""What a run will need, said before it is done: tokens, memory, disk, steps at risk. What cannot fit is refused.

State is counted exactly, by each backend (its `plan/forecast.py`). What is temporary is estimated by
`update_temporaries`: docs/measurements.md says how far that is from what was measured.
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

FACTOR = 2.0  # the estimate of temporaries and what is measured are at most this far apart
BLOCK = 128  # queries whose scores exist at once where a row is computed in blocks


class Decoder(NamedTuple):
    """The sizes of a model that temporaries depend on."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    vocabulary: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one device, by what they are for; of several devices the fullest. `free` None: unknown.

    Learning has `gradients` and `update_temporaries`, generating has `kv_cache` and `rollout_temporaries`, one after the other.
    """

    weights: float  # the learner's and the engine's
    gradients: float = 0.0
    optimizer_state: float = 0.0
    reference: float = 0.0
    kv_cache: float = 0.0
    update_temporaries: float = 0.0
    rollout_temporaries: float = 0.0
    free: float | None = None
    least_kv_cache: float = 0.0  # with fewer slots the engine can do, too
    place: str = "this machine"

    @property
    def learns(self) -> bool:
        """Whether an update needs more than generating."""
        return self.gradients + self.update_temporaries >= self.kv_cache + self.rollout_temporaries

    @property
    def temporaries(self) -> float:
        """Of the fuller one of the two."""
        return self.update_temporaries if self.learns else self.rollout_temporaries

    @property
    def needed(self) -> float:
        """At the fullest moment, with all the slots that are asked for."""
        return self._state + max(self.gradients + self.update_temporaries, self.kv_cache + self.rollout_temporaries)

    @property
    def least(self) -> float:
        """What is needed surely: temporaries may be less than estimated by `FACTOR`, and one slot can do."""
        return self._state + max(
            self.gradients + self.update_temporaries / FACTOR, self.least_kv_cache + self.rollout_temporaries / FACTOR
        )

    @property
    def _state(self) -> float:
        return self.weights + self.optimizer_state + self.reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """What a backend says of a run before it begins."""

    memory: Memory
    parameters: int
    checkpoint_bytes: float  # of one checkpoint, all devices together


def update_temporaries(
    model: Decoder, layout: GroupLayout, rows: float, *, item: int, remat: Remat, chunk: int, whole_scores: float
) -> float:
    """Bytes that one device needs for an update of so many rows at once, beside weights and gradients; an estimate.

    `item`: bytes of a number in the compute dtype; `chunk`: tokens whose logits exist at once; `whole_scores`: elements up to
    which attention makes an array of scores whole, beyond them it computes in blocks (kernels of GPUs and TPUs: 0).
    What the backward pass keeps is by `remat`, and one layer is computed with all it
    makes, mostly in float32. The factors were fitted to what XLA reserves on a CPU for 11 shapes (docs/measurements.md).
    """
    tokens = rows * layout.length
    hidden, ffn = 4.0 * tokens * model.hidden, 4.0 * tokens * model.ffn
    scores = _scores(model, layout, rows, whole_scores)
    part = item / 4
    kept = {
        "none": part * (8 * hidden + 4.5 * ffn) + 2.5 * scores,
        "dots": part * (5 * hidden + 2 * ffn),
        "layer": part * hidden,
        "offload": 0.0,
    }[remat]
    working = 5 * hidden + 5 * ffn + 3 * scores
    scored = min(chunk, rows * layout.group * layout.completion)
    return model.layers * kept + working + 2.5 * 4 * scored * model.vocabulary


def _scores(model: Decoder, layout: GroupLayout, rows: float, whole_scores: float) -> float:
    """Bytes of one layer's attention scores in float32, as many of them as exist at once."""
    own = layout.group * layout.completion
    whole = rows * model.heads * (layout.prompt**2 + own * (layout.prompt + layout.completion))
    if whole > whole_scores:
        whole = min(whole, rows * model.heads * BLOCK * (layout.prompt + layout.completion))
    return 4.0 * whole


def layout_of(config: RunConfig, workload: Workload) -> GroupLayout:
    """The longest row of a step, as `shared.training.rollouts.layout_of` makes it."""
    prompt, bucket = config.rollout.max_prompt_tokens, config.learner.length_bucket
    if bucket:
        prompt = min(prompt, -(-workload.prompt_tokens // bucket) * bucket)
    group = config.grpo.group_size if config.learner.group_layout else 1
    return GroupLayout(prompt=prompt, group=group, completion=config.rollout.max_new_tokens)


def rows_of(config: RunConfig) -> int:
    """Rows of a step's batch."""
    return config.grpo.questions_per_step * (1 if config.learner.group_layout else config.grpo.group_size)


def tokens_line(prompts: Sequence[np.ndarray], new_tokens: int, note: str = "") -> str:
    """Tokens of the prompts, and the most that are written behind each."""
    lengths = [len(prompt) for prompt in prompts]
    return (
        f"tokens   prompts: median {int(np.median(lengths)):,}, longest {max(lengths):,}; completions: at most "
        f"{new_tokens:,}{note}"
    )


def cut_line(prompts: Sequence[np.ndarray], config: RunConfig) -> str:
    """What becomes of prompts that are longer than `rollout.max_prompt_tokens`, and how to keep them; "" where none is."""
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


def memory_line(found: Memory) -> str:
    """Memory needed and there, for every program, with the same words."""
    parts = {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer state": found.optimizer_state,
        "reference": found.reference,
        "KV cache": found.kv_cache,
        "temporaries": found.temporaries,
        "free": found.free,
    }
    told = ", ".join(f"{name} {memory.text(size)}" for name, size in parts.items() if size)
    when = "in an update" if found.learns else "while it generates"
    return (
        f"memory   about {memory.text(found.needed)} needed on {found.place}, most of it {when}: {told}{_short(found)}"
    )


def _short(found: Memory) -> str:
    """What becomes of a run that needs more than is free by the estimate, and surely less."""
    if found.free is None or found.needed <= found.free:
        return ""
    fewer = dataclasses.replace(found, kv_cache=found.least_kv_cache)
    return "; fewer slots will decode at once" if fewer.needed <= found.free else "; it may not fit"


def disk_line(config: RunConfig, need: Need, folder: Path | str) -> str:
    """Disk that checkpoints take and that is free, and the steps that a crash puts at risk."""
    keep, every = config.checkpoint.keep, min(config.checkpoint.every, config.steps)
    size = memory.text(need.checkpoint_bytes)
    there = "free: not known" if buckets.is_address(folder) else f"free {memory.text(free_disk(Path(folder)))}"
    return (
        f"disk     checkpoints of {size}: up to {memory.text(disk_needed(config, need))} with {keep} kept and one that is "
        f"written; {there}\n"
        f"at risk  if the machine fails, at most {every:,} of the {config.steps:,} steps must be computed again (a checkpoint "
        f"is written every {config.checkpoint.every:,} steps: checkpoint.every)"
    )


def disk_needed(config: RunConfig, need: Need) -> float:
    """Bytes of the checkpoints that are kept and of the one that is being written; a short run makes fewer."""
    made = -(-config.steps // config.checkpoint.every)
    return min(made, config.checkpoint.keep + 1) * need.checkpoint_bytes


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free


def refuse(config: RunConfig, need: Need, workload: Workload, *, folder: Path | str | None) -> None:
    """Raise InputError where memory cannot hold the run even if temporaries are half of what is estimated, or where the disk
    that checkpoints go to (`folder`; None: there are none) holds fewer than two of them."""
    found = need.memory
    if found.free is not None and found.least > found.free:
        raise InputError(
            f"{memory_line(found).removeprefix('memory   ')}; it cannot fit; what helps: {_helps(config, found, workload)}"
        )
    if folder is None or buckets.is_address(folder):
        return
    wanted, free = min(2 * need.checkpoint_bytes, disk_needed(config, need)), free_disk(Path(folder))
    if wanted > free:
        raise InputError(
            f"{folder}: checkpoints need {memory.text(wanted)} and {memory.text(free)} are free; what helps: room on this "
            "disk, checkpoint.folder on another one"
        )


def _helps(config: RunConfig, found: Memory, workload: Workload) -> str:
    helps, rollout = [], config.rollout
    tight = workload.prompt_tokens < 0.9 * rollout.max_prompt_tokens
    if found.learns and found.update_temporaries > found.gradients:
        if tight and not config.learner.length_bucket:
            helps.append(f"rollout.max_prompt_tokens = {workload.prompt_tokens} (the longest prompt)")
        if config.learner.micro_batch_rows > 1:
            helps.append("learner.micro_batch_rows = 1")
        if config.learner.remat == "none":
            helps.append("learner.remat = 'layer'")
        helps.append(f"fewer rollout.max_new_tokens (now {rollout.max_new_tokens}) or grpo.group_size")
    elif not found.learns and found.kv_cache + found.rollout_temporaries > found.weights:
        helps.append(f"fewer new tokens (now {rollout.max_new_tokens}), a smaller rollout.prefill_batch")
    if found.reference:
        helps.append("grpo.beta = 0 (no reference)")
    return ", ".join([*helps, "a smaller model", "more memory or more devices"])
