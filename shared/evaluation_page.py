"""The page of an evaluation: its figures as tables, one self-contained HTML file without any patient's text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from shared import plots
from shared.report import write_html


def write_page(path: Path, found: Mapping[str, Any], *, title: str) -> None:
    """Write the page for what `launch.evaluate` puts into `summary.json`."""
    figure = ""
    if found.get("binary"):
        figure = plots.svg(reliability_figure(found["binary"]), "Reliability of the probabilities")
    write_html(path, "evaluation.html", {"title": title, "found": found, "reliability": Markup(figure)})


def reliability_figure(binary: Mapping[str, Any]) -> Figure:
    """Frequency of the event over the probability given to it; the size of a point is its number of questions."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(4.2, 4.0), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color="#9aa5b1", linestyle=(0, (4, 3)), label="calibrated")
        bins = binary["reliability"]
        largest = max(row["n"] for row in bins)
        axes.scatter(
            [row["probability"] for row in bins],
            [row["frequency"] for row in bins],
            s=[30 + 200 * row["n"] / largest for row in bins],
            color=plots.LINE,
            edgecolor="white",
        )
        axes.set_xlim(-0.02, 1.02)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("probability given to yes")
        axes.set_ylabel("frequency of yes")
        axes.legend(frameon=False, fontsize=8.5, loc="upper left")
    return figure
