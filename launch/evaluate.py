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
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from absl import flags
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from launch import app, backends, generation, given, page
from shared.backend import Backend, RolloutEngine
from shared.config import EvaluationConfig, RunConfig
from shared.errors import InputError
from shared.evaluation import baselines, binary, figures, lm_eval, orders
from shared.evaluation.answering import Answered, answer_questions, force_answers
from shared.evaluation.comparison import check_same, compare
from shared.evaluation.engine_check import Forced
from shared.evaluation.figures import Answer
from shared.evaluation.forced_choice import phrase_and_letters
from shared.evaluation.subgroups import check_patients, subgroups
from shared.policy.tokenizer import check_in_embedding, embedding_rows, load_tokenizer, special_tokens
from shared.questions import boxes, prompt_style
from shared.questions.prompts import prompt_tokens
from shared.questions.record import Question, read_questions
from shared.registry import store
from shared.registry.patients import read_patients
from shared.registry.store import Registry
from shared.report.evaluation_page import write_page
from shared.report.run_page import both_readings, duration, interval, percent, readings_in_words
from shared.runs.kept import COMPLETIONS_FILE, REQUEST_FILE, Kept, digest, model_digest
from shared.storage import files

ANSWERS, BOXED, ENGINE = "answers.parquet", "boxed.parquet", "engine.json"
FLAGS = flags.FLAGS
OWN: set[str] = set()  # names of this program's flags


