"""Evaluate: a model directory on question files; answers, figures, intervals and a page in --out.

python -m launch.evaluate --model=runs/quickstart/trained --questions=runs/quickstart/data/questions/valid.parquet \\
    --out=runs/quickstart/again
python -m launch.evaluate --questions=FILE --lm_eval=DIR      a task folder for lm-evaluation-harness, no model needed
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from absl import flags

from launch import app, generation
from shared import baselines, binary, evaluation, files, lm_eval, orders
from shared.answering import answer_questions, force_answers
from shared.backend import Backend
from shared.comparison import compare
from shared.config import EvaluationConfig
from shared.errors import InputError
from shared.evaluation import Answer
from shared.evaluation_page import write_page
from shared.patients import read_patients
from shared.prompts import prompt_tokens
from shared.questions import Question, read_questions
from shared.registry import store
from shared.report import interval, percent
from shared.subgroups import subgroups
from shared.tokenizer import load_tokenizer, special_tokens

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_string("model", "", "Hugging Face model directory, tokenizer included.")
    flags.DEFINE_list(
        "questions", None, "Question files (Parquet), separated by commas; addresses such as gs:// too.", required=True
    )
    flags.DEFINE_string("out", "", "Directory for answers.parquet, summary.json and evaluation.html.")
    generation.define_flags(long_prompts="Longer prompts lose their beginning.", max_new_tokens=2_000)
    flags.DEFINE_integer("limit", 0, "Only the first questions; 0: all.", lower_bound=0)
    flags.DEFINE_enum(
        "protocol", "boxed", ["boxed", "forced_choice"],
        "The letter that the model boxes; or, as in the paper, the likelier letter after its reasoning and a phrase.",
    )  # fmt: skip
    flags.DEFINE_integer("samples", 1, "Answers to each question; the most frequent letter counts.", lower_bound=1)
    flags.DEFINE_float("temperature", 0.0, "Of the samples; 0 is greedy.", lower_bound=0.0)
    flags.DEFINE_bool("cyclic", False, "Ask each question with its options in every cyclic order.")
    flags.DEFINE_string("patients", "", "patients.parquet beside the questions: accuracy by age band, sex and site.")
    flags.DEFINE_string("compare", "", "answers.parquet of another model on the same questions.")
    flags.DEFINE_string("registry", "", "Prepared registry of the questions: adds boosted trees to the baselines.")
    flags.DEFINE_bool(
        "completions", False, "Also write completions.jsonl, records and answers as text, for launch.review."
    )
    flags.DEFINE_string("lm_eval", "", "Write an lm-evaluation-harness task folder here.")
    flags.DEFINE_string("lm_eval_name", "creason", "Name of that task.")
    flags.DEFINE_integer("bootstrap", 2_000, "Resamples of patients for the intervals.", lower_bound=100)
    flags.DEFINE_integer("seed", 42, "Seed of the resampling and of the samples.")
    flags.DEFINE_bool("progress", sys.stderr.isatty(), "Show a progress bar (default: on a terminal).")


def main() -> None:
    """Evaluate. Raises InputError for a bad flag, model or question file."""
    questions = read_all()
    if FLAGS.lm_eval:
        print(f"task     {lm_eval.export(questions, Path(FLAGS.lm_eval), FLAGS.lm_eval_name)}")
        if not FLAGS.model:
            return
    for name in ("model", "out"):
        if not getattr(FLAGS, name):
            raise InputError(f"--{name}: is needed to evaluate")
    if FLAGS.samples > 1 and FLAGS.temperature == 0:
        raise InputError("--samples: greedy samples are all equal; give --temperature")
    if FLAGS.protocol == "forced_choice":
        if FLAGS.samples > 1 or FLAGS.temperature > 0:
            raise InputError(
                "--protocol=forced_choice follows one greedy reasoning; leave --samples and --temperature out"
            )
        if FLAGS.completions:
            raise InputError("--completions: only with --protocol=boxed")
    out = Path(FLAGS.out)
    other = evaluation.read_answers(Path(FLAGS.compare)) if FLAGS.compare else None
    backend, asked, answers, boxed = answered(orders.cyclic(questions) if FLAGS.cyclic else questions, out)
    if backend.process == 0:
        write(out, report(asked, answers, boxed, other), answers, boxed)
    backend.barrier()


def write(out: Path, figures: dict[str, Any], answers: list[Answer], boxed: list[Answer] | None) -> None:
    """Write answers, figures and page, and say where they are."""
    evaluation.write_answers(out / "answers.parquet", answers)
    if boxed is not None:
        evaluation.write_answers(out / "boxed.parquet", boxed)
    files.write_json(out / "summary.json", figures)
    write_page(out / "evaluation.html", figures, title=f"Evaluation of {Path(FLAGS.model).name}")
    print(f"accuracy {percent(figures['accuracy'])} {interval(figures['ci'])} on {figures['n']} questions")
    print(f"answers  {out / 'answers.parquet'}\nfigures  {out / 'summary.json'}\npage     {out / 'evaluation.html'}")


def read_all() -> list[Question]:
    """The questions of all files. Raises InputError where one comes twice."""
    questions = [question for path in FLAGS.questions for question in read_questions(path)]
    questions = questions[: FLAGS.limit or None]
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise InputError(f"--questions: {len(repeated)} questions come more than once; give each file once")
    return questions


def answered(questions: list[Question], out: Path) -> tuple[Backend, list[Question], list[Answer], list[Answer] | None]:
    """The backend, the questions that fit, and the model's answers; those that it boxed, where others were forced."""
    folder = Path(FLAGS.model)
    tokenizer = load_tokenizer(folder)
    config = generation.config_of(
        folder,
        seed=FLAGS.seed,
        evaluation=EvaluationConfig(bootstrap=FLAGS.bootstrap, examples=len(questions) if FLAGS.completions else 0),
    )
    questions, prompts, cut = prompt_tokens(
        tokenizer, questions, max_tokens=FLAGS.max_prompt_tokens, overlong="truncate_left"
    )
    app.make_folder("out", out)
    stop = special_tokens(tokenizer, folder).stop
    backend, engine = generation.engine_of(config, folder, prompts, stop=stop)
    progress = FLAGS.progress and backend.process == 0
    if cut and backend.process == 0:
        print(
            f"{cut} prompts were longer than {FLAGS.max_prompt_tokens} tokens and lost their beginning", file=sys.stderr
        )
    if FLAGS.protocol == "forced_choice":
        forced, boxed = force_answers(config, engine, tokenizer, questions, prompts, stop=stop, progress=progress)
        return backend, questions, forced, boxed
    answers, completions = answer_questions(
        config,
        engine,
        tokenizer,
        questions,
        prompts,
        samples=FLAGS.samples,
        temperature=FLAGS.temperature,
        progress=progress,
    )
    if FLAGS.completions and backend.process == 0:
        files.write_json_lines(out / "completions.jsonl", completions)
    return backend, questions, answers, None


