"""What a parity run leaves: a table for the terminal, `parity.json`, and a page with figures."""

from __future__ import annotations

import importlib.metadata
import itertools
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
import torch
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from parity.check import Check
from parity.faults import FAULTS
from parity.rungs.gradients import GRADIENT_BOUND
from parity.runner import culprit, rung_of, worst
from parity.world import World
from shared import files, plots
from shared.report import write_html

JSON_FILE, REPORT_FILE, CURVES_FILE = "parity.json", "parity.html", "curves.json"
PACKAGES = ("jax", "flax", "optax", "torch", "deepspeed", "vllm", "transformers", "numpy")
GRADIENTS = "gradient error of each parameter"
WIDTH = 62  # characters of a check's name in the table


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
        "rungs": [(name, list(found)) for name, found in itertools.groupby(checks, rung_of)],
        "figures": [(name, Markup(plots.svg(_figure(name, curves), name))) for name, curves in world.curves.items()],
    }
    write_html(workdir / REPORT_FILE, "parity.html", page)


def table(checks: Sequence[Check]) -> str:
    """One line for each check and what it is held against: its worst family, the figure and the bound."""
    lines = [f"{'check':<{WIDTH}}{'against':<14}{'worst':>10}{'bound':>10}  where"]
    grouped: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        grouped.setdefault((check.check, check.against), []).append(check)
    for (name, against), found in grouped.items():
        top = max(found, key=lambda check: (check.excess, check.value))
        where = ", ".join(part for part in (top.family if len(found) > 1 else "", top.worst) if part)
        mark = "" if top.passed else "  FAILED"
        lines.append(f"{name:<{WIDTH}}{against:<14}{top.value:>10.1e}{top.bound:>10.1e}  {where}{mark}")
    return "\n".join(lines)


def verdict(checks: Sequence[Check]) -> str:
    """The result in words."""
    failed = [check for check in checks if not check.passed]
    top = worst(list(checks))
    if not failed:
        return (
            f"All {len(checks)} checks are within their bounds; nearest to its bound: {_described(top)}, "
            f"{top.value:.1e} of {top.bound:.1e} at {top.worst}."
        )
    first = culprit(list(checks))
    assert first is not None
    return (
        f"{len(failed)} of {len(checks)} checks FAILED. Worst: {_described(top)}, {top.value:.1e} where {top.bound:.1e} is "
        f"allowed, at {top.worst}. Look first at the lowest rung that failed: {_described(first)}, {first.value:.1e} "
        f"at {first.worst}."
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


def _described(check: Check) -> str:
    return f"{check.check} ({check.family}, against {check.against})"


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no not-a-number: null, which no bound lets pass."""
    return {**row, "value": row["value"] if np.isfinite(row["value"]) else None}


def _figure(name: str, curves: Mapping[str, Any]) -> Figure:
    """Errors of parameters as points, anything else as lines over optimizer steps."""
    with matplotlib.rc_context(plots.STYLE):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        axes = figure.subplots()
        logarithmic = name == GRADIENTS or name.startswith("drift")
        dashes = itertools.cycle(["-", "--", ":", "-."])
        for number, (label, values) in enumerate(curves.items()):
            colour = plots.PHASES[number % len(plots.PHASES)]
            if name == GRADIENTS:
                points = np.array(list(values.values()))
                axes.scatter(np.full(len(points), number), points, s=14, color=colour, alpha=0.6)
            else:
                shown = np.where(np.array(values) > 0, values, np.nan) if logarithmic else np.array(values)
                axes.plot(range(len(shown)), shown, next(dashes), color=colour, linewidth=1.8, label=label)
        if name == GRADIENTS:
            axes.set_xticks(range(len(curves)), list(curves), rotation=60, ha="right", fontsize=7.5)
            axes.set_ylabel("relative L2 error")
            axes.axhline(GRADIENT_BOUND, color="#57606a", linestyle="--", linewidth=1.2)
            axes.text(
                len(curves) - 0.6, GRADIENT_BOUND, "bound", va="bottom", ha="right", color="#57606a", fontsize=8.5
            )
        else:
            axes.set_xlabel("optimizer step")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            figure.legend(loc="outside upper left", ncols=5, frameon=False, fontsize=8.5)
        if logarithmic:
            axes.set_yscale("log")
        if name.startswith("drift"):
            axes.set_ylabel("relative L2 distance")
    return figure
