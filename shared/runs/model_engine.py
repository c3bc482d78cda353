"""A model directory that writes completions, for what trains nothing: its configuration, prompt style, need and engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from shared.backend import Backend, RolloutEngine, Workload
from shared.config import GrpoConfig, LearnerConfig, ModelConfig, RolloutConfig, RunConfig, TorchConfig
from shared.evaluation.engine_check import Forced, check_by_file
from shared.evaluation.listener import Listener
from shared.evaluation.options import GenerationOptions
from shared.policy.tokenizer import special_tokens
from shared.questions import prompt_style
from shared.questions.prompts import PromptStyle
from shared.questions.turns import end_of_turn_warning
from shared.runs import forecast


def config_of(
    options: GenerationOptions,
    folder: Path,
    *,
    questions: int,
    samples: int = 1,
    answer_rule: Literal["strict_first", "lenient_last"] = "strict_first",
    **sections: Any,
) -> RunConfig:
    """The configuration by which the model in `folder` answers so many questions, each with so many samples.

    `answer_rule` says how its boxes are read (`shared.questions.boxes`); `sections` are further fields of RunConfig.
    Raises InputError for options that a configuration refuses.
    """
    slots = min(options.slots, questions)
    return RunConfig(
        name=folder.name,
        model=ModelConfig(
            path=str(folder), prefill=options.prefill, thinking=options.thinking, template_date=options.template_date
        ),
        # Nothing is trained: a step is as many questions as are answered at once.
        grpo=GrpoConfig(beta=0.0, questions_per_step=slots, group_size=max(2, samples), answer_rule=answer_rule),
        rollout=RolloutConfig(
            max_prompt_tokens=options.max_prompt_tokens, max_new_tokens=options.max_new_tokens, slots=slots
        ),
        learner=LearnerConfig(compute_dtype=options.compute_dtype),
        torch=TorchConfig(
            rollout_engine=options.engine, server_url=options.server_url, server_weights=options.server_weights
        ),
        **sections,
    )


def style_of(config: RunConfig, tokenizer: PreTrainedTokenizerFast, out: Path) -> PromptStyle:
    """How the model's prompts are rendered; on the day of an earlier start with the same `out`.

    Raises InputError where the configuration asks for what the chat template cannot do.
    """
    earlier = prompt_style.read(out, prompt_style.EVALUATION_FILE)
    return prompt_style.choose(config.model, Path(config.model.path), tokenizer, earlier=earlier)


def begin(
    config: RunConfig,
    backend: Backend,
    tokenizer: PreTrainedTokenizerFast,
    style: PromptStyle,
    out: Path,
    listener: Listener,
) -> None:
    """Keep the style in `out` and say it, and warn of completions that would not end. Every process calls it.

    Raises InputError where the processes chose different days.
    """
    prompt_style.check_same_day(style, backend)
    listener.kept()
    if backend.process > 0:
        return
    prompt_style.write(out, style, prompt_style.EVALUATION_FILE)
    listener.line(prompt_style.style_line(style, config.model, tokenizer))
    warning = end_of_turn_warning(tokenizer, special_tokens(tokenizer, Path(config.model.path)).stop)
    if warning:
        listener.warning(warning)


def say_need(
    config: RunConfig,
    backend: Backend,
    prompts: Sequence[np.ndarray],
    listener: Listener,
    *,
    forced: Forced | None = None,
) -> None:
    """Say how long the prompts are, and what memory the answers need; no weights are read. Every process calls it.

    Raises InputError where it cannot fit.
    """
    workload = _workload(prompts, forced)
    need = backend.need(config, Path(config.model.path), workload, trains=False)
    if backend.process == 0:
        limit = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
        listener.line(f"{forecast.tokens_line(prompts, limit)}\n{forecast.memory_line(need.memory)}")
    forecast.refuse(config, need, workload, folder=None)


def engine_of(
    config: RunConfig,
    backend: Backend,
    prompts: Sequence[np.ndarray],
    *,
    stop: Sequence[int],
    forced: Forced | None = None,
) -> tuple[RolloutEngine, dict[str, float | str]]:
    """The backend's engine for these prompts, with the weights in `config.model.path`, and what its check found.

    `stop`: tokens that end a completion; `forced`: what a forced choice asks for. Raises SyncError where the engine does not
    compute what these weights do, on some of the `prompts` that it is to answer.
    """
    folder = Path(config.model.path)
    engine = backend.engine(config, folder, stop_tokens=stop, workload=_workload(prompts, forced))
    backend.load(engine, folder)
    return engine, check_by_file(config, backend, engine, prompts, folder, forced)


def _workload(prompts: Sequence[np.ndarray], forced: Forced | None) -> Workload:
    scored_tokens = 0 if forced is None else len(forced.phrase) + 1
    return Workload(prompt_tokens=max(map(len, prompts)), questions=len(prompts), scored_tokens=scored_tokens)
