"""The flags of a model directory that writes completions, for programs that train nothing."""

from __future__ import annotations

import dataclasses
import functools
import sys
from typing import Any

from absl import flags

from launch import app, backends
from shared.evaluation.listener import Listener
from shared.evaluation.options import GenerationOptions

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


def options() -> GenerationOptions:
    """What the flags say. Raises InputError for flags that do not go together."""
    values: dict[str, Any] = {field.name: FLAGS[field.name].value for field in dataclasses.fields(GenerationOptions)}
    return GenerationOptions(**values)


def listener() -> Listener:
    """Whoever started the program: lines to standard output, warnings to standard error, the bar where `--progress` wants it."""
    return Listener(
        line=functools.partial(print, flush=True),
        warning=functools.partial(print, file=sys.stderr),
        kept=app.goes_on,
        progress=FLAGS.progress,
    )
