"""Runs the ladder, rung by rung."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from parity.check import Check
from parity.config import ParityConfig
from parity.faults import injected
from parity.rungs import (
    contract,
    exchange,
    generation,
    gradients,
    invariance,
    operations,
    optimizer,
    precision,
    reference_policy,
    runs,
    scoring,
    updates,
)
from parity.sides import pin_precision
from parity.world import World
from shared.errors import InputError

# Lowest first.
RUNGS: dict[str, Callable[[World], Iterator[Check]]] = {
    "contract": contract.checks,
    "operations": operations.checks,
    "scoring": scoring.checks,
    "gradients": gradients.checks,
    "optimizer": optimizer.checks,
    "updates": updates.checks,
    "reference": reference_policy.checks,
    "precision": precision.checks,
    "invariance": invariance.checks,
    "generation": generation.checks,
    "publishing": generation.publishing,
    "exchange": exchange.checks,
    "runs": runs.checks,
}
DTYPES = {"precision": "bfloat16"}  # all others: float32


def run(
    config: ParityConfig, folder: Path, *, inject: str = "", progress: bool = False, to_first_failure: bool = False
) -> tuple[list[Check], World]:
    """All checks of the chosen rungs, lowest rung first, with the fault `inject` in the JAX side; models go to `folder`.

    Raises InputError for a rung, family or fault that is not known, or a device that is not there.
    """
    unknown = [name for name in config.rungs if name not in RUNGS]
    if unknown:
        raise InputError(f"unknown rung {unknown[0]!r}; there are {', '.join(RUNGS)}")
    world = World(config, folder)
    pin_precision(config.device)
    transformers_logging.disable_progress_bar()
    chosen = [
        name for name in RUNGS if name in (config.rungs or RUNGS) and DTYPES.get(name, "float32") in config.dtypes
    ]
    if not chosen:
        raise InputError(
            f"no rung of {', '.join(config.rungs)} computes in {', '.join(config.dtypes)}; choose other --dtypes"
        )
    found: list[Check] = []
    with injected(inject), tqdm(disable=not progress, unit="check") as bar:
        for name in chosen:
            bar.set_description(name)
            for check in RUNGS[name](world):
                found.append(check)
                bar.update()
                if to_first_failure and not check.passed:
                    return found, world
    return found, world


def rung_of(check: Check) -> str:
    """The rung that made a check."""
    return check.check.split(":")[0]


def worst(checks: list[Check]) -> Check:
    """The check that is furthest beyond its bound, or nearest to it where all pass."""
    return max(checks, key=lambda check: check.excess)


def culprit(checks: list[Check]) -> Check | None:
    """The first failed check of the lowest rung that failed: what to look at first; None where all passed."""
    return next((check for check in checks if not check.passed), None)
