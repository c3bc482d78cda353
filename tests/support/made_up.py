"""Pages of runs that never were: long names, few questions, several scripts, and what a page must escape."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np

from parity import report as parity_report
from parity.check import Measured
from parity.config import ParityConfig
from parity.report import Check
from parity.sides import Subject
from parity.world import World
from shared.config import EvaluationConfig, RunConfig
from shared.evaluation import binary, figures
from shared.evaluation.answers import Answer, answer_to, write_answers
from shared.evaluation.comparison import compare
from shared.questions.record import LETTERS, Question, write_questions
from shared.report import run_page
from shared.report.evaluation_page import write_page
from shared.storage import files
from shared.training import metrics_log

SECTIONS = (
    "[Variables Related to Sepsis Bundle Treatment/Bundles Time-related Variables]",
    "[중환자실 치료/인공호흡기와 신대체요법에 관한 시간 변수와 그 밖의 모든 것]",
    "[Cost ($) and income ($)]",
    "[Averylongwordthatnobodywouldeverwriteinaregistrybutthatacodebookmayhold/X]",
    "[A & B <i>C</i>]",
)
EXAMPLE = {
    "question": "Lactate: [MASK] " + "x" * 300,
    "completion": "<script>alert('x')</script> \\boxed{A}",
    "answer": "A",
    "predicted": "A",
    "when": "after",
}
PAGES = {
    "report": "runs/smoke/report.html",
    "evaluation": "runs/again/evaluation.html",
    "parity": "runs/parity/parity.html",
}


def write_all(root: Path) -> dict[str, Path]:
    """Every page under `root`, where `screenshots.py` looks for it."""
    paths = {name: root / place for name, place in PAGES.items()}
    write_run(paths["report"].parent)
    write_evaluation(paths["evaluation"])
    write_parity(paths["parity"].parent)
    write_questions(root / "runs/smoke/data/questions/valid.parquet", questions())
    return paths


def questions(*, yes_no: bool = False) -> list[Question]:
    """120 questions about 40 patients, of the last section two alone."""
    numbers = [*(4,) * 2, *itertools.islice(itertools.cycle(range(4)), 118)]
    return [
        Question(
            id=f"q{number}",
            cohort="synthetic",
            task="denoising",
            feature=f"f{number % 7}",
            section=SECTIONS[section],
            patient=f"p{number // 3}",
            context="record",
            question="which?",
            choices=("yes", "no") if yes_no else ("a", "b", "c", "d", "e"),
            answer=LETTERS[number % (2 if yes_no else 5)],
            majority="A",
            bayes_accuracy=0.9,
            bayes_answer="A",
        )
        for number, section in enumerate(numbers)
    ]


def answers(asked: list[Question], share: float) -> list[Answer]:
    """A `share` of them right; of the others every third without a letter, half of those cut off."""
    random = np.random.default_rng(7)
    found = []
    for number, question in enumerate(asked):
        right = share > 0.5 if number < 2 else random.random() < share
        other = "" if number % 3 == 0 else LETTERS[(LETTERS.index(question.answer) + 1) % len(question.choices)]
        letter, cut_off = question.answer if right else other, number % 6 == 0 and not right
        chances = random.dirichlet(np.ones(len(question.choices)))
        found.append(answer_to(question, letter, truncated=cut_off, tokens=90, probabilities=tuple(chances)))
    return found


def write_run(folder: Path) -> Path:
    """A run's work directory and its report."""
    config = RunConfig(name="made <b>up</b>", seed=7, evaluation=EvaluationConfig(bootstrap=100))
    asked = questions()
    before, after = answers(asked, 0.25), answers(asked, 0.6)
    random = np.random.default_rng(3)
    with metrics_log.MetricsWriter(folder, 0) as writer:
        for step in range(60):
            writer.write(
                step,
                {
                    "loss": random.normal(0, 1e-7), "reward": step / 60 + random.normal(0, 0.05), "kl": 0.0123 * step,
                    "entropy": 1.0, "grad_norm": 123456.0 + step, "learning_rate": 1e-6, "completion_length": 900.0,
                    "truncated": 0.1, "logprob_gap": 1e-7, "answered": 0.9, "uniform_groups": 0.2,
                    "seconds_prefill": 0.5, "seconds_decode": 2.0, "seconds_scoring": 0.4, "seconds_publish": 0.1,
                    "seconds_update": 90.0 if step == 0 else 3.0, "seconds_checkpoint": float(step % 20 == 19),
                    "seconds_total": 95.0 if step == 0 else 8.0, "tokens_per_second": 12_345.0,
                },
            )  # fmt: skip
    write_answers(folder / "evaluation" / "before.parquet", before)
    write_answers(folder / "evaluation" / "after.parquet", after)
    files.write_json(folder / "evaluation" / "examples.json", [EXAMPLE])
    files.write_json(folder / "config.json", dataclasses.asdict(config))
    feature = {
        "display_name": "Infection in the six months before admission to intensive care", "section": SECTIONS[0],
        "kind": "category", "unit": "", "decimals": 0, "categories": [], "labels": [], "leak_group": None, "visible": True,
    }  # fmt: skip
    files.write_json(folder / "data" / "registry" / "features.json", [feature | {"name": "f1"}])
    timings = metrics_log.timings(metrics_log.read_metrics(folder / "metrics.jsonl"))
    found = figures.summary(
        config.name, asked, before, after, config=config, timings=timings, environment={"backend": "jax", "jax": "0.0"}
    )
    files.write_json(folder / "summary.json", found)
    return run_page.write_report(folder, show_examples=True)


