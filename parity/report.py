"""What a parity run leaves: a table for the terminal, `parity.json`, and a page with figures."""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from parity.check import Check
from parity.faults import FAULTS
from parity.rungs.gradients import GRADIENT_BOUND
from parity.runner import LADDER, NUMBERS, culprit, worst
from parity.world import World
from shared.report import plots
from shared.report.page import write_html
from shared.storage import files

JSON_FILE, REPORT_FILE, CURVES_FILE = "parity.json", "parity.html", "curves.json"
PACKAGES = ("jax", "flax", "optax", "torch", "deepspeed", "vllm", "transformers", "numpy")
GRADIENTS = "gradient error of each parameter"
UNITS = {
    "nats": "difference of log-probabilities, natural logarithm",
    "relative": "difference over the size of what is expected",
    "relative L2": "L2 distance of an array over the norm of what is expected",
    "1 - cosine": "of the angle between two arrays; 0 is the same direction",
    "learning rates": "root mean square of the distance of a movement, over the learning rate",
    "of the largest": "difference over the largest gradient of all tokens",
    "absolute": "difference of two numbers",
    "not equal": "how many things are not exactly equal",
    "share": "share of completions that differ",
}
PLACE = re.compile(r"(?P<name>.+)\[(?P<at>\d+(?:, \d+)*)\]", re.DOTALL)
WIDTH = 52  # characters of a check's name in the table


def write(workdir: Path, checks: Sequence[Check], world: World, *, inject: str = "") -> None:
    """Write `parity.json` (the checks), `curves.json` (what is drawn) and the page."""
    files.write_json(workdir / JSON_FILE, [_finite(check.row()) for check in checks])
    files.write_json(workdir / CURVES_FILE, world.curves)
    page = {
        "title": world.config.name,
        "verdict": verdict(checks),
        "fault": FAULTS[inject].what if inject else "",
        "notes": world.notes,
        "environment": environment(world.config.device),
        "rungs": [
            (number, rung, made)
            for number, rung in enumerate(LADDER)
            if (made := [check for check in checks if check.rung == rung.name])
        ],
        "gradients": GRADIENTS,
        "units": {unit: UNITS[unit] for unit in UNITS if any(check.unit == unit for check in checks)},
        "number": number,
        "place": place,
        "figures": [
            (name, Markup(plots.svg(_figure(name, curves), f"{name}: {', '.join(curves)}")))
            for name, curves in world.curves.items()
        ],
    }
    write_html(workdir / REPORT_FILE, "parity.html", page)


def table(checks: Sequence[Check]) -> str:
    """One line for each check and what it is held against: its worst family, the figure and the bound."""
    grouped: dict[tuple[str, str, str], list[Check]] = {}
    for check in checks:
        grouped.setdefault((_rung(check), check.check, check.against), []).append(check)
    rungs = max([len("rung"), *(len(rung) for rung, _, _ in grouped)]) + 2
    width = max([WIDTH, *(len(check.check) + 2 for check in checks)])
    lines = [f"{'rung':<{rungs}}{'check':<{width}}{'against':<14}{'worst':>10}{'bound':>10}  where"]
    for (rung, name, against), same in grouped.items():
        top = max(same, key=lambda check: (check.excess, check.value))
        where = ", ".join(part for part in (top.family if len(same) > 1 else "", place(top.worst)) if part)
        mark = "" if top.passed else "  FAILED"
        lines.append(f"{rung:<{rungs}}{name:<{width}}{against:<14}{top.value:>10.1e}{top.bound:>10.1e}  {where}{mark}")
    return "\n".join(lines)


def place(worst: str) -> str:
    """Where a check is worst, in words: `question 1, completion 4[11]` is its token 11. All counts begin at 0."""
    found = PLACE.fullmatch(worst)
    if found is None:
        return worst
    name, at = found["name"], found["at"].split(", ")
    if len(at) == 1:
        if name == "token":
            return f"token {at[0]}"
        return f"{name}, {'token' if 'completion' in name else 'element'} {at[0]}"
    if len(at) == 2 and name == "token":
        return f"row {at[0]}, token {at[1]}"
    if len(at) == 2 and name.startswith(("separate rows", "prompts padded")):
        return f"{name}, completion {at[0]}, token {at[1]}"
    return f"{name}, element ({', '.join(at)})"


