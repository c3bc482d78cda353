"""The plots of pages: narrow, so that a phone shows their text in its own size; wide screens put them side by side."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from shared.report.plots import AFTER, BEFORE, COLOURS, INK, LEVELS, LINE, PHASES, SHEET, SOFT, STYLE, WIDTH

MARKERS = {"bayes_accuracy": "D", "majority_accuracy": "s", "chance_accuracy": "^"}
SMALL = 8.5  # points
TEXT_WIDTH = 240  # points that a line of text above a row may take
LINE_HEIGHT = 0.15  # inches
BARS = 60  # in the figure of times; neighbouring steps share one
ENDINGS = {
    "right": ("right", COLOURS["good"]),
    "wrong": ("wrong", COLOURS["six"]),
    "cut_off": ("no readable answer, cut off", COLOURS["seven"]),
    "unreadable": ("no readable answer, ended", COLOURS["before"]),
    "no_answer": ("no readable answer", COLOURS["before"]),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a plot: a share between 0 and 1, and the two bounds of its interval where it has one."""

    label: str
    value: float
    ci: Sequence[float] | None = None
    colour: str = AFTER
    marker: str = "o"


def accuracies(rows: Sequence[Row]) -> Figure:
    """Accuracies below each other, each with its interval and its number."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.55 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for height, row in enumerate(reversed(rows)):
            _point(axes, height, row, size=6)
            axes.annotate(f"{row.value:.1%}", (1, height), (5, 0), xycoords=("axes fraction", "data"), fontsize=SMALL,
                          textcoords="offset points", va="center", color=INK)  # fmt: skip
        axes.set_yticks(range(len(rows)), [plain(row.label) for row in reversed(rows)])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(rows) - 0.4)
        _shares(axes)
    return figure


def sections(
    rows: Sequence[Mapping[str, Any]], sides: Mapping[str, str], *, majority: str = "majority class"
) -> Figure:
    """For each section its name and number of questions; on the line below, its accuracies and what they are compared with.

    `rows`: the table `per_section` of a `summary.json`. `sides`: the keys of the accuracies in a row, each with its name in the
    legend; the interval of the key `accuracy` is `ci`, of any other key `ci_KEY`. `majority`: the legend's name for the most
    frequent option.
    """
    heights, texts, height = [], [], 0.0
    for row in rows:
        count = "1 question" if row["n"] == 1 else f"{row['n']:,} questions"
        lines = wrapped(f"{section_name(row['section'])}, {count}", SMALL)
        texts.append((height, "\n".join(lines)))
        height += LINE_HEIGHT * len(lines) + 0.14
        heights.append(height)
        height += 0.2
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height + 0.95), layout="constrained")
        axes = figure.subplots()
        shift = 0.045 if len(sides) > 1 else 0.0  # two intervals on one line would hide each other
        for number, (key, label) in enumerate(sides.items()):
            colour = (BEFORE, AFTER)[number] if len(sides) > 1 else AFTER
            for place, row in zip(heights, rows):
                if row.get(key) is not None:
                    ci = row.get(key.replace("accuracy", "ci") if key == "accuracy" else f"ci_{key}")
                    _point(axes, place + shift * (2 * number - 1), Row(label, row[key], ci, colour), size=5)
            axes.plot([], [], "o", color=colour, label=label)
        for key, label, colour, _ in LEVELS:
            points = [(row[key], place) for row, place in zip(rows, heights) if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points), MARKERS[key], color=colour, markersize=4.5,
                          label=majority if key == "majority_accuracy" else label, fillstyle="none",
                          clip_on=False)  # fmt: skip
        for place, text in texts:
            axes.annotate(text, (0, place), xycoords=("axes fraction", "data"), va="top", fontsize=SMALL, color=INK)
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
        axes.set_ylim(height, -0.05)
        _shares(axes)
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=SMALL)
    return figure


def letters(answered: Mapping[str, float], right: Mapping[str, float]) -> Figure:
    """Shares of each letter among the answers, and among the right ones; "none" where no letter was read."""
    names = sorted({*answered, *right}, key=lambda letter: (letter == "", letter))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.3), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(names))
        for shift, shares, colour, label in ((-0.2, answered, AFTER, "chosen"), (0.2, right, BEFORE, "right")):
            axes.bar(places + shift, [shares.get(name, 0.0) for name in names], 0.36, color=colour, label=label)
        axes.set_xticks(places, [name or "none" for name in names])
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="x", visible=False)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=SMALL)
    return figure


def endings(shares: Mapping[str, float]) -> Figure:
    """How the answers ended, as bars: `shares` by the keys of ENDINGS, in the order of ENDINGS."""
    bars = [(*ENDINGS[name], shares[name]) for name in ENDINGS if name in shares]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.5 + 0.46 * len(bars)), layout="constrained")
        axes = figure.subplots()
        for height, (label, colour, value) in enumerate(bars):
            axes.barh(height, value, 0.36, color=colour)
            axes.annotate(f"{label}: {value:.1%}", (0, height - 0.24), (3, 0), textcoords="offset points", va="bottom",
                          fontsize=SMALL, color=INK)  # fmt: skip
        axes.set_yticks([])
        axes.set_ylim(len(bars) - 0.65, -0.8)
        _shares(axes)
    return figure


def reliability(binary: Mapping[str, Any]) -> Figure:
    """How often the answer was yes, over the probability given to yes; a larger point has more questions."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=SOFT, linestyle=(0, (4, 3)), label="calibrated")
        bins = binary["reliability"]
        largest = max(row["n"] for row in bins)
        axes.scatter(
            [row["probability"] for row in bins],
            [row["frequency"] for row in bins],
            s=[30 + 200 * row["n"] / largest for row in bins],
            color=LINE,
            edgecolor=SHEET,
        )
        axes.set_xlim(-0.04, 1.04)
        axes.set_ylim(-0.04, 1.04)
        axes.set_xlabel("probability given to yes")
        axes.set_ylabel("frequency of yes")
        axes.legend(frameon=False, fontsize=SMALL, loc="upper left")
    return figure


