"""One self-contained HTML page about a run, made from the files in its work directory, and one screen for a terminal.

The page needs no network and says so to the browser (a content security policy that allows none). Everything that
comes from a run, completions above all, is escaped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from shared.config import validate_stored
from shared.errors import InputError
from shared.evaluation import figures
from shared.registry.features import display_names
from shared.report import page_plots, plots
from shared.storage import files
from shared.training import health
from shared.training.metrics_log import METRICS_FILE, phases, read_metrics

TEMPLATES = Path(__file__).parent / "templates"
REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"
MAIN_PLOT = Path("plots") / "main.png"
SUMMARY_KEYS = ("before", "after", "gain", "per_section", "per_feature", "timings")  # None where a run has none yet
EXAMPLE_KEYS = {"when", "question", "completion", "answer", "predicted"}
FEW = 10  # questions; a change over fewer is shown without a colour, it says too little
SLOW_START = 2  # a first step that takes so many times as long as later ones has compiled programs
NO_STEPS = pd.DataFrame({"step": pd.Series(dtype="int64")})

# Metric, title, what it says. In the order of the page; a metric that a run lacks is left out and named as missing.
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
    """Whether completions may be shown: asked for, or the records are drawn here and so belong to nobody.

    A run on question files or raw files of its own may be about real patients, whatever its `cohort` says.
    """
    data = config.get("data", {})
    drawn_here = data.get("cohort") == "synthetic" and not any(data.get(name) for name in ("source", "train", "valid"))
    return show_examples or drawn_here


def write_report(workdir: Path, *, show_examples: bool) -> Path:
    """Write `report.html` and `plots/main.png` from a work directory's files, and return the page's path.

    What a run has not made yet is left out and said to be missing. `show_examples` is the caller's decision, see
    `examples_allowed`. Raises InputError where the folder holds no run at all, or a file of it is broken.
    """
    page = _gather(workdir, show_examples)
    plots.write_png(plots.main_figure(page["summary"], page["metrics"]), workdir / MAIN_PLOT)
    page |= _figures(page)
    write_html(workdir / REPORT_FILE, "report.html", page)
    return workdir / REPORT_FILE


def write_html(path: Path, template: str, values: Mapping[str, Any]) -> None:
    """Fill a template of this package and write the page, atomically. Values are escaped; one that is missing raises."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "interval": interval, "duration": duration, "points": points}
    environment.filters |= {"readings": readings_in_words, "section": page_plots.section_name}
    environment.globals["points"] = points
    html = environment.get_template(template).render(values)
    with files.replacing(path) as temporary:
        temporary.write_text(html, encoding="utf-8")


def terminal_summary(summary: Mapping[str, Any], workdir: Path) -> str:
    """The result of a run for one screen: no patient's text, at most 80 columns beside the paths."""
    before, after = summary.get("before"), summary.get("after")
    lines = [f"{summary.get('run_name', 'run')}  (seed {summary.get('seed', '?')})", ""]
    lines += [f"  {'':<16}{'accuracy':>9}   {'95% interval':<17}{'macro-F1':>9}{'answered':>10}{'cut off':>9}"]
    for name, part in (("before GRPO", before), ("after GRPO", after)):
        if part:
            lines.append(
                f"  {name:<16}{percent(part['accuracy']):>9}   {interval(part['ci']):<17}{part['macro_f1']:>9.3f}"
                f"{percent(part['answered']):>10}{percent(part['truncated']):>9}"
            )
        else:
            lines.append(f"  {name:<16}{'not evaluated yet':>9}")
    if summary.get("gain"):
        change = f"{100 * summary['gain']['value']:+.1f}"
        bounds = interval(summary["gain"]["ci"], points).removesuffix(" points")
        lines.append(f"  {'gain, points':<16}{change:>8}    {bounds}")
    lines += [
        f"  boxes {when}: {readings_in_words(part['readings'])}"
        for when, part in (("before", before), ("after", after))
        if part and part.get("readings")
    ]
    lines += [
        f"  {label:<16}{percent(summary[key]):>9}" for key, label, *_ in plots.LEVELS if summary.get(key) is not None
    ]
    timings = summary.get("timings") or {}
    if timings:
        speed = timings.get("tokens_per_second")
        speed_text = f", {speed:,.0f} tokens/s" if speed else ""
        lines += ["", f"  {timings['steps']:,} optimizer steps in {duration(timings['seconds'])}{speed_text}"]
    lines += ["", f"  report   {workdir / REPORT_FILE}", f"  figures  {workdir / SUMMARY_FILE}"]
    return "\n".join(lines)


