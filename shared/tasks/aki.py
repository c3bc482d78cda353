"""Acute kidney injury within 48 hours, asked after each slot of eight hours and after each day (spec: registry, d).

The record ends with the section just complete, and whatever names AKI is left out. Mended (quirk 17): the window begins
after what is shown, a flag that is missing does not hide one that is positive, and a window that leaves day 8 is not asked
about. The label is yes where any flag of the window is positive, else no where any is known.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shared.errors import InputError
from shared.questions import letters
from shared.questions.record import Question
from shared.registry.features import Feature
from shared.registry.store import Registry
from shared.tasks import prediction
from shared.tasks.denoising import render
from shared.tasks.prediction import Case, Target
from shared.tasks.task import Task

AKI_QUESTION = "Q. Would AKI occur in the next 48 hours?"
WINDOW = 6  # slots of 8 hours
TARGET = Target("aki", "aki_48h", f"\n{AKI_QUESTION}", ("yes", "no"))
FLAGS = [f"d{day}_{slot}_aki" for day in range(1, 9) for slot in (1, 2, 3)]
POSITIVE = {"Yes": 1.0, "No": 0.0}

_SLOT = re.compile(r"\[Day (\d) (\d\d):00 - \d\d:00\]")
_DAY = re.compile(r"\[Day (\d)\]")


def slot_shown(header: str) -> int | None:
    """The last slot of 8 hours (0 to 23) that a record shows when it ends with this section; None for other sections.

    Where a day's third slot is followed by the day's own section, that one ends the record.
    """
    slot, day = _SLOT.match(header), _DAY.match(header)
    if slot and int(slot[2]) < 16:
        return 3 * (int(slot[1]) - 1) + int(slot[2]) // 8
    return 3 * int(day[1]) - 1 if day else None


def label(flags: Sequence[float], shown: int) -> str | None:
    """Whether AKI occurs in the six slots after slot `shown`; None where that is not known."""
    window = np.asarray(flags[shown + 1 : shown + 1 + WINDOW], dtype=np.float64)
    if len(window) < WINDOW or np.isnan(window).all():
        return None
    return "yes" if np.nansum(window) >= 1 else "no"


def cases(registry: Registry, split: str) -> list[Case]:
    """Every moment of every patient at which a question is possible. Raises InputError for a registry without flags."""
    table = registry.split(split)
    missing = [name for name in FLAGS if name not in table.columns]
    if missing:
        raise InputError(f"task aki: the registry has no column {missing[0]}; it needs the hospitalized cohort")
    flags = np.stack(
        [table[name].map(lambda value: POSITIVE.get(value, value)).astype(float) for name in FLAGS], axis=1
    )
    visible = [feature for feature in registry.features if feature.visible and "aki" not in feature.name]
    found = []
    for (patient, texts), series in zip(registry.shown(split).items(), flags, strict=True):
        for header, upto in _moments(visible, texts):
            shown = slot_shown(header)
            answer = label(series.tolist(), shown) if shown else None
            if answer is not None:
                found.append(Case(patient, header.strip("[]"), answer, _context(visible[:upto], texts)))
    return found


def _moments(features: Sequence[Feature], texts: Mapping[str, str]) -> list[tuple[str, int]]:
    """The headers of the sections that are complete, with the number of features up to each's end.

    A stay ends before the first section that shows nothing.
    """
    found: list[tuple[str, int]] = []
    header, start = features[0].section, 0
    for place, section in enumerate([*(feature.section for feature in features), ""]):
        if section != header:
            if not any(feature.name in texts for feature in features[start:place]):
                break
            found.append((header, place))
            header, start = section, place
    return found


def _context(features: Sequence[Feature], texts: Mapping[str, str]) -> Callable[[], str]:
    return functools.partial(render, features, texts)


def questions(
    registry: Registry,
    split: str,
    count: int,
    *,
    seed: int,
    balance: bool = True,
    progress: Callable[[int], object] | None = None,
) -> list[Question]:
    """Up to `count` questions about the patients of `split`."""
    here = cases(registry, split)
    training = here if split == "train" else cases(registry, "train")
    return prediction.questions(registry, TARGET, here, training, count, seed=seed, balance=balance, progress=progress)


class _Aki(Task):
    """See the top of this file."""

    def questions(
        self,
        registry: Registry,
        split: str,
        count: int,
        options: Mapping[str, Any],
        *,
        seed: int,
        progress: Callable[[int], object] | None = None,
    ) -> list[Question]:
        """See `questions`."""
        return questions(registry, split, count, seed=seed, progress=progress, **options)

    def message(self, question: Question) -> str:
        """As for other tasks, but for the blank that the original's options lack."""
        return letters.message(question, mark=".")


TASK = _Aki()