def write_evaluation(path: Path) -> Path:
    """The page of an evaluation that has every part."""
    asked = questions(yes_no=True)
    given, others = answers(asked, 0.6), answers(asked, 0.5)
    options = {"bootstrap": 100, "seed": 1}
    found = figures.summarise(asked, given, **options) | figures.ceilings(asked) | figures.details(asked, given)
    known = binary.labels_and_scores(asked, [answer.probabilities for answer in given])
    assert known is not None
    one = {"accuracy": 0.613, "ci": [0.5, 0.7], "macro_f1": 0.4, "answered": 0.9}
    found |= {
        "boxed": one | {"readings": {"differ": 1234, "strict": one, "lenient": one}},
        "answer_rule": "lenient_last",
        "binary": binary.figures(*known, **options),
        "comparison": compare(others, given, **options),
        "baselines": {"most frequent value": one, "boosted trees": one},
        "orders": {"accuracy": 0.5, "same_option": 0.25, "always_right": 0.125},
        "subgroups": [
            {"by": "sex", "group": "<b>", "suppressed": True},
            {"by": "age", "group": "60-79", "suppressed": False, "patients": 1234, "n": 3000, **one},
        ],
    }
    made = {"Model": "models/" + "long-name-" * 12, "Command": "python -m launch.evaluate \\\n    --model=" + "y" * 200}
    write_page(path, found, title="Evaluation of a model", made=made, names={"f1": "Lactate"}, examples=[EXAMPLE])
    return path


def write_parity(folder: Path) -> Path:
    """A parity report with a check of every unit, one of them failed, and figures of each kind."""
    world = World(ParityConfig(), folder, Subject())
    families = [f"family {number} with tied tables, paper, jax" for number in range(12)]
    world.curves[parity_report.GRADIENTS] = {name: {"a": 1e-7, "b": 2e-6, "c": 0.0} for name in families}
    world.curves["drift of the weights"] = {
        "jax from float64": [0.0, 1e-8, 3e-7],
        "torch from float64": [0.0, 2e-8, 2e-7],
    }
    world.curves["loss of recorded batches"] = {"jax": [0.1, 0.2, 0.15], "torch": [0.1, 0.2, 0.15]}
    checks = [
        Check.of(
            "scoring",
            f"{unit}, jax",
            "phi3",
            "float64",
            Measured(1e-7 * n, f"question 1, completion {n}[11]", unit),
            6e-7,
        )
        for n, unit in enumerate(parity_report.UNITS)
    ]
    parity_report.write(folder, checks, world)
    return folder / parity_report.REPORT_FILE
