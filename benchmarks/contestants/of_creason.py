"""This project's learner and engine, of the JAX backend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import contest
import numpy as np

from creason_jax.backend import Backend
from shared import grpo
from shared.backend import Sampling
from shared.config import validate
from shared.grpo import GroupLayout

NEVER = -1  # a stop token that is never drawn, so that all completions have the full length


def phases(work: contest.Work) -> Mapping[str, Callable[[], Any]]:
    """The phases, all questions in one micro-batch."""
    questions, group, completion = work.completions.shape
    prompt = work.prompts.shape[1]
    config = validate(
        {
            "name": "contest",
            "grpo": {"group_size": group, "questions_per_step": questions, "beta": contest.BETA},
            "rollout": {
                "max_prompt_tokens": prompt,
                "max_new_tokens": completion,
                "slots": questions,
                "prefill_batch": questions,
                "decode_steps": completion,
            },
            "optimizer": {"learning_rate": contest.LEARNING_RATE},
            "learner": {"compute_dtype": "float32", "remat": "none", "micro_batch_rows": questions},
        }
    )
    backend = Backend(config)
    learner = backend.learner(config, work.model, optimizer=config.optimizer, steps=1_000, reference=True)
    engine = backend.engine(config, work.model, stop_tokens=[NEVER])
    learner.publish(engine)
    layout = GroupLayout(prompt=prompt, group=group, completion=completion)
    batch = grpo.pack(
        list(work.prompts),
        [list(group_tokens) for group_tokens in work.completions],
        layout,
        advantages=work.advantages,
    )
    batch = dataclasses.replace(batch, ref_logprobs=learner.logprobs(batch, "reference"))
    sampling = Sampling(group_size=group, temperature=contest.TEMPERATURE, max_new_tokens=completion)
    uniforms = np.random.default_rng(0).random(work.completions.shape, dtype=np.float32)

    def rollout() -> None:
        groups = engine.generate(list(work.prompts), sampling, uniforms)
        assert all(len(sample.tokens) == completion for samples in groups for sample in samples)

    return {
        contest.ROLLOUT: rollout,
        contest.SCORING: lambda: learner.logprobs(batch, "reference"),
        contest.UPDATE: lambda: learner.update(batch),
    }


if __name__ == "__main__":
    contest.answer(phases)