def both_readings(figures: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The two readings of boxes of an evaluation, of the reasoning where letters were forced; None where they are not known."""
    return (figures.get("boxed") or figures).get("readings")


def readings_in_words(found: Mapping[str, Any]) -> str:
    """Both accuracies and how many answers differ, for a line of a terminal or a page."""
    strict, lenient, differ = found["strict"], found["lenient"], found["differ"]
    return (
        f"first box, read strictly: {percent(strict['accuracy'])}; last box, read leniently: {percent(lenient['accuracy'])}; "
        f"the two read another letter in {differ} {'question' if differ == 1 else 'questions'}"
    )


def headline(summary: Mapping[str, Any]) -> str:
    """The result in words, no more certain than its intervals."""
    before, after, gain = (summary.get(name) for name in ("before", "after", "gain"))
    if not (before and after and gain):
        done = before or after
        if not done:
            return "This run has not been evaluated yet."
        when, other = ("Before", "after") if before else ("After", "before")
        return f"{when} GRPO, accuracy on {_whom(done)} is {_sure(done)}. The evaluation {other} is still missing."
    text = (
        f"On {_whom(after)}, accuracy went from {_sure(before)} before GRPO to {_sure(after)} after it: a change of "
        f"{points(gain['value'])} ({interval(gain['ci'], points)})."
    )
    return " ".join([text, *_verdicts(summary, before, after, gain)])


def _verdicts(
    summary: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any], gain: Mapping[str, Any]
) -> list[str]:
    verdicts = []
    if gain["ci"] is not None and gain["ci"][0] <= 0 <= gain["ci"][1]:
        verdicts.append("The interval holds zero: these questions cannot tell the change from none.")
    bayes, majority = summary.get("bayes_accuracy"), summary.get("majority_accuracy")
    if majority is not None and after["ci"] is not None:
        low, high = after["ci"]
        side = "above" if low > majority else "below" if high < majority else "not distinguishable from"
        verdicts.append(f"That is {side} always taking the most frequent option ({percent(majority)}).")
    if bayes is not None and bayes > before["accuracy"] and gain["value"] > 0:
        closed = gain["value"] / (bayes - before["accuracy"])
        verdicts.append(f"It closes {closed:.0%} of the distance to the Bayes ceiling ({percent(bayes)}).")
    return verdicts


def _whom(part: Mapping[str, Any]) -> str:
    patients = "patient" if part["patients"] == 1 else "patients"
    return f"{part['n']:,} questions about {part['patients']:,} held-out {patients}"


def _sure(part: Mapping[str, Any]) -> str:
    return f"{percent(part['accuracy'])} (95% interval {interval(part['ci'])})"


def percent(value: float | None) -> str:
    """`0.1234` as `12.3%`; a dash where it is unknown."""
    return "–" if value is None else f"{100 * value:.1f}%"


def points(value: float | None) -> str:
    """A difference of accuracies, `0.1234` as `+12.3 points`."""
    return "–" if value is None else f"{100 * value:+.1f} points"


def interval(bounds: Sequence[float] | None, form: Any = percent) -> str:
    """Both bounds of an interval, their unit once."""
    if bounds is None:
        return "no interval"
    low, high = (form(bound) for bound in bounds)
    number = low.removesuffix("%").removesuffix(" points")
    return f"{number} to {high}"


def duration(seconds: float) -> str:
    """`75` as `1 min 15 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _gather(workdir: Path, show_examples: bool) -> dict[str, Any]:
    """What the page is made of, and what is missing of it."""
    known = [SUMMARY_FILE, METRICS_FILE, "config.json"]
    if not any((workdir / name).is_file() for name in known):
        raise InputError(f"{workdir}: holds no run (none of {', '.join(known)}); give a run's work directory")
    found = optional_json(workdir / SUMMARY_FILE, {})
    summary = dict.fromkeys(SUMMARY_KEYS) | found
    config = optional_json(workdir / "config.json", found.get("config", {}))
    metrics = read_metrics(workdir / METRICS_FILE) if (workdir / METRICS_FILE).is_file() else NO_STEPS
    warmup_path = workdir / "warmup" / METRICS_FILE
    warmup = read_metrics(warmup_path) if warmup_path.is_file() else NO_STEPS
    examples = optional_json(workdir / "evaluation" / "examples.json", [])
    if not all(isinstance(example, dict) and EXAMPLE_KEYS <= example.keys() for example in examples):
        raise InputError(f"{workdir / 'evaluation' / 'examples.json'}: not what a run writes there; remove it")
    parts = {when: _answered(workdir, when) for when in ("before", "after")}
    return {
        "summary": summary,
        "run_name": found.get("run_name") or config.get("name", workdir.name),
        "seed": found.get("seed", config.get("seed", "?")),
        "environment": summary.get("environment") or {},
        "headline": headline(summary),
        "metrics": metrics,
        "health": _health(config, metrics),
        "warmup": warmup,
        "config": json.dumps(config, indent=2, ensure_ascii=False),
        "examples": examples if show_examples else [],
        "hidden_examples": 0 if show_examples else len(examples),
        "lengths": parts,
        "missing": _missing(workdir, found, config, metrics),
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
    if not (workdir / "config.json").is_file() and not summary.get("config"):
        missing.append("config.json: the configuration of the run")
    return missing


def _answered(workdir: Path, when: str) -> dict[str, float] | None:
    """Completion lengths of an evaluation in tokens, at the quartiles; None where it has not been made."""
    path = workdir / "evaluation" / f"{when}.parquet"
    if not path.is_file():
        return None
    lengths = pd.Series([answer.tokens for answer in figures.read_answers(path)])
    if lengths.empty:
        return None
    quantiles = {"low": 0.25, "median": 0.5, "high": 0.75}
    return {name: float(lengths.quantile(level)) for name, level in quantiles.items()}


def optional_json(path: Path, otherwise: Any) -> Any:
    """What a JSON file of a run holds, or `otherwise` where there is none; InputError where it is of another type."""
    found = files.read_json(path) if path.is_file() else otherwise
    if not isinstance(found, type(otherwise)):
        raise InputError(f"{path}: not what a run writes there; give a run's work directory")
    return found


def _figures(page: Mapping[str, Any]) -> dict[str, Any]:
    """The page's figures as SVG, and the rows of its table of times."""
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
    found: dict[str, Any] = {"accuracy_figure": "", "sections_figure": "", "warmup_figure": ""}
    if evaluated:
        rows = _accuracies(summary)
        found["accuracy_figure"] = drawn(page_plots.accuracies(rows), listed("Accuracy", rows))
    if sections:
        told = [
            f"{page_plots.section_name(row['section'])} {', '.join(f'{w} {percent(row[w])}' for w in evaluated)}"
            for row in sections
        ]
        found["sections_figure"] = drawn(
            page_plots.sections(sections, sides), f"Accuracy by section: {'; '.join(told)}"
        )
    if not warmup.empty:
        found["warmup_figure"] = drawn(plots.series_figure(warmup, "loss"), _course("Warm-up loss", warmup["loss"]))
    return (
        found
        | _times(metrics)
        | {
            "reward": series.pop("reward", None),
            "series": list(series.values()),
            "levels": [(label, summary.get(key)) for key, label, *_ in plots.LEVELS],
        }
    )


def drawn(figure: Any, alt: str) -> Markup:
    """A figure for a page, with the text that stands for it."""
    return Markup(plots.svg(figure, alt))


def listed(what: str, rows: Sequence[page_plots.Row]) -> str:
    """A figure of accuracies in words."""
    return f"{what}: {'; '.join(f'{row.label} {percent(row.value)} ({interval(row.ci)})' for row in rows)}"


def level_rows(figures: Mapping[str, Any]) -> list[page_plots.Row]:
    """What an accuracy is held against, for a figure."""
    return [
        page_plots.Row(label, figures[key], None, colour, page_plots.MARKERS[key])
        for key, label, colour, _ in plots.LEVELS
        if figures.get(key) is not None
    ]


def _accuracies(summary: Mapping[str, Any]) -> list[page_plots.Row]:
    sides = (("before", plots.BEFORE), ("after", plots.AFTER))
    rows = [
        page_plots.Row(f"{when} GRPO", summary[when]["accuracy"], summary[when]["ci"], colour)
        for when, colour in sides
        if summary.get(when)
    ]
    return rows + level_rows(summary)


def _course(title: str, values: pd.Series) -> str:
    known = values.dropna()
    return f"{title} over {len(values)} steps: {known.iloc[0]:.3g} at first, {known.iloc[-1]:.3g} at last"


def _times(metrics: pd.DataFrame) -> dict[str, Any]:
    """Where the time went; a first step that compiled programs is told apart, or nothing else could be seen."""
    seconds = phases(metrics)
    steps = seconds.sum(axis=1)
    total = float(steps.sum())
    slow = len(steps) > 2 and steps.iloc[0] > SLOW_START * steps.iloc[1:].median()
    shown = slice(1 if slow else 0, None)
    later = seconds.iloc[shown]
    figure: Markup | str = ""
    if total:
        spent = ", ".join(f"{name} {duration(value)}" for name, value in later.mean().items())
        figure = drawn(page_plots.times(metrics["step"].iloc[shown], later), f"Seconds per step, on average: {spent}")
    return {
        "phases_figure": figure,
        "phases": [
            {
                "name": name,
                "seconds": values.sum(),
                "share": values.sum() / total if total else None,
                "mean": values.iloc[shown].mean(),
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
