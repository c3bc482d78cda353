"""The part of `launch.evaluate` for answers made elsewhere: no model, no backend, and whatever needs one is refused."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags

from shared.errors import InputError
from shared.evaluation import figures
from shared.evaluation.figures import Answer
from shared.evaluation.given_answers import Given
from shared.questions.record import Question
from shared.runs.kept import REQUEST_FILE, check_request, digest
from shared.storage import files

FLAGS = flags.FLAGS
# The flags of `launch.evaluate` that mean something without a model: with answers, and for a task folder alone.
WITH_ANSWERS = {
    "answers", "answer_rule", "allow_missing", "questions", "out", "limit", "samples", "cyclic", "patients", "compare",
    "registry", "bootstrap", "seed", "progress",
}  # fmt: skip
FOR_TASK = {"lm_eval", "lm_eval_name", "questions", "limit", "max_new_tokens", "prefill", "progress"}


def define_flags() -> None:
    """Define the flags of answers made elsewhere."""
    flags.DEFINE_string(
        "answers",
        "",
        "Answers made elsewhere in place of --model: .jsonl or .parquet with id, completion (docs/evaluation.md).",
    )
    flags.DEFINE_bool("allow_missing", False, "Count questions that --answers lacks as unanswered.")


def check_alone(mode: str, read: set[str], own: set[str]) -> None:
    """Refuse those of the program's `own` flags that were given but that nothing reads in this `mode`. Raises InputError."""
    for name in sorted(own - read):
        if FLAGS[name].present:
            raise InputError(f"--{name}: {mode} does not read it; leave it out")


def answers(questions: list[Question], out: Path) -> tuple[list[Answer], dict[str, Any]]:
    """The answers in `--answers`, written to `out`, and where they come from.

    Raises InputError where the file is not of these questions, or `out` holds other answers.
    """
    given = Given(Path(FLAGS.answers), questions, samples=FLAGS.samples, allow_missing=FLAGS.allow_missing)
    request = {
        "answers": given.sha256,
        "questions": digest(question.row() for question in questions),
        "samples": FLAGS.samples,
        "answer_rule": FLAGS.answer_rule,
    }
    check_request(out, request)
    if given.repeated:
        print(f"{given.path}: {given.repeated} lines repeat an answer word for word; each counts once", file=sys.stderr)
    found = given.answers(questions, FLAGS.answer_rule)
    files.write_json(out / REQUEST_FILE, request)
    figures.write_answers(out / "answers.parquet", found)
    return found, given.described()
