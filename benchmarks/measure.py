"""What the benchmarks share: random models and batches, peak rates of the devices, alternating repetitions, a table."""

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
QUICKSTART = validate(quickstart.get_config()).model  # with the largest vocabulary that its tokenizer may have
MODELS = {
    "quickstart": QUICKSTART,
    "5M": ModelConfig(
        family="qwen2", vocab_size=4_096, hidden_size=256, intermediate_size=704,
        num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4,
    ),
    # The sizes of Llama 3.2 1B and Qwen3 4B, with heads of 64 and 80.
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
    """Define the flags of every benchmark; `seconds` is the default of --seconds."""
    flags.DEFINE_float(
        "seconds", seconds, "Time for all repetitions. One more run of each case comes first, not counted."
    )
    flags.DEFINE_integer(
        "repeats", 3, "Least number of repetitions of each case, whatever --seconds is.", lower_bound=1
    )


def write_model(folder: Path, model: ModelConfig, *, seed: int = 0) -> Path:
    """Write a Hugging Face model directory with random weights; returns `folder`."""
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
    """A batch of `rows` random groups without padding, with the reference log-probabilities that the paper's loss needs."""
    rng = np.random.default_rng(seed)
    prompts = list(rng.integers(3, vocabulary, (rows, layout.prompt)))
    completions = [list(group) for group in rng.integers(3, vocabulary, (rows, layout.group, layout.completion))]
    batch = grpo.pack(prompts, completions, layout, advantages=rng.normal(size=(rows, layout.group)))
    reference = rng.normal(-np.log(vocabulary), 0.1, batch.tokens.shape).astype(np.float32)
    return dataclasses.replace(batch, ref_logprobs=reference * batch.completion_mask)


def product_rate(dtype: str) -> float:
    """FLOPs per second of a large square matrix product on one device: the peak rate for a learner's MFU."""
    size = 1_024 if jax.default_backend() == "cpu" else 8_192
    matrix = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: a @ b)
    return 2.0 * size**3 / _median(lambda: product(matrix, matrix).block_until_ready())


def copy_rate() -> float:
    """Bytes per second that one device reads and writes in a copy: the peak rate for decoding."""
    size = 2**26 if jax.default_backend() == "cpu" else 2**29
    source = jnp.ones(size, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 8.0 * size / _median(lambda: copy(source).block_until_ready())


def _median(run: Callable[[], Any], repeats: int = 7) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def alternate(cases: Mapping[str, Callable[[], Any]]) -> dict[str, float]:
    """The median seconds of each case.

    The cases run in turn, so that a change in the machine's load affects all of them. The first run of each compiles and is not
    counted."""
    for run in cases.values():
        run()
    case_seconds: dict[str, list[float]] = {name: [] for name in cases}
    begin = time.perf_counter()
    rounds = 0
    while rounds < FLAGS.repeats or time.perf_counter() - begin < FLAGS.seconds:
        for name, run in cases.items():
            start = time.perf_counter()
            run()
            case_seconds[name].append(time.perf_counter() - start)
        rounds += 1
    return {name: statistics.median(seconds) for name, seconds in case_seconds.items()}


def print_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: each column as wide as its longest cell, the first column left-aligned, the others right-aligned."""
    lines = [heading, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heading))]
    for line in lines:
        first, *others = (cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths)))
        print("  ".join([first, *others]).rstrip())
