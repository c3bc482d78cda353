"""The page of an evaluation: the result in a sentence, plots, tables, and how it was made; one self-contained HTML file.

It shows patients' text only in `examples`; the caller decides whether there are any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from shared.report import page_plots
from shared.report.page import drawn, level_rows, listed, write_html
from shared.report.page_plots import Row
from shared.report.plots import COLOURS
from shared.report.words import interval, percent

MAJORITY = "most frequent value"  # the baseline, and the level of a section
MEASURES = {
    "auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier score", "ece": "Expected calibration error",
    "prevalence": "Prevalence of yes",
}  # fmt: skip


def write_page(
    path: Path,
    summary: Mapping[str, Any],
    *,
    title: str,
    made: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page for the `summary` of an evaluation (`shared.evaluation.summary`).

    `made`: how it was made, as label and text. `names`: what a reader sees for each feature. `examples`: rows as in
    `completions.jsonl`.
    """
    values = {
        "title": title,
        "summary": summary,
        "sentence": first_sentence(summary),
        "figures": figures(summary),
        "sections_figure": sections_figure(summary["per_section"]),
        "measures": MEASURES,
        "made": made or {},
        "names": names or {},
        "examples": examples,
    }
    write_html(path, "evaluation.html", values)


def first_sentence(summary: Mapping[str, Any]) -> str:
    """The result in two sentences."""
    patients = "1 patient" if summary["patients"] == 1 else f"{summary['patients']:,} patients"
    text = (
        f"The model answered {percent(summary['accuracy'])} of {summary['n']:,} questions about {patients} right (95% interval "
        f"{interval(summary['ci'])}); always the most frequent value would be right in {percent(summary['majority_accuracy'])}."
    )
    written = summary.get("boxed") or summary
    answered = f"An answer could be read in {percent(written['answered'])}"
    if summary.get("truncated") is None:
        return f"{text} {answered}."
    return f"{text} {answered}; the length limit cut off {percent(summary['truncated'])}."


def figures(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plots of the figures that there are, each with `title`, `svg` and `caption`."""
    rows = [Row("this model", summary["accuracy"], summary.get("ci"))]
    if summary.get("boxed"):
        rows.append(Row("boxed by itself", summary["boxed"]["accuracy"], summary["boxed"]["ci"], COLOURS["five"]))
    baselines = summary.get("baselines") or {}
    for name, row in baselines.items():
        rows.append(Row(name, row["accuracy"], row["ci"], COLOURS["majority" if name == MAJORITY else "four"], "s"))
    levels = {name: value for name, value in summary.items() if not (baselines and name == "majority_accuracy")}
    rows += level_rows(levels)
    panels = [_panel("Accuracy", page_plots.accuracies(rows), listed("Accuracy", rows), "Lines are 95% intervals.")]
    endings = summary.get("endings")
    if endings:
        alt = "; ".join(f"{page_plots.ENDINGS[name][0]} {percent(share)}" for name, share in endings.items())
        panels.append(_panel("How the answers ended", page_plots.endings(endings), alt, "Shares of all questions."))
    if summary.get("letters") and summary.get("right_letters"):
        chosen, right = summary["letters"], summary["right_letters"]
        names = sorted({*chosen, *right}, key=lambda letter: (letter == "", letter))
        alt = "; ".join(
            f"{name or 'none'} chosen {percent(chosen.get(name, 0.0))}, right {percent(right.get(name, 0.0))}"
            for name in names
        )
        caption = "A model that prefers a letter, whatever the question, chooses it more often than it is right."
        panels.append(_panel("Letters", page_plots.letters(chosen, right), alt, caption))
    if summary.get("binary"):
        bins = summary["binary"]["reliability"]
        alt = "; ".join(f"{percent(row['probability'])} given, {percent(row['frequency'])} seen" for row in bins)
        caption = "Points on the dashed line: of those given 30%, 30% have it. Larger points are more questions."
        panels.append(_panel("Reliability", page_plots.reliability(summary["binary"]), f"Reliability: {alt}", caption))
    return panels


def sections_figure(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy by section of the record."""
    alt = "; ".join(f"{page_plots.section_name(row['section'])} {percent(row['accuracy'])}" for row in rows)
    return drawn(
        page_plots.sections(rows, {"accuracy": "this model"}, majority=MAJORITY), f"Accuracy by section: {alt}"
    )


def _panel(title: str, figure: Any, alt: str, caption: str) -> dict[str, Any]:
    return {"title": title, "svg": drawn(figure, alt), "caption": caption}
