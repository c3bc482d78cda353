"""The page of an evaluation: what happened in a sentence, plots, tables, and how it was made; one self-contained HTML file.

It shows no patient's text but in `examples`, which are the caller's decision.
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
    found: Mapping[str, Any],
    *,
    title: str,
    made: Mapping[str, str] | None = None,
    names: Mapping[str, str] | None = None,
    examples: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page for what `launch.evaluate` puts into `summary.json`.

    `made`: how it was made, as label and text; `names`: what a reader sees for a feature; `examples`: as in
    `completions.jsonl`.
    """
    values = {
        "title": title,
        "found": found,
        "sentence": first_sentence(found),
        "figures": figures(found),
        "sections_figure": sections_figure(found["per_section"]),
        "measures": MEASURES,
        "made": made or {},
        "names": names or {},
        "examples": examples,
    }
    write_html(path, "evaluation.html", values)


def first_sentence(found: Mapping[str, Any]) -> str:
    """What happened, in two sentences."""
    patients = "1 patient" if found["patients"] == 1 else f"{found['patients']:,} patients"
    text = (
        f"The model answered {percent(found['accuracy'])} of {found['n']:,} questions about {patients} right (95% interval "
        f"{interval(found['ci'])}); always the most frequent value would be right in {percent(found['majority_accuracy'])}."
    )
    written = found.get("boxed") or found
    read = f"An answer could be read in {percent(written['answered'])}"
    if found.get("truncated") is None:
        return f"{text} {read}."
    return f"{text} {read}; the length limit cut off {percent(found['truncated'])}."


def figures(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The plots beside each other: `title`, `svg`, `caption`; those whose figures are there."""
    rows = [Row("this model", found["accuracy"], found.get("ci"))]
    if found.get("boxed"):
        rows.append(Row("boxed by itself", found["boxed"]["accuracy"], found["boxed"]["ci"], COLOURS["five"]))
    baselines = found.get("baselines") or {}
    for name, row in baselines.items():
        rows.append(Row(name, row["accuracy"], row["ci"], COLOURS["majority" if name == MAJORITY else "four"], "s"))
    levels = {name: value for name, value in found.items() if not (baselines and name == "majority_accuracy")}
    rows += level_rows(levels)
    shown = [_panel("Accuracy", page_plots.accuracies(rows), listed("Accuracy", rows), "Lines are 95% intervals.")]
    endings = found.get("endings")
    if endings:
        said = "; ".join(f"{page_plots.ENDINGS[name][0]} {percent(share)}" for name, share in endings.items())
        shown.append(_panel("How the answers ended", page_plots.endings(endings), said, "Shares of all questions."))
    if found.get("letters") and found.get("right_letters"):
        chosen, right = found["letters"], found["right_letters"]
        every = sorted({*chosen, *right}, key=lambda letter: (letter == "", letter))
        said = "; ".join(
            f"{name or 'none'} chosen {percent(chosen.get(name, 0.0))}, right {percent(right.get(name, 0.0))}"
            for name in every
        )
        caption = "A model that prefers a letter, whatever the question, chooses it more often than it is right."
        shown.append(_panel("Letters", page_plots.letters(chosen, right), said, caption))
    if found.get("binary"):
        bins = found["binary"]["reliability"]
        said = "; ".join(f"{percent(row['probability'])} given, {percent(row['frequency'])} seen" for row in bins)
        caption = "Points on the dashed line: of those given 30%, 30% have it. Larger points are more questions."
        shown.append(_panel("Reliability", page_plots.reliability(found["binary"]), f"Reliability: {said}", caption))
    return shown


def sections_figure(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Accuracy by section of the record."""
    said = "; ".join(f"{page_plots.section_name(row['section'])} {percent(row['accuracy'])}" for row in rows)
    return drawn(
        page_plots.sections(rows, {"accuracy": "this model"}, majority=MAJORITY), f"Accuracy by section: {said}"
    )


def _panel(title: str, figure: Any, alt: str, caption: str) -> dict[str, Any]:
    return {"title": title, "svg": drawn(figure, alt), "caption": caption}
