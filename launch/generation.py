"""A model directory that answers, for programs that train nothing: its flags, its configuration, its engine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from absl import flags
from transformers import PreTrainedTokenizerFast

from launch import app, backends
from shared.backend import Backend, RolloutEngine, Workload
from shared.config import GrpoConfig, LearnerConfig, ModelConfig, RolloutConfig, RunConfig, TorchConfig
from shared.errors import InputError
from shared.evaluation.engine_check import Forced, check_by_file
from shared.policy.tokenizer import special_tokens
from shared.questions import prompt_style
from shared.questions.prompts import PromptStyle
from shared.questions.turns import end_of_turn_warning
from shared.runs import forecast

FLAGS = flags.FLAGS


def define_flags(*, long_prompts: str, max_new_tokens: int) -> None:
    """Define the flags of whatever generates; `long_prompts` says what becomes of a prompt that is too long."""
    backends.define_flags("Which engine generates.")
    flags.DEFINE_enum(
        "engine", "auto", ["auto", "vllm", "server", "hf"],
        "For torch: auto takes vLLM where it is installed; server asks a running vLLM server.",
    )  # fmt: skip
    flags.DEFINE_string("server_url", "", "Address of that server, e.g. http://node8:8000 (docs/gpu.md).")
    flags.DEFINE_string(
        "server_weights", "", "Folder that the server sees too: the model's weights are brought through it."
    )
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
    flags.DEFINE_string(
        "prefill", "auto",
        "What an answer begins with; empty: nothing. auto: as in the run that wrote the model (its prompts.json), else by its "
        "chat template.",
    )  # fmt: skip
    flags.DEFINE_enum(
        "thinking", "auto", ["auto", "on", "off"], "A template's switch for thinking (Qwen3); auto: as prefill."
    )
    flags.DEFINE_string(
        "template_date", "",
        "Today for a chat template that shows the date, as 2026-11-26; empty: as in the run, or in --out, else this day.",
    )  # fmt: skip


def config_of(
    folder: Path,
    *,
    questions: int,
    samples: int = 1,
    answer_rule: Literal["strict_first", "lenient_last"] = "strict_first",
    **sections: Any,
) -> RunConfig:
    """The configuration by which the model in `folder` answers so many questions, each with so many samples.

    `answer_rule` says how its boxes are read (`shared.questions.boxes`); `sections` are further fields of RunConfig.
    Raises InputError for flags that do not go together.
    """
    _check_server()
    slots = min(FLAGS.slots, questions)
    return RunConfig(
        name=folder.name,
        model=ModelConfig(
            path=str(folder), prefill=FLAGS.prefill, thinking=FLAGS.thinking, template_date=FLAGS.template_date
        ),
        # Nothing is trained: a step is as many questions as are answered at once.
        grpo=GrpoConfig(beta=0.0, questions_per_step=slots, group_size=max(2, samples), answer_rule=answer_rule),
        rollout=RolloutConfig(
            max_prompt_tokens=FLAGS.max_prompt_tokens, max_new_tokens=FLAGS.max_new_tokens, slots=slots
        ),
        learner=LearnerConfig(compute_dtype=FLAGS.compute_dtype),
        torch=TorchConfig(
            rollout_engine=FLAGS.engine, server_url=FLAGS.server_url, server_weights=FLAGS.server_weights
        ),
        **sections,
    )


def style_of(config: RunConfig, folder: Path, tokenizer: PreTrainedTokenizerFast, out: Path) -> PromptStyle:
    """How the prompts of the model in `folder` are rendered; on the day of an earlier start with the same `out`.

    Raises InputError where the flags ask for what its chat template cannot do.
    """
    return prompt_style.choose(
        config.model, folder, tokenizer, earlier=prompt_style.read(out, prompt_style.EVALUATION_FILE)
    )


def begin(
    config: RunConfig, backend: Backend, tokenizer: PreTrainedTokenizerFast, style: PromptStyle, out: Path
) -> None:
    """Keep the style in `out` and show it, and warn of completions that would not end. Every process calls it."""
    prompt_style.check_same_day(style, backend)
    app.goes_on()  # whatever is answered from here on is kept
    if backend.process > 0:
        return
    prompt_style.write(out, style, prompt_style.EVALUATION_FILE)
    print(prompt_style.style_line(style, config.model, tokenizer))
    warning = end_of_turn_warning(tokenizer, special_tokens(tokenizer, Path(config.model.path)).stop)
    if warning:
        print(warning, file=sys.stderr)


def tell(config: RunConfig, backend: Backend, prompts: Sequence[np.ndarray], *, forced: Forced | None = None) -> None:
    """Say how long the prompts are, and what memory the answers need; no weights are read. Every process calls it.

    Raises InputError where it cannot fit.
    """
    workload = _workload(prompts, forced)
    need = backend.need(config, Path(config.model.path), workload, trains=False)
    if backend.process == 0:
        limit = config.evaluation.max_new_tokens or config.rollout.max_new_tokens
        print(f"{forecast.tokens_line(prompts, limit)}\n{forecast.memory_line(need.memory)}", flush=True)
    forecast.refuse(config, need, workload, folder=None)


def _workload(prompts: Sequence[np.ndarray], forced: Forced | None) -> Workload:
    scored_tokens = 0 if forced is None else len(forced.phrase) + 1
    return Workload(prompt_tokens=max(map(len, prompts)), questions=len(prompts), scored_tokens=scored_tokens)


def engine_of(
    config: RunConfig,
    backend: Backend,
    prompts: Sequence[np.ndarray],
    *,
    stop: Sequence[int],
    forced: Forced | None = None,
) -> tuple[RolloutEngine, dict[str, float | str]]:
    """The backend's engine for these prompts, with the weights in `config.model.path`, and what was found of it.

    `stop`: tokens that end a completion; `forced`: what a forced choice asks for. Raises SyncError where the engine does not
    compute what these weights do, on some of the `prompts` that it is to answer.
    """
    folder = Path(config.model.path)
    workload = _workload(prompts, forced)
    engine = backend.engine(config, folder, stop_tokens=stop, workload=workload)
    backend.load(engine, folder)
    return engine, check_by_file(config, backend, engine, prompts, folder, forced)


def _check_server() -> None:
    """Raise InputError unless the flags of a server go with the engine that it is, and are there where it is wanted."""
    wanted = FLAGS.engine == "server"
    for name in ("server_url", "server_weights"):
        if FLAGS[name].present and not wanted:
            raise InputError(f"--{name}: only --engine=server reads it; leave it out, or give that engine")
        if wanted and not FLAGS[name].value:
            raise InputError(f"--{name}: --engine=server needs it (docs/gpu.md)")
