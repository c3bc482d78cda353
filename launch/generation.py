"""A model directory that answers, for programs that train nothing: its flags, its configuration, its engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from launch import backends
from shared.backend import Backend, RolloutEngine
from shared.config import GrpoConfig, LearnerConfig, ModelConfig, RolloutConfig, RunConfig, TorchConfig
from shared.engine_check import check_by_file

FLAGS = flags.FLAGS


def define_flags(*, long_prompts: str, max_new_tokens: int) -> None:
    """Define the flags of whatever generates; `long_prompts` says what becomes of a prompt that is too long."""
    backends.define_flags("Which engine generates.")
    flags.DEFINE_enum("engine", "auto", ["auto", "vllm", "hf"], "For torch: auto takes vLLM where it is installed.")
    flags.DEFINE_integer("max_prompt_tokens", 9_000, long_prompts, lower_bound=1)
    flags.DEFINE_integer("max_new_tokens", max_new_tokens, "Length limit of a completion.", lower_bound=1)
    flags.DEFINE_integer("slots", 64, "Prompts answered at once.", lower_bound=1)
    flags.DEFINE_enum("compute_dtype", "bfloat16", ["bfloat16", "float32"], "Number format of the computation.")


def config_of(folder: Path, **sections: Any) -> RunConfig:
    """The configuration by which the model in `folder` answers; `sections` are further fields of RunConfig."""
    return RunConfig(
        name=folder.name,
        model=ModelConfig(path=str(folder)),
        grpo=GrpoConfig(
            beta=0.0, questions_per_step=FLAGS.slots
        ),  # nothing is trained: as many as are answered at once
        rollout=RolloutConfig(
            max_prompt_tokens=FLAGS.max_prompt_tokens, max_new_tokens=FLAGS.max_new_tokens, slots=FLAGS.slots
        ),
        learner=LearnerConfig(compute_dtype=FLAGS.compute_dtype),
        torch=TorchConfig(rollout_engine=FLAGS.engine),
        **sections,
    )


def engine_of(
    config: RunConfig, folder: Path, prompts: Sequence[np.ndarray], *, stop: Sequence[int]
) -> tuple[Backend, RolloutEngine]:
    """The backend that the flags name and its engine, with the weights in `folder`; `stop`: tokens that end a completion.

    Raises SyncError where the engine does not compute what these weights do, on some of the `prompts` that it is to answer.
    """
    backend = backends.make_backend(config)
    engine = backend.engine(config, folder, stop_tokens=stop)
    backend.load(engine, folder)
    check_by_file(config, backend, engine, prompts, folder)
    return backend, engine
