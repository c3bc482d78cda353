"""The flag of an evaluation's page, and the command that makes the page again."""

from __future__ import annotations

import shlex

from absl import flags

FLAGS = flags.FLAGS
NOT_REPEATED = {"progress"}  # flags that change nothing of what is made


def define_flags() -> None:
    """Define the flag of the page."""
    flags.DEFINE_bool(
        "show_examples", False, "Show example questions and answers on the page, patients' text; needs --completions."
    )


def command(program: str) -> str:
    """The command that makes it again: every flag that was given, a line each, quoted for a shell."""
    present = (FLAGS[name] for name in FLAGS if FLAGS[name].present and name not in NOT_REPEATED)
    own = (flag for flag in present if not (FLAGS.find_module_defining_flag(flag.name) or "").startswith("absl"))
    words = sorted({flag.serialize() for flag in own})
    return " \\\n    ".join([f"creason {program}", *map(shlex.quote, words)])
