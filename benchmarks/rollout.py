"""Generated tokens per second of three cases: the engine with each prompt computed once for its group, the engine with a prompt
for each completion, and Hugging Face's `generate`. All are greedy and have the same weights.

    python -m benchmarks.rollout [--model=quickstart] [--questions=16] [--prompt=240] [--completion=24] [--group_size=8]
    python -m benchmarks.rollout --model=1B --dtype=bfloat16 --prompt=1024 --completion=256                   (a GPU)

For every token, decoding reads every weight, and the keys and values so far. The last column is the rate of these reads, divided
by the rate at which the device copies memory, measured in the same run. Weights in a processor's cache are read faster than that.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import measure
from creason_jax.backend import Backend
from creason_jax.mesh import memory
from creason_jax.rollout.engine import Engine
from launch import app
from shared.backend import Sampling
from shared.config import validate

FLAGS = flags.FLAGS
TOGETHER = "engine, prompt once for its group"
OWN, HUGGING_FACE = "engine, every prompt on its own", "Hugging Face generate"
Run = Callable[[], list[np.ndarray]]


def engine_case(folder: Path, prompts: list[np.ndarray], group: int, stop: int) -> tuple[Engine, Run]:
    """The engine, and a function that generates `group` samples of each prompt, all prompts at once, and returns them."""
    config = validate(
        {
            "name": "benchmark",
            "rollout": {
                "max_prompt_tokens": FLAGS.prompt,
                "max_new_tokens": FLAGS.completion,
                "slots": len(prompts),
                "prefill_batch": len(prompts),
            },
            "evaluation": {"slots": len(prompts)},
            "learner": {"compute_dtype": FLAGS.dtype},
        }
    )
    backend = Backend(config)
    engine = backend.engine(config, folder, stop_tokens=[stop])
    backend.load(engine, folder)
    sampling = Sampling(group_size=group, temperature=0.0, max_new_tokens=FLAGS.completion)

    def run() -> list[np.ndarray]:
        return [completion.tokens for samples in engine.generate(prompts, sampling, None) for completion in samples]

    return engine, run


def read_rate(engine: Engine, group: int, run: Run) -> float:
    """Bytes per second of weights, keys and values that one device reads while it decodes."""
    engine.seconds()
    steps = max(map(len, run())) - 1
    width = jnp.dtype(engine.dtype).itemsize
    # An embedding that is not also the output projection is read only at the tokens' rows.
    table = 0 if engine.model.tie_word_embeddings else memory.bytes_on_device(engine.params["embed"])
    weights = memory.bytes_on_device(engine.params) - table
    token = 2 * width * engine.model.num_hidden_layers * engine.model.num_key_value_heads * engine.model.head_dim
    prompts = FLAGS.questions * FLAGS.group_size // group
    caches = token * prompts * (FLAGS.prompt + group * steps / 2) / jax.device_count()
    return steps * (weights + caches) / engine.seconds()["decode"]


def hugging_face_case(folder: Path, prompts: list[np.ndarray], stop: int) -> Run | None:
    """A function that runs Hugging Face's `generate` on the prompts; None if PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, FLAGS.dtype))
    network = network.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    tokens = torch.tensor(np.stack(prompts), dtype=torch.long, device=network.device)
    options: dict[str, Any] = {"max_new_tokens": FLAGS.completion, "do_sample": False, "eos_token_id": stop}

    def run() -> list[np.ndarray]:
        with torch.inference_mode():
            sequences = network.generate(tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, **options)
        return [_until_stop(row[tokens.shape[1] :].cpu().numpy(), stop) for row in sequences]

    return run


def _until_stop(tokens: np.ndarray, stop: int) -> np.ndarray:
    stops = np.flatnonzero(tokens == stop)
    return tokens[: stops[0] + 1] if len(stops) else tokens


def main() -> None:
    """Print the table, with ratios to the engine with separate prompts and, if PyTorch is installed, to Hugging Face."""
    model = measure.MODELS[FLAGS.model]
    stop = model.vocab_size - 1
    rng = np.random.default_rng(0)
    prompts = list(rng.integers(3, stop, (FLAGS.questions, FLAGS.prompt)).astype(np.int32))
    repeated = [prompt for prompt in prompts for _ in range(FLAGS.group_size)]
    with tempfile.TemporaryDirectory() as folder:
        path = measure.write_model(Path(folder) / "model", model)
        engines = {
            TOGETHER: engine_case(path, prompts, FLAGS.group_size, stop),
            OWN: engine_case(path, repeated, 1, stop),
        }
        reference = hugging_face_case(path, repeated, stop)
    cases = {name: run for name, (_, run) in engines.items()}
    if reference is not None:
        cases[HUGGING_FACE] = reference
    completions = {name: run() for name, run in cases.items()}
    seconds = measure.alternate(cases)
    speed = {name: sum(map(len, completions[name])) / seconds[name] for name in cases}

    def ratio_and_equal(name: str, other: str) -> list[str]:
        if other not in cases:
            return ["-", "-"]
        same = [np.array_equal(a, b) for a, b in zip(completions[name], completions[other])]
        return [f"{speed[name] / speed[other]:.2f}", f"{np.mean(same):.0%}"]

    copied = measure.copy_rate()
    groups = {TOGETHER: FLAGS.group_size, OWN: 1}
    read = {name: f"{read_rate(engine, groups[name], run) / copied:.0%}" for name, (engine, run) in engines.items()}
    lines = [
        [
            name,
            f"{speed[name]:,.0f}",
            *ratio_and_equal(name, OWN),
            *ratio_and_equal(name, HUGGING_FACE),
            read.get(name, "-"),
        ]
        for name in cases
    ]
    print(
        f"{FLAGS.questions} prompts of {FLAGS.prompt} tokens, {FLAGS.group_size} completions of {FLAGS.completion}, "
        f"{FLAGS.dtype}; a copy: {copied / 1e9:.0f} GB/s on {jax.devices()[0].device_kind}"
    )
    heading = ["", "tokens/s", "to prompts on their own", "equal", "to Hugging Face", "equal", "read, of a copy's rate"]
    measure.print_table(heading, lines)


if __name__ == "__main__":
    measure.define_flags(seconds=20)
    flags.DEFINE_enum("model", "quickstart", list(measure.MODELS), "Size.")
    flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of weights and sums.")
    flags.DEFINE_integer("questions", 16, "Prompts.", lower_bound=1)
    flags.DEFINE_integer("prompt", 240, "Tokens of each prompt.", lower_bound=1)
    flags.DEFINE_integer("completion", 24, "New tokens of each completion.", lower_bound=1)
    flags.DEFINE_integer("group_size", 8, "Completions of each prompt.", lower_bound=1)
    app.run(main)
