"""In-hospital mortality: is the patient likely to die in the hospital? (Spec: mimic3, 11.5.)"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from shared.cohorts.mimic3.reference import question_names
from shared.cohorts.mimic3.registry import DIED
from shared.questions.record import Question
from shared.registry.store import Registry
from shared.tasks import timeline
from shared.tasks.forecast_options import SEED
from shared.tasks.task import Task

NAME = "mortality"
CHOICES = ("Yes", "No")
ASKS = "Q. Is the patient likely to die in the hospital?"


def questions(
    table: pd.DataFrame,
    names: Mapping[str, str],
    patients: Mapping[int, str],
    *,
    stays: int,
    salt: str,
    count: int | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Question]:
    """Up to `count` questions, one about each of up to `stays` stays, with all that was recorded, in ascending order of stays.

    `table` is the final table without missing or infinite values, and whether the patient died (within a day of discharge, or
    before); `names` its columns' display names; `patients` the pseudonym of each stay's patient; a stay that is not in it is
    passed over. `progress(1)` after each question.
    """
    died = dict(zip(table["m:icustayid"].astype("int64").tolist(), table[DIED].eq(1).tolist(), strict=True))
    sampled = sorted(died)
    majority = "A" if sum(died.values()) * 2 > len(died) else "B"
    if len(sampled) > stays:
        sampled = sorted(random.Random(SEED).sample(sampled, stays))
    asked = [stay for stay in sampled if stay in patients][:count]
    by_stay = timeline.readable(table[table["m:icustayid"].isin(asked)], names).groupby("m:icustayid")
    made = []
    for stay in asked:
        made.append(
            Question(
                id=f"{timeline.COHORT}-{NAME}-{timeline.pseudonym(salt, stay)}",
                cohort=timeline.COHORT,
                task=NAME,
                feature="died_in_hosp",
                section="outcome",
                patient=patients[stay],
                context=timeline.context(by_stay.get_group(stay)).removesuffix("\n"),
                question=ASKS,
                choices=CHOICES,
                answer="A" if died[stay] else "B",
                majority=majority,
            )
        )
        if progress:
            progress(1)
    return made


class _Mortality(Task):
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
        """See `questions`. The original's own seed decides."""
        table, patients, salt = timeline.asked(registry, split, as_csv=options["ties"] == "introsort")
        names = question_names(NAME)
        return questions(table, names, patients, stays=options["stays"], salt=salt, count=count, progress=progress)

    def words(self, registry: Registry) -> set[str]:
        """Names, headers and the words of flags."""
        return timeline.words(timeline.finite(registry), question_names(NAME))


TASK = _Mortality()
