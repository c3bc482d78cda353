"""In-hospital mortality: is the patient likely to die in the hospital? (Spec: mimic3, 11.5.)"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

import pandas as pd

from shared.questions.record import Question
from shared.tasks import timeline
from shared.tasks.forecast_options import SEED

TASK = "mortality"
CHOICES = ("Yes", "No")
ASKS = "Q. Is the patient likely to die in the hospital?"


def questions(
    table: pd.DataFrame,
    names: Mapping[str, str],
    patients: Mapping[int, str],
    died: Mapping[int, bool],
    *,
    count: int,
    salt: str,
    progress: Callable[[int], object] | None = None,
) -> list[Question]:
    """One question about each of up to `count` stays, with all that was recorded, in ascending order of stays.

    `table` is the final table without missing or infinite values, `names` its columns' display names; `patients` and
    `died` (within a day of discharge, or before) are by stay. `progress(1)` after each stay.
    """
    stays = sorted(table["m:icustayid"].astype("int64").unique().tolist())
    majority = "A" if sum(died[stay] for stay in stays) * 2 > len(stays) else "B"
    if len(stays) > count:
        stays = sorted(random.Random(SEED).sample(stays, count))
    by_stay = timeline.readable(table[table["m:icustayid"].isin(stays)], names).groupby("m:icustayid")
    made = []
    for stay in stays:
        made.append(
            Question(
                id=f"{timeline.COHORT}-{TASK}-{timeline.pseudonym(salt, stay)}",
                cohort=timeline.COHORT,
                task=TASK,
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
