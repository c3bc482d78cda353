"""One self-contained HTML page about a run, made from the files in its work directory.

The page needs no network and says so to the browser (a content security policy that allows none). Everything that
comes from a run, completions above all, is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from markupsafe import Markup

from shared.config import CONFIG_FILE, validate_stored
from shared.errors import InputError
from shared.evaluation.answers import read_answers
from shared.registry.features import display_names
from shared.report import page_plots, plots
from shared.report.page import drawn, level_rows, listed, write_html
from shared.report.run_words import REPORT_FILE, SUMMARY_FILE, headline
from shared.report.words import duration, percent
from shared.storage import files
from shared.training import health
from shared.training.metrics_log import METRICS_FILE, phases, read_metrics

MAIN_PLOT = Path("plots") / "main.png"
SUMMARY_KEYS = ("before", "after", "gain", "per_section", "per_feature", "timings")  # None where a run has none yet
EXAMPLE_KEYS = {"when", "question", "completion", "answer", "predicted"}
FEW = 10  # questions; a change over fewer has no colour on the page, since it says too little
SLOW_START = 2  # a first step that takes more than so many times as long as later steps has compiled programs
NO_STEPS = pd.DataFrame({"step": pd.Series(dtype="int64")})

# Metric, title, explanation, in the order of the page. A metric that a run lacks is left out and named as missing.
SERIES = (
    ("reward", "Reward", "Mean over the step's sampled completions. It should rise."),
    ("kl", "KL to the reference", "Nats per token. A slow rise is learning; a sudden one is the policy breaking away."),
    ("completion_length", "Completion length", "Tokens, mean. A collapse or a run to the limit is a warning."),
    ("entropy", "Entropy", "Nats per token. Near 0 all samples of a question are alike and nothing is left to learn."),
    ("grad_norm", "Gradient norm", "Before clipping. Spikes that do not settle ask for a lower learning rate."),
    ("learning_rate", "Learning rate", "As used by the optimizer at the step."),
    ("loss", "Loss", "The GRPO objective. Near 0 by construction on policy: judge a run by its reward."),
    ("answered", "Answered", "Share of completions with a readable answer. Without one there is no reward for it."),
    ("uniform_groups", "Uniform groups", "Share of groups whose rewards are all equal. At 1 nothing is learned."),
    ("truncated", "Truncated", "Share of completions that the length limit ended."),
    ("logprob_gap", "Log-probability gap", "Nats per token between engine and learner. Growth means stale weights."),
    ("tokens_per_second", "Tokens per second", "Prompt and completion tokens of a step, over its whole time."),
)
REQUIRED_SERIES = ("reward", "kl", "completion_length", "entropy", "grad_norm", "learning_rate")


def examples_allowed(config: Mapping[str, Any], show_examples: bool) -> bool:
    """Whether completions may be shown: where that is asked for, or where the records were drawn here and are of no real patient.

    A run on question files or raw files of its own may be about real patients, whatever its `cohort` says.
    """
    data = config.get("data", {})
    drawn_here = data.get("cohort") == "synthetic" and not any(data.get(name) for name in ("source", "train", "valid"))
    return show_examples or drawn_here


def write_report(workdir: Path, *, show_examples: bool) -> Path:
    """Write `report.html` and `plots/main.png` from a work directory's files, and return the page's path.

    The page names what the run has not made yet, and leaves it out. `show_examples`: whether completions are shown
    (`examples_allowed`). Raises InputError where the folder holds no run, or a file of the run is damaged.
    """
    page = _gather(workdir, show_examples)
    plots.write_png(plots.main_figure(page["summary"], page["metrics"]), workdir / MAIN_PLOT)
    page |= _figures(page)
    write_html(workdir / REPORT_FILE, "report.html", page)
    return workdir / REPORT_FILE


def _gather(workdir: Path, show_examples: bool) -> dict[str, Any]:
    """The values of the page's template, but for its plots, and what is missing."""
    run_files = [SUMMARY_FILE, METRICS_FILE, CONFIG_FILE]
    if not any((workdir / name).is_file() for name in run_files):
        raise InputError(f"{workdir}: holds no run (none of {', '.join(run_files)}); give a run's work directory")
    written = optional_json(workdir / SUMMARY_FILE, {})
    summary = dict.fromkeys(SUMMARY_KEYS) | written
    config = optional_json(workdir / CONFIG_FILE, written.get("config", {}))
    metrics = read_metrics(workdir / METRICS_FILE) if (workdir / METRICS_FILE).is_file() else NO_STEPS
    warmup_path = workdir / "warmup" / METRICS_FILE
    warmup = read_metrics(warmup_path) if warmup_path.is_file() else NO_STEPS
    examples = optional_json(workdir / "evaluation" / "examples.json", [])
    if not all(isinstance(example, dict) and EXAMPLE_KEYS <= example.keys() for example in examples):
        raise InputError(f"{workdir / 'evaluation' / 'examples.json'}: not what a run writes there; remove it")
    return {
        "summary": summary,
        "run_name": written.get("run_name") or config.get("name", workdir.name),
        "seed": written.get("seed", config.get("seed", "?")),
        "environment": summary.get("environment") or {},
        "headline": headline(summary),
        "metrics": metrics,
        "health": _health(config, metrics),
        "warmup": warmup,
        "config": json.dumps(config, indent=2, ensure_ascii=False),
        "examples": examples if show_examples else [],
        "hidden_examples": 0 if show_examples else len(examples),
        "lengths": {when: _answer_lengths(workdir, when) for when in ("before", "after")},
        "missing": _missing(workdir, written, config, metrics),
        "names": display_names(workdir / "data" / "registry"),
        "few": FEW,
    }


