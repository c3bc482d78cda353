"""The result of a run in words: a sentence for its page, and one screen for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.report import plots
from shared.report.words import duration, interval, percent, points, readings_in_words

REPORT_FILE = "report.html"
SUMMARY_FILE = "summary.json"


def headline(summary: Mapping[str, Any]) -> str:
    """The result of a run in words. It claims no more than the intervals allow."""
    before, after, gain = (summary.get(name) for name in ("before", "after", "gain"))
    if not (before and after and gain):
        evaluated = before or after
        if not evaluated:
            return "This run has not been evaluated yet."
        when, other = ("Before", "after") if before else ("After", "before")
        return (
            f"{when} GRPO, accuracy on {_questions(evaluated)} is {_accuracy(evaluated)}. The evaluation {other} is still "
            "missing."
        )
    text = (
        f"On {_questions(after)}, accuracy went from {_accuracy(before)} before GRPO to {_accuracy(after)} after it: a change of "
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


def _questions(evaluation: Mapping[str, Any]) -> str:
    patients = "patient" if evaluation["patients"] == 1 else "patients"
    return f"{evaluation['n']:,} questions about {evaluation['patients']:,} held-out {patients}"


def _accuracy(evaluation: Mapping[str, Any]) -> str:
    return f"{percent(evaluation['accuracy'])} (95% interval {interval(evaluation['ci'])})"


def terminal_summary(summary: Mapping[str, Any], workdir: Path) -> str:
    """The result of a run for one screen, without any patient's text. Lines have at most 80 columns, but for paths."""
    before, after = summary.get("before"), summary.get("after")
    lines = [f"{summary.get('run_name', 'run')}  (seed {summary.get('seed', '?')})", ""]
    lines += [f"  {'':<16}{'accuracy':>9}   {'95% interval':<17}{'macro-F1':>9}{'answered':>10}{'cut off':>9}"]
    for name, evaluation in (("before GRPO", before), ("after GRPO", after)):
        if evaluation:
            lines.append(
                f"  {name:<16}{percent(evaluation['accuracy']):>9}   {interval(evaluation['ci']):<17}"
                f"{evaluation['macro_f1']:>9.3f}{percent(evaluation['answered']):>10}{percent(evaluation['truncated']):>9}"
            )
        else:
            lines.append(f"  {name:<16}{'not evaluated yet':>9}")
    if summary.get("gain"):
        change = f"{100 * summary['gain']['value']:+.1f}"
        bounds = interval(summary["gain"]["ci"], points).removesuffix(" points")
        lines.append(f"  {'gain, points':<16}{change:>8}    {bounds}")
    lines += [
        f"  boxes {when}: {readings_in_words(evaluation['readings'])}"
        for when, evaluation in (("before", before), ("after", after))
        if evaluation and evaluation.get("readings")
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
