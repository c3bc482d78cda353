"""What the benchmarks share: random models, filled batches, what the devices can do, alternating repetitions, a table."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from configs import quickstart
from creason_jax.backend import Backend
from creason_jax.learner.learner import Learner
from shared import grpo
from shared.config import ModelConfig, validate
from shared.grpo import GroupBatch, GroupLayout
from shared.policy import initial

FLAGS = flags.FLAGS
QUICKSTART = validate(quickstart.get_config()).model  # its vocabulary is the tokenizer's upper bound
MODELS = {
    "quickstart": QUICKSTART,
    "5M": ModelConfig(
        family="qwen2", vocab_size=4_096, hidden_size=256, intermediate_size=704,
        num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
    ),
    # Of the sizes of Llama 3.2 1B and Qwen3 4B, with heads of 64 and 80.
    "1B": ModelConfig(
        family="llama", vocab_size=128_256, hidden_size=2_048, intermediate_size=8_192,
        num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True,
    ),
    "4B": ModelConfig(
        family="llama", vocab_size=151_936, hidden_size=2_560, intermediate_size=9_728,
        num_hidden_layers=36, num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True,
    ),
}  # fmt: skip


def define_flags(seconds: float) -> None:
    """Flags of every benchmark; `seconds` is the default of --seconds."""
    flags.DEFINE_float("seconds", seconds, "Time for the repetitions, after one of each that is not counted.")
    flags.DEFINE_integer("repeats", 3, "Repetitions of each at least, whatever --seconds says.", lower_bound=1)


def write_model(folder: Path, model: ModelConfig, *, seed: int = 0) -> Path:
    """A model directory with random weights."""
    folder.mkdir()
    initial.write_model(model, folder, vocab_size=model.vocab_size, bos=1, eos=2, pad=0, seed=seed)
    return folder


def learner(folder: Path, layout: GroupLayout, moments_dtype: str = "float32", **options: Any) -> Learner:
    """A learner on all devices for rows of `layout`; `moments_dtype` is of JaxConfig, `options` are fields of LearnerConfig."""
    config = validate(
        {
            "name": "benchmark",
            "grpo": {"group_size": max(2, layout.group)},
            "rollout": {"max_prompt_tokens": layout.prompt, "max_new_tokens": layout.completion},
            "learner": {"compute_dtype": "float32", "remat": "none"} | options,
            "jax": {"moments_dtype": moments_dtype},
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


def product_rate(dtype: str) -> float:
    """FLOPs a second of a large square matrix product on one device: what a learner's MFU is measured against."""
    size = 1_024 if jax.default_backend() == "cpu" else 8_192
    left = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return 2.0 * size**3 / _median(lambda: product(left, left).block_until_ready())


def copy_rate() -> float:
    """Bytes a second that one device reads and writes: what decoding is measured against."""
    size = 2**26 if jax.default_backend() == "cpu" else 2**29
    source = jnp.ones(size, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 8.0 * size / _median(lambda: copy(source).block_until_ready())


def _median(run: Callable[[], Any], repeats: int = 7) -> float:
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


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
