"""How an evaluation was made, for its page: model, questions, rules and versions; names of features; examples if asked for."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from shared.evaluation.options import EvaluationOptions
from shared.registry.features import display_names

EXAMPLES = 2  # of each kind: right, wrong, without a readable answer
PACKAGES = {"jax": ("jax",), "torch": ("torch", "transformers")}  # by backend
RULES_IN_WORDS = {"strict_first": "the first box, strictly", "lenient_last": "the last box, leniently"}


def model_name(options: EvaluationOptions) -> str:
    """The model directory's name, after that of the run where a run has written it; or the name of the file of answers."""
    if options.answers:
        return Path(options.answers).name
    folder = Path(options.model).absolute()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "trained" else folder.name


def origin(
    options: EvaluationOptions, request: Mapping[str, Any], *, backend: str | None, command: str
) -> dict[str, str]:
    """How the answers were made, as label and text.

    `request`: what the model was asked for, as `request.json` keeps it; `backend`: the name of the backend, None where there
    was no model; `command`: what makes the page again, empty where no command made it.
    """
    lines = {"Model": options.model, "Answers": options.answers, "Questions": ", ".join(options.questions)}
    if options.limit:
        lines["Questions"] += f", the first {options.limit:,}"
    if "protocol" in request:
        lines["Answer"] = _protocol_in_words(request)
        lines["Limits"] = (
            f"prompts of {request['max_prompt_tokens']:,} tokens, completions of {request['max_new_tokens']:,}"
        )
        lines["Computed"] = f"{request['engine']}, {request['compute_dtype']}"
    if options.protocol == "boxed":
        lines["Reading of boxes"] = RULES_IN_WORDS[options.answer_rule]
    lines["Seed"] = f"{options.seed}, intervals of {options.bootstrap:,} resamples"
    packages = PACKAGES.get(backend or "", ())
    lines["Versions"] = ", ".join(
        [f"Python {platform.python_version()}", *(f"{package} {version(package)}" for package in packages)]
    )
    lines["Command"] = command
    return {label: text for label, text in lines.items() if text}


def _protocol_in_words(request: Mapping[str, Any]) -> str:
    if request["protocol"] == "forced_choice":
        return "the likeliest letter after its greedy reasoning and the phrase that announces it"
    greedy = request["samples"] == 1 and request["temperature"] == 0
    votes = f"the most frequent of {request['samples']} samples at temperature {request['temperature']:g}"
    return f"the letter that the model boxes; {'greedy' if greedy else votes}"


def feature_names(options: EvaluationOptions) -> dict[str, str]:
    """What a reader sees for each feature, from the registry of the options, or the one prepared beside the questions."""
    # `creason prepare` writes DIR/questions/valid.parquet and DIR/registry.
    beside = [Path(path).parent.parent / "registry" for path in options.questions if "://" not in path]
    folders = [Path(options.registry)] if options.registry else beside
    return {name: shown for folder in folders for name, shown in display_names(folder).items()}


def examples(completions: Path) -> list[dict[str, Any]]:
    """Questions and answers from a `completions.jsonl`: the first few of each kind, in their order."""
    chosen, counts = [], {"right": 0, "wrong": 0, "none": 0}
    for line in completions.read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        row = json.loads(line)
        kind = "none" if not row["predicted"] else "right" if row["predicted"] == row["answer"] else "wrong"
        counts[kind] += 1
        if counts[kind] <= EXAMPLES:
            chosen.append(row)
    return chosen