def _health(config: Mapping[str, Any], metrics: pd.DataFrame) -> list[dict[str, Any]]:
    """See `shared.training.health.table`; nothing before the first step, or where the config is another version's."""
    if metrics.empty:
        return []
    try:
        return health.table(metrics, validate_stored(config))
    except InputError:
        return []


def _missing(workdir: Path, summary: Mapping[str, Any], config: Mapping[str, Any], metrics: pd.DataFrame) -> list[str]:
    """A line for each part of the page that cannot be shown, with the reason."""
    missing = [] if summary else [f"{SUMMARY_FILE}: the run has not finished, so there is no result yet"]
    missing += [f"the evaluation {when} GRPO" for when in ("before", "after") if summary and not summary.get(when)]
    if summary and summary.get("bayes_accuracy") is None:
        missing.append("the Bayes ceiling: it is known only for records drawn from a known law")
    if metrics.empty:
        missing.append(f"{METRICS_FILE}: no optimizer step has been taken")
    else:
        absent = [name for name in REQUIRED_SERIES if name not in metrics.columns or metrics[name].isna().all()]
        missing += [f"the curve of {name}: this run does not measure it" for name in absent]
        if phases(metrics).empty:
            missing.append("the time of each phase: this run does not measure it")
    if not metrics.empty and not _health(config, metrics):
        missing.append("the health of the run: its config is not one of this version")
    if not (workdir / CONFIG_FILE).is_file() and not summary.get("config"):
        missing.append("config.json: the configuration of the run")
    return missing


def _answer_lengths(workdir: Path, when: str) -> dict[str, float] | None:
    """Quartiles of an evaluation's completion lengths, in tokens; None where it has not been made."""
    path = workdir / "evaluation" / f"{when}.parquet"
    if not path.is_file():
        return None
    lengths = pd.Series([answer.tokens for answer in read_answers(path)])
    if lengths.empty:
        return None
    quantiles = {"low": 0.25, "median": 0.5, "high": 0.75}
    return {name: float(lengths.quantile(level)) for name, level in quantiles.items()}


def optional_json(path: Path, otherwise: Any) -> Any:
    """The value in a JSON file of a run, or `otherwise` where there is no file.

    Raises InputError where the value is of another type than `otherwise`.
    """
    value = files.read_json(path) if path.is_file() else otherwise
    if not isinstance(value, type(otherwise)):
        raise InputError(f"{path}: not what a run writes there; give a run's work directory")
    return value


