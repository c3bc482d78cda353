"""What the benchmarks share: a random model, filled batches, alternating repetitions, a table."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from configs import quickstart
from creason_jax.backend import Backend
from creason_jax.learner import Learner
from shared import grpo, initial
from shared.config import ModelConfig, validate
from shared.grpo import GroupBatch, GroupLayout

FLAGS = flags.FLAGS
QUICKSTART = validate(quickstart.get_config()).model  # its vocabulary is the tokenizer's upper bound


def define_flags(seconds: float) -> None:
    """Flags of every benchmark; `seconds` is the default of --seconds."""
    flags.DEFINE_float("seconds", seconds, "Time for the repetitions, after one of each that is not counted.")
    flags.DEFINE_integer("repeats", 3, "Repetitions of each at least, whatever --seconds says.", lower_bound=1)


def write_model(folder: Path, model: ModelConfig, *, seed: int = 0) -> Path:
    """A model directory with random weights."""
    folder.mkdir()
    initial.write_model(model, folder, vocab_size=model.vocab_size, bos=1, eos=2, pad=0, seed=seed)
    return folder


def learner(folder: Path, layout: GroupLayout, **options: Any) -> Learner:
    """A learner on all devices for rows of `layout`; `options` are fields of LearnerConfig."""
    config = validate(
        {
            "name": "benchmark",
            "grpo": {"group_size": max(2, layout.group)},
            "rollout": {"max_prompt_tokens": layout.prompt, "max_new_tokens": layout.completion},
            "learner": {"compute_dtype": "float32", "remat": "none", **options},
        }
    )
    return Backend(config).learner(config, folder, optimizer=config.optimizer, steps=1_000, reference=False)


def filled_batch(rows: int, layout: GroupLayout, vocabulary: int, *, seed: int = 0) -> GroupBatch:
    """Random groups without any padding, with the reference log-probabilities that the paper's loss needs."""
    rng = np.random.default_rng(seed)
    prompts = list(rng.integers(3, vocabulary, (rows, layout.prompt)))
    completions = [list(each) for each in rng.integers(3, vocabulary, (rows, layout.group, layout.completion))]
    batch = grpo.pack(prompts, completions, layout, advantages=rng.normal(size=(rows, layout.group)))
    reference = rng.normal(-np.log(vocabulary), 0.1, batch.tokens.shape).astype(np.float32)
    return dataclasses.replace(batch, ref_logprobs=reference * batch.completion_mask)


def alternate(cases: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each case. They take turns, so that a change in the machine's load meets all of them; the first
    turn compiles and is not counted."""
    for run in cases.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in cases}
    begin = time.perf_counter()
    rounds = 0
    while rounds < FLAGS.repeats or time.perf_counter() - begin < FLAGS.seconds:
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(seconds) for name, seconds in found.items()}


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as they need, the first to the left, numbers to the right."""
    lines = [heading, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for line in lines:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        print("  ".join([first, *others]).rstrip())
