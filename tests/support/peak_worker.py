"""One publish, one step's rollouts and two updates in a process of its own: the memory it needs, as forecast
and as taken. Prints both in bytes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import psutil

from shared.backend import Sampling, Workload
from shared.config import validate
from shared.policy.initial import write_model
from shared.training import loop, published
from shared.training.rollouts import Rollouts, make_batch

MODEL = {"vocab_size": 6_144, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
         "num_attention_heads": 8, "num_key_value_heads": 4}  # fmt: skip
PROMPT, LIMIT, GROUP, QUESTIONS = 448, 16, 4, 4


def main(name: str, remat: str, folder: Path) -> None:
    """See above."""
    config = validate(
        {
            "name": "peak",
            "model": MODEL,
            "grpo": {"group_size": GROUP, "questions_per_step": QUESTIONS, "steps": 2},
            "rollout": {"max_prompt_tokens": PROMPT, "max_new_tokens": LIMIT, "slots": QUESTIONS, "prefill_batch": 4},
            "learner": {"compute_dtype": "float32", "micro_batch_rows": 4, "remat": remat},
            "torch": {"rollout_engine": "hf", "zero_stage": 0},
        }
    )
    write_model(config.model, folder, vocab_size=MODEL["vocab_size"], bos=1, eos=3, pad=0, seed=1)
    if name == "jax":
        from creason_jax.backend import Backend
    else:
        from creason_torch.backend import Backend
    backend = Backend(config)
    workload = Workload(prompt_tokens=PROMPT, questions=QUESTIONS)
    need = backend.need(config, folder, workload, trains=True).memory
    before = psutil.Process().memory_info().rss
    learner = backend.learner(config, folder, optimizer=config.optimizer, steps=2, reference=True)
    engine = backend.engine(config, folder, stop_tokens=[3], workload=workload)
    published.publish(learner, engine)
    prompts = [np.arange(4, 4 + PROMPT, dtype=np.int32) + row for row in range(QUESTIONS)]
    sampling = Sampling(group_size=GROUP, temperature=0.9, max_new_tokens=LIMIT)
    draws = np.random.default_rng(1).random((QUESTIONS, GROUP, LIMIT), np.float32)
    completions = engine.generate(prompts, sampling, draws)
    rewards = np.random.default_rng(2).random((QUESTIONS, GROUP))
    rollouts = Rollouts([None] * QUESTIONS, prompts, completions, rewards, {}, rewards > 0)  # type: ignore[list-item]
    batch = make_batch(config, rollouts)
    with_reference = loop.with_logprobs(config, learner, batch)
    for _ in range(2):
        learner.update(with_reference)
        published.publish(learner, engine)
    print(json.dumps({"forecast": need.needed, "taken": peak() - before, "least": need.least}))


def peak() -> int:
    """Bytes that this program held at most. `ru_maxrss` would count what the program that started this one held, too."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    [kibibytes] = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kibibytes) * 1_024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