def number(value: float) -> str:
    """A measured value or its bound for the page."""
    return (
        "not a number"
        if np.isnan(value)
        else f"{value:.0f}"
        if value == round(value) and value < 100
        else f"{value:.1e}"
    )


def verdict(checks: Sequence[Check]) -> str:
    """The result in words."""
    failed = [check for check in checks if not check.passed]
    top = worst(list(checks))
    if not failed:
        return (
            f"All {len(checks)} checks are within their bounds; nearest to its bound: {_described(top)}, "
            f"{top.value:.1e} of {top.bound:.1e} ({top.unit}) at {place(top.worst)}."
        )
    first = culprit(list(checks))
    assert first is not None
    return (
        f"{len(failed)} of {len(checks)} checks FAILED. Worst: {_described(top)}, {top.value:.1e} where {top.bound:.1e} is "
        f"allowed ({top.unit}), at {place(top.worst)}. Look first at the lowest rung that failed: {_described(first)}, "
        f"{first.value:.1e} at {place(first.worst)}."
    )


def environment(device: str) -> dict[str, str]:
    """Versions and what was computed on."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    if device == "cuda":
        found |= {"torch on": torch.cuda.get_device_name(), "jax on": jax.devices()[0].device_kind}
    return found


def _rung(check: Check) -> str:
    return f"{NUMBERS[check.rung]} {check.rung}"


def _described(check: Check) -> str:
    return f"rung {_rung(check)}, {check.check} ({check.family}, against {check.against})"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no not-a-number: null, which no bound lets pass."""
    return {**row, "value": row["value"] if np.isfinite(row["value"]) else None}


def _figure(name: str, curves: Mapping[str, Any]) -> Figure:
    """Errors of parameters as points, anything else as lines over optimizer steps."""
    height = 0.9 + 0.19 * len(curves) if name == GRADIENTS else 2.6 + 0.18 * len(curves)
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(plots.WIDTH, height), layout="constrained")
        axes = figure.subplots()
        if name == GRADIENTS:
            _errors(axes, curves)
            return figure
        logarithmic = name.startswith("drift")
        dashes = itertools.cycle(["-", "--", ":", "-."])
        for colour, (label, values) in zip(itertools.cycle(plots.PHASES), curves.items()):
            shown = np.where(np.array(values) > 0, values, np.nan) if logarithmic else np.array(values)
            axes.plot(range(len(shown)), shown, next(dashes), color=colour, linewidth=1.8, label=label)
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.legend(loc="outside upper left", ncols=1, frameon=False, fontsize=8.5)
        if logarithmic:
            axes.set_yscale("log")
            axes.set_ylabel("relative L2 distance")
    return figure


def _errors(axes: Axes, curves: Mapping[str, Any]) -> None:
    """A line for each family, preset and backend, a point for each parameter; those that are exact have no place here."""
    for row, (colour, values) in enumerate(zip(itertools.cycle(plots.PHASES), curves.values())):
        points = np.array([value for value in values.values() if value > 0])
        axes.scatter(points, np.full(len(points), row), s=14, color=colour, alpha=0.6)
    axes.set_yticks(range(len(curves)), list(curves), fontsize=7.5)
    axes.set_ylim(len(curves) - 0.4, -0.6)
    axes.set_xscale("log")
    axes.set_xlim(min(GRADIENT_BOUND / 1_000, axes.get_xlim()[0]), GRADIENT_BOUND * 3)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(GRADIENT_BOUND, color=plots.SOFT, linestyle="--", linewidth=1.2)
    axes.set_xlabel("relative L2 error", fontsize=8.5)
