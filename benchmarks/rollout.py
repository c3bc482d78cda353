"""Generated tokens a second: a prompt computed once for its group, the same engine with every prompt on its own, and
Hugging Face's `generate`, all greedy and with the same weights.

python -m benchmarks.rollout [--seconds=20] [--questions=16] [--prompt=240] [--completion=24] [--group_size=8]
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measure
from creason_jax.backend import Backend
from launch import app
from shared.backend import Sampling
from shared.config import validate

FLAGS = flags.FLAGS
OWN, HUGGING_FACE = "engine, every prompt on its own", "Hugging Face generate"
STOP = measure.QUICKSTART.vocab_size - 1


def engine_case(folder: Path, prompts: list[np.ndarray], group: int) -> Callable[[], list[np.ndarray]]:
    """A run of the engine with `group` samples of each prompt and all prompts at once; returns every completion."""
    config = validate(
        {
            "name": "benchmark",
            "rollout": {
                "max_prompt_tokens": FLAGS.prompt,
                "max_new_tokens": FLAGS.completion,
                "slots": len(prompts),
                "prefill_batch": len(prompts),
            },
            "learner": {"compute_dtype": "float32"},
        }
    )
    backend = Backend(config)
    engine = backend.engine(config, folder, stop_tokens=[STOP])
    backend.load(engine, folder)
    sampling = Sampling(group_size=group, temperature=0.0, max_new_tokens=FLAGS.completion)

    def run() -> list[np.ndarray]:
        return [each.tokens for samples in engine.generate(prompts, sampling, None) for each in samples]

    return run


def hugging_face_case(folder: Path, prompts: list[np.ndarray]) -> Callable[[], list[np.ndarray]] | None:
    """A run of `generate` on the same prompts, or None where PyTorch is not installed."""
    try:
        import torch
    except ImportError:
        return None
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.tensor(np.stack(prompts), dtype=torch.long)
    options: dict[str, Any] = {"max_new_tokens": FLAGS.completion, "do_sample": False, "eos_token_id": STOP}

    def run() -> list[np.ndarray]:
        with torch.inference_mode():
            found = network.generate(tokens, attention_mask=torch.ones_like(tokens), pad_token_id=0, **options)
        return [_until_stop(row[tokens.shape[1] :].numpy()) for row in found]

    return run


def _until_stop(tokens: np.ndarray) -> np.ndarray:
    stops = np.flatnonzero(tokens == STOP)
    return tokens[: stops[0] + 1] if len(stops) else tokens


def main() -> None:
    """Print the table, with ratios to the engine's prompts on their own and, where it is installed, to Hugging Face."""
    rng = np.random.default_rng(0)
    prompts = list(rng.integers(3, STOP, (FLAGS.questions, FLAGS.prompt)).astype(np.int32))
    repeated = [prompt for prompt in prompts for _ in range(FLAGS.group_size)]
    with tempfile.TemporaryDirectory() as folder:
        path = measure.write_model(Path(folder) / "model", measure.QUICKSTART)
        cases = {
            "engine, prompt once for its group": engine_case(path, prompts, FLAGS.group_size),
            OWN: engine_case(path, repeated, 1),
        }
        reference = hugging_face_case(path, repeated)
    if reference is not None:
        cases[HUGGING_FACE] = reference
    completions = {name: run() for name, run in cases.items()}
    seconds = measure.alternate(cases)
    speed = {name: sum(map(len, completions[name])) / seconds[name] for name in cases}

    def beside(name: str, other: str) -> list[str]:
        if other not in cases:
            return ["-", "-"]
        same = [np.array_equal(a, b) for a, b in zip(completions[name], completions[other])]
        return [f"{speed[name] / speed[other]:.2f}", f"{np.mean(same):.0%}"]

    lines = [[name, f"{speed[name]:,.0f}", *beside(name, OWN), *beside(name, HUGGING_FACE)] for name in cases]
    print(f"{FLAGS.questions} prompts of {FLAGS.prompt} tokens, {FLAGS.group_size} completions of {FLAGS.completion}")
    heading = ["", "tokens/s", "to prompts on their own", "equal", "to Hugging Face", "equal"]
    measure.print_table(heading, lines)


if __name__ == "__main__":
    measure.define_flags(seconds=20)
    flags.DEFINE_integer("questions", 16, "Prompts.", lower_bound=1)
    flags.DEFINE_integer("prompt", 240, "Tokens of each prompt.", lower_bound=1)
    flags.DEFINE_integer("completion", 24, "New tokens of each completion.", lower_bound=1)
    flags.DEFINE_integer("group_size", 8, "Completions of each prompt.", lower_bound=1)
    app.run(main)
