"""Measurement prediction: which value will a feature have 24 hours after the last records shown? (Spec: mimic3, 11.2.)"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from shared.cohorts.mimic3.reference import question_names
from shared.questions.record import LETTERS, Question
from shared.registry.dates import HOUR
from shared.registry.store import Registry
from shared.tasks import timeline
from shared.tasks.forecast_options import SEED, ColumnStatistics, Draws, column_statistics
from shared.tasks.task import Task

NAME = "measurement"
AHEAD = 24 * HOUR
LONGEST_GAP = 48 * HOUR  # a stay must be recorded for this long
NOT_ASKED = (*timeline.PATIENT, "Mechanical Ventilation")
ASKS = "Q. What will the {name} value likely be 24 hours after the last records?"


def statistics_of(table: pd.DataFrame, names: Mapping[str, str]) -> dict[str, ColumnStatistics]:
    """Statistics of each feature that can be asked for, by display name, over all rows of the final table."""
    shown = readable(table, names)
    found = {name: column_statistics(shown[name]) for name in names.values() if name not in NOT_ASKED}
    return {name: statistics for name, statistics in found.items() if statistics is not None}


def readable(table: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """The table as shown, with GCS rounded to an integer."""
    shown = timeline.readable(table, names)
    return shown.assign(GCS=shown["GCS"].round().astype("int64"))


def sampled_stays(table: pd.DataFrame, count: int) -> list[int]:
    """Up to `count` stays, ascending, recorded for 48 hours and with a row exactly 24 hours before their last."""
    times = table.groupby("m:icustayid", sort=False)["m:charttime"]
    last = times.transform("max")
    long = (last - times.transform("min")) >= LONGEST_GAP
    at_cut = table["m:charttime"] == last - AHEAD
    fit = table.loc[long & at_cut, "m:icustayid"].unique().astype("int64").tolist()
    return fit if len(fit) <= count else sorted(random.Random(SEED).sample(fit, count))


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
    """Up to `count` questions about up to `stays` stays, every feature of each, in the table's order.

    `table` is the final table without missing or infinite values, `names` its columns' display names, `patients` the
    pseudonym of each stay's patient; a stay that is not in it is passed over. A target without any distractor is left out.
    `progress(1)` after each question.
    """
    statistics = statistics_of(table, names)
    columns = {display: column.removeprefix("o:") for column, display in names.items()}
    asked = [stay for stay in sampled_stays(table, stays) if stay in patients]
    by_stay = readable(table[table["m:icustayid"].isin(asked)], names).groupby("m:icustayid")
    made: list[Question] = []
    for stay in asked:
        rows = by_stay.get_group(stay)
        times = rows["m:charttime"]
        context = timeline.context(rows[times.max() - times >= AHEAD])
        draws = Draws()
        for name, described in statistics.items():
            choices, position = draws.options(float(rows[name].iloc[-1]), described)
            if len(choices) < 2:
                continue
            if len(made) == count:
                return made
            frequencies = [described.frequency(text) for text in choices]
            made.append(
                Question(
                    id=f"{timeline.COHORT}-{NAME}-{timeline.pseudonym(salt, stay)}-{columns[name]}",
                    cohort=timeline.COHORT,
                    task=NAME,
                    feature=columns[name],
                    section="24 hours ahead",
                    patient=patients[stay],
                    context=context,
                    question=ASKS.format(name=name),
                    choices=tuple(choices),
                    answer=LETTERS[position],
                    majority=LETTERS[frequencies.index(max(frequencies))],
                )
            )
            if progress:
                progress(1)
    return made


class _Measurement(Task):
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
        """See `questions`. The original's own seed decides; options are drawn from the values of all patients."""
        table, patients, salt = timeline.asked(registry, split, as_csv=options["ties"] == "introsort")
        names = question_names(NAME)
        return questions(table, names, patients, stays=options["stays"], salt=salt, count=count, progress=progress)

    def words(self, registry: Registry) -> set[str]:
        """Names, headers and the words of flags."""
        return timeline.words(timeline.finite(registry), question_names(NAME))


TASK = _Measurement()
