"""The ladder, and what runs it, rung by rung."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from parity.check import Check
from parity.config import ParityConfig
from parity.faults import fault
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
from parity.sides import Subject, pin_precision
from parity.world import World
from shared.errors import InputError


class Rung(NamedTuple):
    """A rung of the ladder; its number is its place in `LADDER`, counted from 0."""

    name: str
    checks: Callable[[World], Iterator[Check]]
    meaning: str  # what it checks, for a reader of the page
    dtype: str = "float32"  # what it computes in


LADDER = (  # lowest first, as the table in docs/parity.md
    Rung(
        "contract",
        contract.checks,
        "Advantages, masks and positions, against closed forms and what was worked out by hand.",
    ),
    Rung(
        "operations",
        operations.checks,
        "Single operations in float32: log-softmax, KL, attention, every loss and its gradient.",
    ),
    Rung(
        "scoring",
        scoring.checks,
        "The log-probability of every token of the batch, and weights as they were loaded.",
    ),
    Rung(
        "gradients",
        gradients.checks,
        "Loss, metrics, and the gradient of every parameter, through the learners' own update.",
    ),
    Rung("optimizer", optimizer.checks, "AdamW and clipping, where epsilon and its place decide."),
    Rung("updates", updates.checks, "Weights, learning rate and metrics over several steps."),
    Rung("reference", reference_policy.checks, "The reference policy after it was mixed with the policy."),
    Rung(
        "precision",
        precision.checks,
        "bfloat16: each backend's error may be at most a few times the other's.",
        dtype="bfloat16",
    ),
    Rung(
        "invariance",
        invariance.checks,
        "However the same batch is cut into rows, micro-batches and devices, its gradient is the same.",
    ),
    Rung(
        "generation",
        generation.checks,
        "Greedy tokens are Transformers' own; log-probabilities are the learner's.",
    ),
    Rung(
        "publishing",
        generation.publishing,
        "After updates that were published, the engine has the learner's weights.",
    ),
    Rung("exchange", exchange.checks, "A run goes on from the other backend's checkpoint."),
    Rung("runs", runs.checks, "Two live runs from one seed, and each replayed by the other's learner."),
)
NUMBERS = {rung.name: number for number, rung in enumerate(LADDER)}


def run(
    config: ParityConfig, folder: Path, *, inject: str = "", progress: bool = False, to_first_failure: bool = False
) -> tuple[list[Check], World]:
    """All checks of the chosen rungs, lowest rung first, with the fault `inject` in the JAX side; models go to `folder`.

    Raises InputError for a rung, family or fault that is not known, a fault whose rung is not chosen, or a device that is
    not there.
    """
    rungs = chosen(config)
    subject = Subject()
    if inject:
        injected = fault(inject)
        subject = injected.subject
        if injected.rung not in [rung.name for rung in rungs]:
            raise InputError(
                f"--inject={inject}: rung {injected.rung} is the first that sees it, and it is not chosen; add it to --rungs"
                f"{', bfloat16 to --dtypes' if LADDER[NUMBERS[injected.rung]].dtype not in config.dtypes else ''}"
            )
    world = World(config, folder, subject)
    pin_precision(config.device)
    transformers_logging.disable_progress_bar()
    checks: list[Check] = []
    with tqdm(disable=not progress, unit="check") as bar:
        for rung in rungs:
            bar.set_description(f"{NUMBERS[rung.name]} {rung.name}")
            for check in rung.checks(world):
                checks.append(check)
                bar.update()
                if to_first_failure and not check.passed:
                    return checks, world
    return checks, world


def chosen(config: ParityConfig) -> list[Rung]:
    """The rungs that the configuration asks for, lowest first.

    Raises InputError for a name that is not known, or where none computes in the number formats asked for.
    """
    unknown = [name for name in config.rungs if name not in NUMBERS]
    if unknown:
        raise InputError(f"unknown rung {unknown[0]!r}; there are {', '.join(NUMBERS)}")
    rungs = [rung for rung in LADDER if rung.name in (config.rungs or NUMBERS) and rung.dtype in config.dtypes]
    if not rungs:
        raise InputError(
            f"no rung of {', '.join(config.rungs)} computes in {', '.join(config.dtypes)}; choose other --dtypes"
        )
    return rungs


def worst(checks: list[Check]) -> Check:
    """The check that is furthest beyond its bound, or nearest to it where all pass."""
    return max(checks, key=lambda check: check.excess)


def culprit(checks: list[Check]) -> Check | None:
    """The first failed check of the lowest rung that failed: what to look at first; None where all passed."""
    return next((check for check in checks if not check.passed), None)
