"""A model directory that answers, for programs that train nothing: its flags, its configuration, its engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from launch import backends
from shared.backend import Backend, RolloutEngine, Workload
from shared.config import GrpoConfig, LearnerConfig, ModelConfig, RolloutConfig, RunConfig, TorchConfig

FLAGS = flags.FLAGS


def define_flags(*, long_prompts: str, max_new_tokens: int) -> None:
    """Define the flags of whatever generates; `long_prompts` says what becomes of a prompt that is too long."""
    backends.define_flags("Which engine generates.")
    flags.DEFINE_enum("engine", "auto", ["auto", "vllm", "hf"], "For torch: auto takes vLLM where it is installed.")
    flags.DEFINE_integer("max_prompt_tokens", 9_000, long_prompts, lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", max_new_tokens, "Length limit of a completion.", lower_bound=1)
    flags.DEFINE_integer(
        "slots",
        64,
        "Prompts answered at once, at most: fewer where there are fewer, or memory holds fewer.",
        lower_bound=1,
    )
    flags.DEFINE_enum(
        "compute_dtype", "auto", ["auto", "bfloat16", "float32"],
        "Number format of the computation; auto: bfloat16 where the device is faster in it, else float32.",
    )  # fmt: skip


def config_of(folder: Path, *, questions: int, samples: int = 1, **sections: Any) -> RunConfig:
    """The configuration by which the model in `folder` answers so many questions, each with so many samples.

    `sections` are further fields of RunConfig.
    """
    slots = min(FLAGS.slots, questions)
    return RunConfig(
        name=folder.name,
        model=ModelConfig(path=str(folder)),
        # Nothing is trained: a step is as many questions as are answered at once.
        grpo=GrpoConfig(beta=0.0, questions_per_step=slots, group_size=max(2, samples)),
        rollout=RolloutConfig(
            max_prompt_tokens=FLAGS.max_prompt_tokens, max_new_tokens=FLAGS.max_new_tokens, slots=slots
        ),
        learner=LearnerConfig(compute_dtype=FLAGS.compute_dtype),
        torch=TorchConfig(rollout_engine=FLAGS.engine),
        **sections,
    )


def engine_of(
    config: RunConfig, backend: Backend, prompts: Sequence[np.ndarray], *, stop: Sequence[int], scored_tokens: int = 0
) -> RolloutEngine:
    """The backend's engine for these prompts, with the weights in `config.model.path`.

    `stop`: tokens that end a completion; `scored_tokens`: see `Workload`.
    """
    folder = Path(config.model.path)
    workload = Workload(prompt_tokens=max(map(len, prompts)), questions=len(prompts), scored_tokens=scored_tokens)
    engine = backend.engine(config, folder, stop_tokens=stop, workload=workload)
    backend.load(engine, folder)
    return engine