def report(
    questions: list[Question], answers: list[Answer], boxed: list[Answer] | None, other: list[Answer] | None
) -> dict[str, Any]:
    """Everything that goes into summary.json."""
    resampling = {"bootstrap": FLAGS.bootstrap, "seed": FLAGS.seed}
    figures = evaluation.summarise(questions, answers, **resampling) | evaluation.ceilings(questions)
    figures |= evaluation.details(questions, answers)
    figures |= {"protocol": FLAGS.protocol, "boxed": None if boxed is None else _accuracy(questions, boxed, resampling)}
    figures |= {"subgroups": None, "comparison": None, "binary": None, "orders": None}
    figures["baselines"] = {"most frequent value": _accuracy(questions, baselines.majority(questions), resampling)}
    if FLAGS.registry:
        trees = baselines.boosted_trees(store.load(Path(FLAGS.registry)), questions)
        figures["baselines"]["boosted trees"] = _accuracy(questions, trees, resampling)
    if FLAGS.patients:
        figures["subgroups"] = subgroups(answers, read_patients(Path(FLAGS.patients)), **resampling)
    if other is not None:
        figures["comparison"] = compare(other, answers, **resampling)
    if FLAGS.cyclic:
        figures["orders"] = orders.consistency(questions, answers)
    found = binary.labels_and_scores(questions, [answer.probabilities for answer in answers])
    if found is not None:
        figures["binary"] = binary.figures(*found, **resampling)
    return figures


def _accuracy(questions: list[Question], answers: list[Answer], resampling: dict[str, int]) -> dict[str, Any]:
    found = evaluation.summarise(questions, answers, **resampling)
    return {name: found[name] for name in ("accuracy", "ci", "macro_f1", "answered")}


if __name__ == "__main__":
    define_flags()
    app.run(main)
