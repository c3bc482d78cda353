"""Plots of runs, drawn with matplotlib without a display: SVG for a page, PNG for a README.

The colours are those of Okabe and Ito, which readers with any colour vision can tell apart. Lines that matter also differ in
dash or marker. In a page the colours come from the style sheet, which has a light and a dark form of each.
"""

from __future__ import annotations

import html
import io
import itertools
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from shared.storage import files

# Name in `templates/style.css` and the colour on paper; no two are equal, since a page finds the name by the colour.
COLOURS = {
    "ink": "#1f2328", "soft": "#57606a", "grid": "#e4e8ec", "sheet": "#ffffff",
    "before": "#7b8794", "after": "#0072b2", "bayes": "#00785a", "majority": "#b45309", "chance": "#57606b",
    "one": "#0073b3", "two": "#c98a00", "three": "#009e73", "four": "#b9628f", "five": "#3d9bd0", "six": "#d55e00",
    "seven": "#8c8c8c", "good": "#00664b", "bad": "#b3261e",
}  # fmt: skip
INK, SOFT, GRID, SHEET = (COLOURS[name] for name in ("ink", "soft", "grid", "sheet"))
BEFORE, AFTER, LINE = COLOURS["before"], COLOURS["after"], COLOURS["one"]
# What an accuracy is compared with: key in the summary, label, colour, dash.
LEVELS = (
    ("bayes_accuracy", "Bayes ceiling", COLOURS["bayes"], (0, (6, 2))),
    ("majority_accuracy", "majority class", COLOURS["majority"], (0, (3, 2))),
    ("chance_accuracy", "chance", COLOURS["chance"], (0, (1, 1.5))),
)
PHASES = tuple(COLOURS[name] for name in ("one", "two", "three", "four", "five", "six", "seven"))
STYLE: Any = {  # Any: matplotlib's type lists every key
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",  # the page's own, light or dark
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "svg.fonttype": "none",  # text stays text: it can be selected and read aloud
}
WIDTH = 3.6  # inches of a figure in a page: a phone shows it in its own size
DPI = 150


def main_figure(summary: Mapping[str, Any], metrics: pd.DataFrame) -> Figure:
    """Two panels: accuracy before and after with intervals and levels, and the mean reward over steps.

    A panel without data says what is missing.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
        _accuracy(left, summary)
        curve(right, metrics, "reward")
        if right.get_legend_handles_labels()[0]:
            right.legend(frameon=False, fontsize=8.5, loc="best")
            right.set_ylabel("reward")
        right.set_title("Mean reward of sampled answers")
        figure.get_layout_engine().set(w_pad=0.15)  # type: ignore[union-attr, call-arg]
    return figure


def runs_figure(runs: Mapping[str, tuple[Mapping[str, Any], pd.DataFrame]]) -> Figure:
    """Several runs by name, each (summary, metrics): accuracy before and after with intervals, and the reward over steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=[1, 1.35])
        for position, (colour, (name, (summary, metrics))) in enumerate(zip(itertools.cycle(PHASES), runs.items())):
            for shift, when in ((-0.13, "before"), (0.13, "after")):
                value, (low, high) = summary[when]["accuracy"], summary[when]["ci"]
                left.errorbar(position + shift, value, [[value - low], [high - value]], fmt="o", color=colour,
                              capsize=4, markerfacecolor=SHEET if when == "before" else colour)  # fmt: skip
                left.text(position + shift, high + 0.015, f"{value:.1%}", ha="center", fontsize=8.5)
            for key, label, level, dash in LEVELS:
                if summary.get(key) is not None:
                    left.plot([position - 0.4, position + 0.4], [summary[key]] * 2, color=level, linestyle=dash,
                              label=label if position == 0 else None)  # fmt: skip
            average = metrics["reward"].rolling(max(1, len(metrics) // 20), center=True, min_periods=1).mean()
            right.plot(metrics["step"], average, color=colour, linewidth=2, label=name)
        left.set_xticks(range(len(runs)), list(runs))
        left.set_ylim(0, 1)
        left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        left.set_title("Accuracy before (open) and after GRPO (filled)")
        left.legend(frameon=False, fontsize=8.5, ncols=3, loc="upper center")
        right.set_title("Mean reward of sampled answers, moving average")
        right.set_xlabel("optimizer step")
        right.set_ylabel("reward")
        right.legend(frameon=False, fontsize=8.5)
    return figure


def overlay_figure(runs: Mapping[str, pd.DataFrame], names: Sequence[str]) -> Figure:
    """Metrics of several runs by name: for each of `names` the curves over each other, and below how far they are apart.

    The distance is that of a run from the first one, step by step, on a logarithmic axis.
    """
    first, *others = runs
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(names), 5.2), layout="constrained")
        axes = figure.subplots(2, len(names), squeeze=False, sharex=True, height_ratios=[1.4, 1])
        for (upper, lower), name in zip(axes.T, names):
            upper.set_title(name)
            for number, (label, metrics) in enumerate(runs.items()):
                # The first one is wide and pale, so that one that covers it does not hide it.
                style: Any = {"linewidth": 4.5, "alpha": 0.35} if label == first else {"linewidth": 1.3}
                upper.plot(metrics["step"], metrics[name], color=PHASES[number % len(PHASES)], label=label, **style)
            base = runs[first].set_index("step")[name]
            for number, label in enumerate(others, 1):
                gap = (runs[label].set_index("step")[name] - base).abs().dropna()
                positive = gap[gap > 0]  # a logarithmic axis has no zero
                lower.plot(positive.index, positive, ".", color=PHASES[number % len(PHASES)], markersize=4)
                if positive.empty:
                    lower.text(
                        0.5,
                        0.5 - 0.12 * number,
                        f"{label}: equal",
                        transform=lower.transAxes,
                        ha="center",
                        fontsize=8.5,
                    )
            lower.set_yscale("log")
            lower.set_xlabel("optimizer step")
            lower.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[1][0].set_ylabel("|difference from the first|")
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, frameon=False, fontsize=8.5)
    return figure


