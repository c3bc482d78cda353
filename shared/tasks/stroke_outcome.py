"""The outcome of a stroke, predicted at discharge, for the tasks `mrs_3m` and `mace_1y` (spec: registry, d).

Whatever is known only at a follow-up visit is left out. Mended (quirk 28): options are shuffled, so their order says nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.errors import InputError
from shared.questions.record import Question
from shared.registry.store import Registry
from shared.tasks import prediction
from shared.tasks.denoising import render
from shared.tasks.prediction import Case, Target
from shared.tasks.task import Task

MRS, MACE = "mrs3mo", "cum_mve_1y"
OUTCOME_QUESTIONS = {
    MRS: "Q. What will the mRS value be 3 months after admission?",
    MACE: "Q. Would major adverse cardiovascular events (MACE) occur within one year after discharge?",
}
# Known only at a follow-up visit, whatever their names say.
FOLLOW_UP = ("ava", "ava_no", "inform", "in_txt", "m_forget", "m_keep", "m_order", "k_good", "k_bad", "k_adv", "dose",
             "drug_stop", "drug_stop_w")  # fmt: skip


def outcome_columns(names: Sequence[str], target: str) -> list[str]:
    """The columns that may be shown when a stroke's outcome `target` is predicted at discharge."""
    later = [name for name in names if "3m" in name or "1y" in name]
    dropped = {*later, *FOLLOW_UP, MRS, MACE}
    return [name for name in names if name not in dropped and name != target]


def cases(registry: Registry, split: str, target: Target) -> list[Case]:
    """One case for each patient with a known outcome. Raises InputError for a registry without it."""
    names = [feature.name for feature in registry.features]
    if target.feature not in names:
        raise InputError(f"task {target.task}: the registry has no column {target.feature}; it needs the stroke cohort")
    kept = set(outcome_columns(names, target.feature))
    shown = [feature for feature in registry.features if feature.visible and feature.name in kept]
    return [
        Case(patient, "discharge", texts[target.feature], functools.partial(render, shown, texts))
        for patient, texts in registry.shown(split).items()
        if target.feature in texts
    ]


class StrokeOutcome(Task):
    """One outcome, asked once about each patient who has it."""

    def __init__(self, target: Target) -> None:
        self.target = target

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
        """Up to `count` questions about the patients of `split`; see `shared.tasks.prediction.questions`."""
        here = cases(registry, split, self.target)
        training = here if split == "train" else cases(registry, "train", self.target)
        return prediction.questions(
            registry, self.target, here, training, count, seed=seed, progress=progress, **options
        )

    def columns(self, registry: Registry, feature: str, mi_cutoff: float) -> list[str]:
        """Those that are visible and known at discharge."""
        names = [other.name for other in registry.features if other.visible and other.name != feature]
        return outcome_columns(names, feature)
