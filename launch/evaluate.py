"""Evaluate a model directory on question files: answers, figures, intervals and a page.

    creason evaluate --model=runs/quickstart/trained --questions=runs/quickstart/data/questions/valid.parquet \\
        --out=trained_eval --completions
    creason evaluate --model=runs/quickstart/policy --questions=runs/quickstart/data/questions/valid.parquet \\
        --out=base_eval --completions --compare=trained_eval/answers.parquet
    creason evaluate --answers=answers.jsonl --questions=runs/quickstart/data/questions/valid.parquet --out=answers_eval
    creason evaluate --questions=runs/quickstart/data/questions/valid.parquet --lm_eval=lm_eval_task

Answers are written part by part as they come. The same command goes on from them, and makes only figures where all are there.
With --answers no model is needed: the answers were made elsewhere. With --lm_eval alone it writes a task folder for
lm-evaluation-harness, and needs no model either.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from absl import flags

from launch import app, backends, generation, given, page
from shared.errors import InputError
from shared.evaluation.options import PROTOCOLS, EvaluationOptions
from shared.questions import boxes
from shared.report import evaluation_words
from shared.runs.evaluate import PAGE_FILE, SUMMARY_FILE, evaluate, forecast_evaluation
from shared.runs.model_answers import ANSWERS

FLAGS = flags.FLAGS
OWN: set[str] = set()  # names of this program's flags


def define_flags() -> None:
    """Define this program's flags."""
    before = set(FLAGS)
    flags.DEFINE_string("model", "", "Hugging Face model directory, tokenizer included.")
    flags.DEFINE_list(
        "questions", None, "Question files (Parquet), separated by commas; addresses such as gs:// too.", required=True
    )
    flags.DEFINE_string("out", "", "Directory for answers.parquet, summary.json and evaluation.html.")
    generation.define_flags(long_prompts="Longer prompts lose their beginning.", max_new_tokens=2_000)
    flags.DEFINE_integer("limit", 0, "Only the first questions; 0: all.", lower_bound=0)
    flags.DEFINE_enum(
        "protocol", "boxed", PROTOCOLS,
        "The letter that the model boxes; or, as in the paper, the likelier letter after its reasoning and a phrase.",
    )  # fmt: skip
    given.define_flags()
    flags.DEFINE_enum(
        "answer_rule", "strict_first", boxes.RULES,
        "Which box is the answer: the first, read strictly (the paper), or the last, read leniently; the other stands beside.",
    )  # fmt: skip
    flags.DEFINE_integer("samples", 1, "Answers to each question; the most frequent letter counts.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "Of the samples; 0 is greedy.", lower_bound=0.0)
    flags.DEFINE_bool("cyclic", False, "Ask each question with its options in every cyclic order.")
    flags.DEFINE_string("patients", "", "patients.parquet beside the questions: accuracy by age band, sex and site.")
    flags.DEFINE_string("compare", "", "answers.parquet of another model on the same questions.")
    flags.DEFINE_string("registry", "", "Prepared registry of the questions: adds boosted trees to the baselines.")
    flags.DEFINE_bool(
        "completions", False, "Also write completions.jsonl, records and answers as text, for `creason review`."
    )
    page.define_flags()
    flags.DEFINE_string("lm_eval", "", "Write an lm-evaluation-harness task folder here.")
    flags.DEFINE_string("lm_eval_name", "creason", "Name of that task.")
    flags.DEFINE_bool("dry_run", False, "Check all, say what it needs (tokens, memory), do nothing. Needs no weights.")
    flags.DEFINE_bool("measure", False, "With --dry_run: how long it takes, from a few of the questions.")
    flags.DEFINE_integer("bootstrap", 2_000, "Resamples of patients for the intervals.", lower_bound=100)
    flags.DEFINE_integer("seed", 42, "Seed of the resampling and of the samples.")
    flags.DEFINE_bool("progress", app.on_terminal(), "Show a progress bar (default: on a terminal).")
    OWN.update(set(FLAGS) - before)


def main() -> None:
    """Evaluate. Raises InputError for a bad flag or file, before anything is generated."""
    if FLAGS.answers:
        given.check_alone("--answers", given.WITH_ANSWERS, OWN)
    elif FLAGS.lm_eval and not FLAGS.model:
        given.check_alone("--lm_eval without a --model", given.FOR_TASK, OWN)
    if FLAGS.measure and not FLAGS.dry_run:
        raise InputError("--measure: goes with --dry_run")
    if FLAGS.dry_run:
        forecast_evaluation(options(), backends.make_backend, listener=generation.listener(), measure=FLAGS.measure)
        return
    summary = evaluate(
        options(), backends.make_backend, listener=generation.listener(), command=page.command("evaluate")
    )
    if summary:
        say(summary, Path(FLAGS.out))


def options() -> EvaluationOptions:
    """What the flags say. Raises InputError for flags that do not go together."""
    names = {field.name for field in dataclasses.fields(EvaluationOptions)} - {"generation"}
    values: dict[str, Any] = {name: FLAGS[name].value for name in names}
    return EvaluationOptions(generation=generation.options(), **values)


def say(summary: dict[str, Any], out: Path) -> None:
    """Print the result, and where the files are."""
    print("\n".join(evaluation_words.result_lines(summary)))
    print(f"answers  {out / ANSWERS}\nfigures  {out / SUMMARY_FILE}\npage     {out / PAGE_FILE}")
    print(evaluation_words.texts_line(summary))
    if warning := evaluation_words.few_answers(summary):
        print(warning, file=sys.stderr)


if __name__ == "__main__":
    define_flags()
    app.run(main)