def series_figure(metrics: pd.DataFrame, name: str, *, smooth: bool = True) -> Figure:
    """One measured quantity over steps, small: every step faint, its moving average bold where `smooth`."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        curve(figure.subplots(), metrics, name, smooth=smooth)
    return figure


def curve(axes: Axes, metrics: pd.DataFrame, name: str, *, smooth: bool = True) -> None:
    """Draw column `name` over `step`: every step as a faint line, and a moving average over about 5% of the run."""
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if name not in metrics.columns or metrics[name].isna().all():
        _missing(axes, "not measured yet")
        return
    steps, values = metrics["step"], metrics[name]
    window = max(1, len(values) // 20) if smooth else 1
    faint = {"alpha": 0.35, "linewidth": 1.0} if window > 1 else {"alpha": 1.0, "linewidth": 1.8}
    marker = "o" if len(values) < 20 else None
    axes.plot(steps, values, color=LINE, marker=marker, markersize=3, label="each step", **faint)  # type: ignore[arg-type]
    if window > 1:
        average = values.rolling(window, center=True, min_periods=1).mean()
        axes.plot(steps, average, color=LINE, linewidth=2.2, label=f"mean of {window} steps")
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 5))


def svg(figure: Figure, alt: str) -> str:
    """The figure as an `<svg>` element for a page; `alt` is the text for readers who do not see it.

    It has the colours of the page. The same figure gives the same text: no date, no random ids.
    """
    text = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": alt}), warnings.catch_warnings():
        # The page has fonts for scripts that this one lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    element = text.getvalue()
    element = element[element.index("<svg") :]
    # Removed, since they would affect the whole page: ids that other figures have too, and style rules for every element.
    element = re.sub(r'<g id="[^"]*"', "<g", element)
    element = re.sub(r"<style type=\"text/css\">.*?</style>", "", element, flags=re.DOTALL)
    element = re.sub(r"(?<=: )#[0-9a-f]{6}\b", lambda colour: _NAMED.get(colour[0], colour[0]), element)
    element = element.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")
    return element.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alt)}" ', 1)


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG of 150 dots per inch, atomically."""
    with files.replacing(path) as temporary, matplotlib.rc_context(STYLE):
        FigureCanvasAgg(figure)
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white")


def _accuracy(axes: Axes, summary: Mapping[str, Any]) -> None:
    axes.set_title("Accuracy on held-out patients")
    parts = [(when, summary.get(when)) for when in ("before", "after")]
    if not any(part for _, part in parts):
        _missing(axes, "not evaluated yet")
        return
    for position, (when, part) in enumerate(parts):
        if not part:
            axes.text(position, 0.02, "not evaluated\nyet", ha="center", va="bottom", color=SOFT, fontsize=8.5)
            continue
        accuracy = part["accuracy"]
        low, high = part["ci"] or (accuracy, accuracy)
        axes.bar(position, accuracy, 0.56, color={"before": BEFORE, "after": AFTER}[when], zorder=2)
        axes.errorbar(position, accuracy, [[max(0.0, accuracy - low)], [max(0.0, high - accuracy)]], color=INK,
                      capsize=5, linewidth=1.6, zorder=4)  # fmt: skip
        inside = min(low, accuracy) > 0.09  # else the figure would stick out of its bar
        axes.text(position, 0.02 if inside else high + 0.02, f"{accuracy:.1%}", ha="center", va="bottom",
                  color=SHEET if inside and when == "after" else INK, fontweight="bold", fontsize=11,
                  zorder=5)  # fmt: skip
    levels = [
        (summary[key], label, colour, dash) for key, label, colour, dash in LEVELS if summary.get(key) is not None
    ]
    heights = _apart([level[0] for level in levels], 0.052)
    for (value, label, colour, dash), height in zip(levels, heights, strict=True):
        axes.plot([-0.45, 1.45], [value, value], color=colour, linestyle=dash, linewidth=1.7, zorder=3)
        axes.text(1.5, height, f"{label} {value:.1%}", color=colour, va="center", fontsize=9)
    axes.set_xticks([0, 1], ["before GRPO", "after GRPO"])
    axes.set_xlim(-0.5, 2.75)
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="x", visible=False)
    counts = [f"{part['n']:,} questions, {part['patients']:,} patients" for _, part in parts if part]
    axes.set_xlabel(f"{counts[-1]}; 95% intervals", fontsize=8.5)


def _apart(values: Sequence[float], distance: float) -> list[float]:
    """Heights for labels at `values`, in their order, moved up as little as keeps neighbours `distance` apart."""
    heights = list(values)
    order = sorted(range(len(values)), key=lambda index: values[index])
    for lower, upper in itertools.pairwise(order):
        heights[upper] = max(heights[upper], heights[lower] + distance)
    return heights


def _missing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=SOFT)
    axes.set_yticks([])


_NAMED = {colour: f"var(--{name}, {colour})" for name, colour in COLOURS.items()}