def define_flags() -> None:
    """Define this program's flags."""
    before = set(FLAGS)
    flags.DEFINE_string("model", "", "Hugging Face model directory, tokenizer included.")
    flags.DEFINE_list(
        "questions", None, "Question files (Parquet), separated by commas; addresses such as gs:// too.", required=True
    )
    flags.DEFINE_string("out", "", "Directory for answers.parquet, summary.json and figures.html.")
    generation.define_flags(long_prompts="Longer prompts lose their beginning.", max_new_tokens=2_000)
    flags.DEFINE_integer("limit", 0, "Only the first questions; 0: all.", lower_bound=0)
    flags.DEFINE_enum(
        "protocol", "boxed", ["boxed", "forced_choice"],
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


@dataclasses.dataclass(frozen=True)
class Beside:
    """What the figures are made from beside questions and answers; None where it is not asked for."""

    other: list[Answer] | None
    patients: pd.DataFrame | None
    registry: Registry | None


def main() -> None:
    """Evaluate. Raises InputError for a bad flag or file, before anything is generated."""
    if FLAGS.answers:
        given.check_alone("--answers", given.WITH_ANSWERS, OWN)
    elif FLAGS.lm_eval and not FLAGS.model:
        given.check_alone("--lm_eval without a --model", given.FOR_TASK, OWN)
    if FLAGS.allow_missing and not FLAGS.answers:
        raise InputError("--allow_missing: goes with --answers; leave it out")
    questions = read_all()
    out = Path(FLAGS.out)
    if FLAGS.lm_eval:
        app.check_folder("lm_eval", Path(FLAGS.lm_eval))
        lm_eval.check_target(questions, Path(FLAGS.lm_eval), FLAGS.lm_eval_name)
    if FLAGS.model or FLAGS.answers or not FLAGS.lm_eval:
        check_flags(out)
    asked = orders.cyclic(questions) if FLAGS.cyclic else questions
    beside = read_beside(asked)
    if FLAGS.lm_eval:
        print(f"task     {export_task(questions)}")
        if not FLAGS.model:
            return
    if FLAGS.answers:
        answers, source = given.answers(asked, out)
        write(out, report(asked, answers, None, beside) | {"made_elsewhere": source, "prompts": None, "engine": None})
        return
    found = answered(asked, out)
    if found is None:
        return
    backend, answers, boxed = found
    if backend.process == 0:
        figures = report(asked, answers, boxed, beside)
        checked = files.read_json(out / ENGINE) if (out / ENGINE).is_file() else None  # none from an earlier version
        style = files.read_json(out / prompt_style.EVALUATION_FILE)
        write(out, figures | {"made_elsewhere": None, "prompts": style, "engine": checked})
    backend.barrier()


def export_task(questions: list[Question]) -> Path:
    """Write the task folder of lm-evaluation-harness; with a model, its ends are named there."""
    until: list[str] = []
    if FLAGS.model:
        tokenizer = load_tokenizer(Path(FLAGS.model))
        stop = special_tokens(tokenizer, Path(FLAGS.model)).stop
        until = [str(token) for token in tokenizer.convert_ids_to_tokens(list(stop))]
    return lm_eval.export(
        questions,
        Path(FLAGS.lm_eval),
        FLAGS.lm_eval_name,
        until=until,
        max_new_tokens=FLAGS.max_new_tokens,
        prefill="" if FLAGS.prefill == "auto" else FLAGS.prefill,
    )


def check_flags(out: Path) -> None:
    """Raise InputError for flags that are missing, that do not go together, or that name a place that cannot be written."""
    for name in ("out",) if FLAGS.answers else ("model", "out"):
        if not getattr(FLAGS, name):
            others = (
                "; or --answers=FILE for answers made elsewhere, or --lm_eval=DIR for a task of lm-evaluation-harness"
            )
            raise InputError(f"--{name}: is needed to evaluate{others if name == 'model' else ''}")
    if FLAGS.samples > 1 and FLAGS.temperature == 0 and not FLAGS.answers:
        raise InputError("--samples: greedy samples are all equal; give --temperature")
    if FLAGS.protocol == "forced_choice":
        if FLAGS.samples > 1 or FLAGS.temperature > 0:
            raise InputError(
                "--protocol=forced_choice follows one greedy reasoning; leave --samples and --temperature out"
            )
        if FLAGS.completions:
            raise InputError("--completions: only with --protocol=boxed")
    if FLAGS.measure and not FLAGS.dry_run:
        raise InputError("--measure: goes with --dry_run")
    page.check_flags()
    app.check_folder("out", out)
    if FLAGS.lm_eval and Path(FLAGS.lm_eval).absolute() in (out.absolute(), *out.absolute().parents):
        raise InputError(f"--lm_eval={FLAGS.lm_eval}: is replaced as a whole, --out with it; give a folder of its own")


def read_beside(questions: list[Question]) -> Beside:
    """The files that the flags name, each of them of these questions. Raises InputError where one is not."""
    other = patients = registry = None
    if FLAGS.compare:
        other = figures.read_answers(Path(FLAGS.compare))
        check_same(other, questions)
    if FLAGS.patients:
        patients = read_patients(Path(FLAGS.patients))
        check_patients(patients, {question.patient for question in questions})
    if FLAGS.registry:
        registry = store.load(Path(FLAGS.registry))
        baselines.check_registry(registry, questions)
    return Beside(other, patients, registry)


def write(out: Path, figures: dict[str, Any]) -> None:
    """Write figures and page, and say where they are."""
    files.write_json(out / "summary.json", figures)
    write_page(
        out / "evaluation.html",
        figures,
        title=f"Evaluation of {page.model_name()}",
        made=page.made(out),
        names=page.names(),
        examples=page.examples(out),
    )
    print(f"accuracy {percent(figures['accuracy'])} {interval(figures['ci'])} on {figures['n']} questions")
    if (read := both_readings(figures)) is not None:
        print(f"boxes    {readings_in_words(read)}; --answer_rule={FLAGS.answer_rule} counts")
    if (source := figures["made_elsewhere"]) is not None:
        print(
            f"made     elsewhere, as {source['file']} says (SHA-256 {source['sha256']}); missing: {source['missing']}"
        )
    print(f"answers  {out / ANSWERS}\nfigures  {out / 'summary.json'}\npage     {out / 'evaluation.html'}")
    written = figures["boxed"] or figures  # a forced choice is always an answer in its format
    shares = (
        ("with a letter", written["answered"]),
        ("cut off by the length limit", figures["truncated"]),
        ("with the letter of an option", written["format"]),
    )
    print("texts    " + ", ".join(f"{name} {percent(share)}" for name, share in shares))
    warning = few_answers(written, figures["n"], elsewhere=source is not None)
    if warning:
        print(warning, file=sys.stderr)


def few_answers(written: dict[str, Any], count: int, *, elsewhere: bool) -> str:
    """What to say where fewer than half of `count` completions hold a boxed letter, as such an accuracy says little."""
    if written["answered"] >= 0.5:
        return ""
    without = round((1 - written["answered"]) * count)
    read, other = written["readings"], ""
    if read is not None:
        rule, name = ("lenient_last", "lenient") if FLAGS.answer_rule == "strict_first" else ("strict_first", "strict")
        better = read[name]["answered"] > written["answered"]
        other = f"--answer_rule={rule} finds more; " if better else ""
    what = (
        "the text must hold the letter in a box, \\boxed{A}; where a program predicted a letter, write it so into completion"
        if elsewhere
        else "read some of them with --completions; raise --max_new_tokens where many are cut off"
    )
    return (
        f"warning: {without} of {count} answers hold no boxed letter by --answer_rule={FLAGS.answer_rule} and count as wrong; "
        f"{other}{what} (docs/evaluation.md)"
    )


def read_all() -> list[Question]:
    """The questions of all files. Raises InputError where one comes twice."""
    questions = [question for path in FLAGS.questions for question in read_questions(path)]
    questions = questions[: FLAGS.limit or None]
    repeated = [name for name, count in Counter(question.id for question in questions).items() if count > 1]
    if repeated:
        raise InputError(f"--questions: {len(repeated)} questions come more than once; give each file once")
    return questions


def answered(questions: list[Question], out: Path) -> tuple[Backend, list[Answer], list[Answer] | None] | None:
    """The backend and the model's answers; those that it boxed, where others were forced. None for a dry run.

    They are in `out`, whole, when this returns. What an earlier start of the same command left there is not asked again.
    """
    folder = Path(FLAGS.model)
    tokenizer = load_tokenizer(folder)
    config = generation.config_of(
        folder,
        questions=max(1, len(questions)),
        samples=FLAGS.samples,
        seed=FLAGS.seed,
        answer_rule=FLAGS.answer_rule,
        evaluation=EvaluationConfig(bootstrap=FLAGS.bootstrap, examples=len(questions) if FLAGS.completions else 0),
    )
    style, rows = generation.style_of(config, folder, tokenizer, out), embedding_rows(folder)
    questions, prompts, cut = prompt_tokens(
        tokenizer, questions, style=style, rows=rows, max_tokens=FLAGS.max_prompt_tokens, overlong="truncate_left"
    )
    stop = special_tokens(tokenizer, folder).stop
    forced = None
    if FLAGS.protocol == "forced_choice":
        forced = Forced(*phrase_and_letters(tokenizer), stop)
        check_in_embedding(tokenizer, [forced.phrase, forced.letters], rows, "the answer phrase and its letters")
    backend = backends.make_backend(config)
    config = backend.resolved(config)
    progress = FLAGS.progress and backend.process == 0
    if FLAGS.dry_run:
        generation.tell(config, backend, prompts, forced=forced)
        if FLAGS.measure:
            measure(config, backend, tokenizer, questions, prompts, stop, forced)
        return None
    kept = Kept(out, request(config, backend, questions, prompts, stop), backend)
    if backend.agreed(backend.process == 0 and (out / ANSWERS).is_file()):
        generation.begin(config, backend, tokenizer, style, out)
        return backend, *_earlier(questions, out, backend)
    if kept.done < len(questions):
        generation.tell(config, backend, prompts, forced=forced)
        engine, checked = generation.engine_of(config, backend, prompts, stop=stop, forced=forced)
        generation.begin(config, backend, tokenizer, style, out)
        _keep_check(out, backend, checked)
        _say(
            backend, cut and f"{cut} prompts were longer than {FLAGS.max_prompt_tokens} tokens and lost their beginning"
        )
        _say(
            backend, kept.done and f"{kept.done} of {len(questions)} answers are there already; it goes on behind them"
        )
        parts = _parts(config, engine, tokenizer, questions, prompts, stop, done=kept.done, progress=progress)
        for part in parts:
            kept.add([each.to_row() for each in part])
    return backend, *_collected(questions, out, kept, backend)


def measure(
    config: RunConfig,
    backend: Backend,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[Question],
    prompts: list[np.ndarray],
    stop: Sequence[int],
    forced: Forced | None,
) -> None:
    """Answer as many questions as are answered at once, twice, and say what that means for all; nothing is kept."""
    engine, _ = generation.engine_of(config, backend, prompts, stop=stop, forced=forced)
    count = min(config.rollout.slots, len(questions))
    for _ in range(2):  # the first time programs are compiled
        begin = time.perf_counter()
        for _ in _parts(config, engine, tokenizer, questions[:count], prompts[:count], stop, done=0, progress=False):
            pass
        seconds = (time.perf_counter() - begin) / count
    if backend.process == 0:
        print(
            f"time     {seconds:.3g} s a question, {duration(seconds * len(questions))} for {len(questions):,} of them"
        )


def _parts(
    config: RunConfig,
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerFast,
    questions: list[Question],
    prompts: list[np.ndarray],
    stop: Sequence[int],
    *,
    done: int,
    progress: bool,
) -> Iterator[list[Answered]]:
    """The answers behind the first `done`, by the protocol that the flags name."""
    asked = (config, engine, tokenizer, questions, prompts)
    if FLAGS.protocol == "forced_choice":
        return force_answers(*asked, stop=stop, done=done, progress=progress)
    samples, temperature = FLAGS.samples, FLAGS.temperature
    return answer_questions(*asked, done=done, samples=samples, temperature=temperature, progress=progress)


def request(
    config: RunConfig, backend: Backend, questions: list[Question], prompts: list[np.ndarray], stop: Sequence[int]
) -> dict[str, Any]:
    """What the answers depend on: only a start that asks for the same goes on from them."""
    return {
        "model": model_digest(Path(FLAGS.model)),
        "questions": digest(dataclasses.asdict(question) for question in questions),
        "prompts": digest(prompt.tolist() for prompt in prompts),
        "stop_tokens": [int(token) for token in stop],
        "protocol": FLAGS.protocol,
        "samples": FLAGS.samples,
        "temperature": FLAGS.temperature,
        "seed": FLAGS.seed if FLAGS.temperature > 0 else None,
        # Of one completion both letters are kept, of a vote the shares by one of them.
        "answer_rule": FLAGS.answer_rule if FLAGS.samples > 1 else None,
        "max_prompt_tokens": FLAGS.max_prompt_tokens,
        "max_new_tokens": FLAGS.max_new_tokens,
        "completions": FLAGS.completions,
        "compute_dtype": config.learner.compute_dtype,
        "engine": backend.engine_kind(config),
    }


def _keep_check(out: Path, backend: Backend, checked: dict[str, Any]) -> None:
    """What was found of the engine; of several starts of one evaluation the one with the largest gap."""
    if backend.process > 0:
        return
    held = files.read_json(out / ENGINE) if (out / ENGINE).is_file() else None
    if held is None or held["gap"] <= checked["gap"]:
        files.write_json(out / ENGINE, checked)


def _earlier(questions: list[Question], out: Path, backend: Backend) -> tuple[list[Answer], list[Answer] | None]:
    """What an evaluation that has ended left in `out`, in process 0."""
    if backend.process > 0:
        return [], None
    if not (out / REQUEST_FILE).is_file():
        raise InputError(
            f"--out={out}: holds the answers of an earlier version; give another --out, or remove that one"
        )
    _say(backend, "the answers are there already; only the figures are made again")
    forced = FLAGS.protocol == "forced_choice"
    return (
        _by_rule(questions, figures.read_answers(out / ANSWERS)),
        _by_rule(questions, figures.read_answers(out / BOXED)) if forced else None,
    )


def _collected(
    questions: list[Question], out: Path, kept: Kept, backend: Backend
) -> tuple[list[Answer], list[Answer] | None]:
    """The answers of all parts, in process 0, which puts them into their files."""
    if backend.process > 0:
        return [], None
    rows = [Answered.from_row(row) for row in kept.rows]
    answers, boxed = _by_rule(questions, [row.answer for row in rows]), None
    if FLAGS.protocol == "forced_choice":
        boxed = _by_rule(questions, [row.boxed for row in rows if row.boxed is not None])
        figures.write_answers(out / BOXED, boxed)
    if FLAGS.completions:
        files.write_json_lines(out / COMPLETIONS_FILE, [row.text for row in rows])
    if FLAGS.completions and FLAGS.samples > 1:
        voters = [{"id": row.answer.question_id, **each} for row in rows for each in row.samples or ()]
        files.write_json_lines(out / "samples.jsonl", voters)
    figures.write_answers(out / ANSWERS, answers)  # the last: where it is, all is
    kept.remove_parts()
    return answers, boxed


def _by_rule(questions: list[Question], answers: list[Answer]) -> list[Answer]:
    """The answers by the rule of this start: an earlier one may have had the other."""
    return [figures.read_by(FLAGS.answer_rule, *pair) for pair in zip(questions, answers, strict=True)]


def _say(backend: Backend, line: str | int) -> None:
    if line and backend.process == 0:
        print(line, file=sys.stderr)


def report(
    questions: list[Question], answers: list[Answer], boxed: list[Answer] | None, beside: Beside
) -> dict[str, Any]:
    """Everything that goes into summary.json."""
    resampling = {"bootstrap": FLAGS.bootstrap, "seed": FLAGS.seed}
    summary = figures.summarise(questions, answers, **resampling) | figures.ceilings(questions)
    summary |= figures.details(questions, answers)
    summary |= {"protocol": FLAGS.protocol, "answer_rule": FLAGS.answer_rule}
    summary["boxed"] = None if boxed is None else _accuracy(questions, boxed, resampling)
    summary |= {"subgroups": None, "comparison": None, "binary": None, "orders": None}
    summary["baselines"] = {"most frequent value": _accuracy(questions, baselines.majority(questions), resampling)}
    if beside.registry is not None:
        trees = trees_of(beside.registry, questions)
        summary["baselines"]["boosted trees"] = _accuracy(questions, trees, resampling)
    if beside.patients is not None:
        summary["subgroups"] = subgroups(answers, beside.patients, **resampling)
    if beside.other is not None:
        summary["comparison"] = compare(beside.other, answers, **resampling)
    if FLAGS.cyclic:
        summary["orders"] = orders.consistency(questions, answers)
    labelled = binary.labels_and_scores(questions, [answer.probabilities for answer in answers])
    if labelled is not None:
        summary["binary"] = binary.figures(*labelled, **resampling)
    return summary


def trees_of(registry: Registry, questions: list[Question]) -> list[Answer]:
    """What boosted trees answer; what they do is said, and shown on a terminal, as they may take a minute."""
    features = len({question.feature for question in questions})
    print(
        f"trees    boosted trees learn each of the {features} features asked for from {len(registry.train):,} patients",
        file=sys.stderr,
    )
    with tqdm(total=len(questions), desc="boosted trees", unit="question", disable=not FLAGS.progress) as bar:
        return baselines.boosted_trees(registry, questions, progress=bar.update)


def _accuracy(questions: list[Question], answers: list[Answer], resampling: dict[str, int]) -> dict[str, Any]:
    found = figures.summarise(questions, answers, **resampling)
    return {name: found[name] for name in ("accuracy", "ci", "macro_f1", "answered", "format", "readings")}


if __name__ == "__main__":
    define_flags()
    app.run(main)