def times(steps: pd.Series, phases: pd.DataFrame) -> Figure:
    """Seconds of each of `steps`, as bars stacked by phase (the columns of `phases`). A bar may stand for neighbouring steps."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.subplots()
        bar = np.arange(len(steps)) // -(-len(steps) // BARS)
        at = steps.groupby(bar).mean()
        width = 0.9 * (at.diff().median() if len(at) > 1 else 1.0)
        below = np.zeros(len(at))
        for number, (phase, seconds) in enumerate(phases.items()):
            height = seconds.groupby(bar).mean().to_numpy()
            axes.bar(at, height, width, bottom=below, color=PHASES[number % len(PHASES)], label=plain(str(phase)))
            below = below + height
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("seconds per step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=SMALL)
    return figure


def section_name(header: str) -> str:
    """The header of a section without its brackets, with blanks between its parts, so that a line can end there."""
    return " / ".join(part.strip() for part in header.strip("[]").split("/"))


def plain(text: str) -> str:
    """The text as matplotlib must have it to show it unchanged: two dollar signs would enclose a formula."""
    return text.replace("$", r"\$")


def wrapped(text: str, size: float) -> list[str]:
    """The text in lines of at most TEXT_WIDTH points; `size` is that of the letters, in points.

    Chinese, Japanese and Korean characters are wider than others.
    """
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and _width(longer, size) > TEXT_WIDTH:
            lines.append(line)
            line = word
        else:
            line = longer
        while _width(line, size) > TEXT_WIDTH:  # a single word
            fits = next(n for n in range(len(line), 0, -1) if n == 1 or _width(line[:n], size) <= TEXT_WIDTH)
            lines.append(line[:fits])
            line = line[fits:]
    return [plain(line) for line in [*lines, line] if line]


def _width(text: str, size: float) -> float:
    """The width of the text in points, roughly, in DejaVu Sans; most fonts that a browser may take are narrower."""
    return size * sum(1.05 if unicodedata.east_asian_width(letter) in "WF" else 0.58 for letter in text)


def _point(axes: Axes, height: float, row: Row, *, size: float) -> None:
    """Draw a row's interval and its marker."""
    if row.ci is not None:
        axes.plot(row.ci, [height, height], color=row.colour, linewidth=1.6, zorder=3, clip_on=False)
    axes.plot([row.value], [height], row.marker, color=row.colour, markersize=size, markeredgecolor=SHEET, zorder=4,
              clip_on=False)  # fmt: skip


def _shares(axes: Axes) -> None:
    """Make the horizontal axis one of shares, from 0% to 100%."""
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(axis="y", visible=False)
