"""The original's two prediction sets (spec: registry, d): AKI within 48 hours, and the outcome of a stroke."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd

from shared.paper.draws import SEED, Draws
from shared.paper.records import ID, Places, Row, sections_until_empty, show
from shared.paper.values import Choices, value_choices

AKI_QUESTION = "Q. Would AKI occur in the next 48 hours?"
WINDOW = 6  # slots of 8 hours
SLOTS = 24  # days 1 to 8

MRS, MACE = "mrs3mo", "cum_mve_1y"
OUTCOME_QUESTIONS = {
    MRS: "Q. What will the mRS value be 3 months after admission?",
    MACE: "Q. Would major adverse cardiovascular events (MACE) occur within one year after discharge?",
}
# Known only at a follow-up visit, whatever their names say.
FOLLOW_UP = ("ava", "ava_no", "inform", "in_txt", "m_forget", "m_keep", "m_order", "k_good", "k_bad", "k_adv", "dose",
             "drug_stop", "drug_stop_w")  # fmt: skip

_SLOT = re.compile(r"\[Day (\d) (\d\d):00 - \d\d:00\]")
_DAY = re.compile(r"\[Day (\d)\]")


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A prediction question: its message, its options in order, and the place of the right one."""

    patient: Any
    message: str
    choices: tuple[str, ...]
    right: int


def slot_shown(header: str) -> int | None:
    """The last slot of 8 hours (0 to 23) that a record shows when it ends with this section; None for other sections.

    Where a day's third slot is followed by the day's own section, that one ends the record.
    """
    slot, day = _SLOT.match(header), _DAY.match(header)
    if slot and int(slot[2]) < 16:
        return 3 * (int(slot[1]) - 1) + int(slot[2]) // 8
    return 3 * int(day[1]) - 1 if day else None


def paper_label(flags: Sequence[float], shown: int) -> str:
    """The original's label after slot `shown`: its window begins with that slot, and a missing flag makes it no."""
    window = flags[shown : shown + WINDOW]
    return "yes" if sum(window) >= 1 else "no"  # a sum with NaN is no number that is 1 or more


def aki_questions(row: Row, flags: Sequence[float], places: Places, draws: Draws) -> list[Predicted]:
    """A question each time a section of the patient's days is complete; `flags` `[24]` are AKI by slot, NaN unknown."""
    hidden = {name for name in row if "aki" in name}
    made: list[Predicted] = []
    record = ""
    sections = list(sections_until_empty(row, places, masked=(), hidden=hidden))
    for section, following in zip(sections, [*sections[1:], None]):
        if section.empty or following is None:
            break
        record += section.whole
        shown = slot_shown(section.header)
        if not shown:  # neither other sections nor the very first slot
            continue
        label = paper_label(flags, shown)
        choices = ("yes", "no") if draws.py.random() > 0.5 else ("no", "yes")
        question = f"\n{AKI_QUESTION}\nA.{choices[0]}\nB.{choices[1]}"
        made.append(Predicted(row.get(ID), (record + question).strip(), choices, choices.index(label)))
    return made


def one_for_each(questions: Sequence[Predicted], count: int, draws: Draws) -> list[Predicted]:
    """One question of each of `count` patients."""
    table = pd.DataFrame({"patient": [q.patient for q in questions]})
    chosen = draws.py.sample(list(dict.fromkeys(table["patient"])), count)
    table = table[table["patient"].isin(chosen)]
    return [questions[i] for i in table.groupby("patient").sample(1, random_state=SEED).index]


def outcome_columns(names: Sequence[str], target: str) -> list[str]:
    """The columns that may be shown when a stroke's outcome `target` is predicted at discharge."""
    later = [name for name in names if "3m" in name or "1y" in name]
    dropped = {*later, *FOLLOW_UP, MRS, MACE}
    return [name for name in names if name not in dropped and name != target]


def outcome_questions(
    rows: Sequence[Row],
    target: str,
    places: Places,
    stats: Choices,
    draws: Draws,
    *,
    num_choices: int = 5,
    difficulty: float = 2.0,
) -> list[Predicted]:
    """One question for each patient. The original's distractors stay sorted, so the label may stand out by its place."""
    made = []
    for row in rows:
        shown = {name: row[name] for name in outcome_columns(list(row), target)}
        label, options = value_choices(row[target], stats, draws, num_choices=num_choices, difficulty=difficulty)
        right = int(draws.np.randint(0, len(options) + 1))
        options.insert(right, label)
        listed = "".join(f"\n{'ABCDEFGHIJ'[i]}. {option}" for i, option in enumerate(options))
        record = show("lines", shown, places, masked=(), hidden=())
        message = f"{record}\n{OUTCOME_QUESTIONS[target]}{listed}"
        made.append(Predicted(row.get(ID), message, tuple(options), right))
    return made
