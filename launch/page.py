"""What the page of an evaluation says beside its figures: how it was made, names of features, and examples if asked for."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from absl import flags

from shared.errors import InputError
from shared.registry.features import display_names
from shared.runs.kept import COMPLETIONS_FILE, REQUEST_FILE
from shared.storage import files

FLAGS = flags.FLAGS
EXAMPLES = 2  # of each kind: right, wrong, without a readable answer
PACKAGES = {"jax": ("jax",), "torch": ("torch", "transformers")}  # by backend
NOT_REPEATED = {"progress"}  # flags that change nothing of what is made


def define_flags() -> None:
    """Define the flag of the page."""
    flags.DEFINE_bool(
        "show_examples", False, "Show example questions and answers on the page, patients' text; needs --completions."
    )


def check_flags() -> None:
    """Raise InputError where examples are asked for that nothing keeps."""
    if FLAGS.show_examples and not FLAGS.completions:
        raise InputError("--show_examples: shows some of what --completions keeps; give that, too")


def command(program: str) -> str:
    """The command that makes it again: every flag that was given, a line each, quoted for a shell."""
    given = (FLAGS[name] for name in FLAGS if FLAGS[name].present and name not in NOT_REPEATED)
    ours = (flag for flag in given if not (FLAGS.find_module_defining_flag(flag.name) or "").startswith("absl"))
    words = sorted({flag.serialize() for flag in ours})
    return " \\\n    ".join([f"creason {program}", *map(shlex.quote, words)])


def model_name() -> str:
    """The model directory's name, with that of the run where a run has written it; of answers made elsewhere, their file's."""
    if FLAGS.answers:
        return Path(FLAGS.answers).name
    folder = Path(FLAGS.model).absolute()
    return f"{folder.parent.name}/{folder.name}" if folder.name == "trained" else folder.name


def made(out: Path) -> dict[str, str]:
    """How the answers in `out` were made, as label and text."""
    asked = files.read_json(out / REQUEST_FILE)
    found = {"Model": FLAGS.model, "Answers": FLAGS.answers, "Questions": ", ".join(FLAGS.questions)}
    if FLAGS.limit:
        found["Questions"] += f", the first {FLAGS.limit:,}"
    if "protocol" in asked:
        greedy = asked["samples"] == 1 and asked["temperature"] == 0
        votes = f"the most frequent of {asked['samples']} samples at temperature {asked['temperature']:g}"
        found["Answer"] = {
            "boxed": f"the letter that the model boxes; {'greedy' if greedy else votes}",
            "forced_choice": "the likeliest letter after its greedy reasoning and the phrase that announces it",
        }[asked["protocol"]]
        found["Limits"] = (
            f"prompts of {asked['max_prompt_tokens']:,} tokens, completions of {asked['max_new_tokens']:,}"
        )
        found["Computed"] = f"{asked['engine']}, {asked['compute_dtype']}"
    if FLAGS.protocol == "boxed":
        found["Reading of boxes"] = {
            "strict_first": "the first box, strictly",
            "lenient_last": "the last box, leniently",
        }[FLAGS.answer_rule]
    found["Seed"] = f"{FLAGS.seed}, intervals of {FLAGS.bootstrap:,} resamples"
    found["Versions"] = ", ".join(_versions())
    return {label: text for label, text in found.items() if text} | {"Command": command("evaluate")}


def names() -> dict[str, str]:
    """What a reader sees for each feature, from --registry, or from the registry that was prepared with the questions."""
    folders = [Path(FLAGS.registry)] if FLAGS.registry else _beside_questions()
    return {name: shown for folder in folders for name, shown in display_names(folder).items()}


def examples(out: Path) -> list[dict[str, Any]]:
    """Questions and answers for the page, where they were asked for: the first few of each kind, in their order."""
    if not FLAGS.show_examples:
        return []
    shown, counts = [], {"right": 0, "wrong": 0, "none": 0}
    for line in (out / COMPLETIONS_FILE).read_text(encoding="utf-8").split("\n"):
        if not line:
            continue
        row = json.loads(line)
        kind = "none" if not row["predicted"] else "right" if row["predicted"] == row["answer"] else "wrong"
        counts[kind] += 1
        if counts[kind] <= EXAMPLES:
            shown.append(row)
    return shown


def _beside_questions() -> list[Path]:
    # As `launch.prepare` lays them out: DIR/questions/valid.parquet, DIR/registry.
    return [Path(path).parent.parent / "registry" for path in FLAGS.questions if "://" not in path]


def _versions() -> Iterator[str]:
    yield f"Python {platform.python_version()}"
    for package in () if FLAGS.answers else PACKAGES[FLAGS.backend]:
        yield f"{package} {version(package)}"
