"""The flags of `launch.evaluate` for what needs no model, and the refusal of flags that only a model reads."""

from __future__ import annotations

from collections.abc import Collection

from absl import flags

from shared.errors import InputError
from shared.evaluation import options

FLAGS = flags.FLAGS
# The flags that mean something without a model: with answers made elsewhere, and for a task folder alone.
WITH_ANSWERS = options.WITH_ANSWERS | {"progress"}
FOR_TASK = options.FOR_TASK | {"progress"}


def define_flags() -> None:
    """Define the flags of answers made elsewhere."""
    flags.DEFINE_string(
        "answers",
        "",
        "Answers made elsewhere in place of --model: .jsonl or .parquet with id, completion (docs/evaluation.md).",
    )
    flags.DEFINE_bool("allow_missing", False, "Count questions that --answers lacks as unanswered.")


def check_alone(mode: str, read: Collection[str], own: Collection[str]) -> None:
    """Refuse those of the program's `own` flags that were given but that nothing reads in this `mode`. Raises InputError."""
    for name in sorted(set(own) - set(read)):
        if FLAGS[name].present:
            raise InputError(f"--{name}: {mode} does not read it; leave it out")