def _figures(page: Mapping[str, Any]) -> dict[str, Any]:
    """The page's plots as SVG, and the rows of its table of times."""
    summary, metrics, warmup = page["summary"], page["metrics"], page["warmup"]
    series = {
        name: {
            "title": title,
            "caption": caption,
            "svg": drawn(
                plots.series_figure(metrics, name, smooth=name != "learning_rate"), _course(title, metrics[name])
            ),
        }
        for name, title, caption in SERIES
        if name in metrics.columns and not metrics[name].isna().all()
    }
    sections = summary.get("per_section") or []
    evaluated = [when for when in ("before", "after") if summary.get(when)]
    sides = {when: f"{when} GRPO" for when in evaluated}
    figures: dict[str, Any] = {"accuracy_figure": "", "sections_figure": "", "warmup_figure": ""}
    if evaluated:
        rows = _accuracies(summary)
        figures["accuracy_figure"] = drawn(page_plots.accuracies(rows), listed("Accuracy", rows))
    if sections:
        accuracies = [
            f"{page_plots.section_name(row['section'])} {', '.join(f'{w} {percent(row[w])}' for w in evaluated)}"
            for row in sections
        ]
        figures["sections_figure"] = drawn(
            page_plots.sections(sections, sides), f"Accuracy by section: {'; '.join(accuracies)}"
        )
    if not warmup.empty:
        figures["warmup_figure"] = drawn(plots.series_figure(warmup, "loss"), _course("Warm-up loss", warmup["loss"]))
    return (
        figures
        | _times(metrics)
        | {
            "reward": series.pop("reward", None),
            "series": list(series.values()),
            "levels": [(label, summary.get(key)) for key, label, *_ in plots.LEVELS],
        }
    )


def _accuracies(summary: Mapping[str, Any]) -> list[page_plots.Row]:
    """The rows of the accuracy plot: before, after, and what they are compared with."""
    sides = (("before", plots.BEFORE), ("after", plots.AFTER))
    rows = [
        page_plots.Row(f"{when} GRPO", summary[when]["accuracy"], summary[when]["ci"], colour)
        for when, colour in sides
        if summary.get(when)
    ]
    return rows + level_rows(summary)


def _course(title: str, values: pd.Series) -> str:
    """The text that stands for a curve."""
    measured = values.dropna()
    return f"{title} over {len(values)} steps: {measured.iloc[0]:.3g} at first, {measured.iloc[-1]:.3g} at last"


def _times(metrics: pd.DataFrame) -> dict[str, Any]:
    """The time of each phase of a step. A slow first step, which compiled programs, is not plotted: it would hide the rest."""
    seconds = phases(metrics)
    steps = seconds.sum(axis=1)
    total = float(steps.sum())
    slow = len(steps) > 2 and steps.iloc[0] > SLOW_START * steps.iloc[1:].median()
    plotted = slice(1 if slow else 0, None)  # steps
    later = seconds.iloc[plotted]
    figure: Markup | str = ""
    if total:
        spent = ", ".join(f"{name} {duration(value)}" for name, value in later.mean().items())
        figure = drawn(page_plots.times(metrics["step"].iloc[plotted], later), f"Seconds per step, on average: {spent}")
    return {
        "phases_figure": figure,
        "phases": [
            {
                "name": name,
                "seconds": values.sum(),
                "share": values.sum() / total if total else None,
                "mean": values.iloc[plotted].mean(),
                "first": values.iloc[0],
            }
            for name, values in seconds.items()
        ],
        "total_seconds": total,
        "mean_seconds": float(later.sum(axis=1).mean()) if len(later) else 0.0,
        "slow_start": float(steps.iloc[0]) if slow else None,
        "usual_step": float(steps.iloc[1:].median()) if slow else None,
        "first_step": int(metrics["step"].iloc[0]) if slow else None,
    }
