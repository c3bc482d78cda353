"""The original's two prediction sets (spec: registry, d): AKI within 48 hours, and the outcome of a stroke."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pandas as pd

from shared.paper.draws import SEED, Draws
from shared.paper.records import ID, Places, Row, sections_until_empty, show
from shared.paper.values import Choices, value_choices
from shared.tasks.aki import AKI_QUESTION, WINDOW, slot_shown
from shared.tasks.stroke_outcome import OUTCOME_QUESTIONS, outcome_columns


@dataclasses.dataclass(frozen=True)
class Predicted:
    """A prediction question: its message, its options in order, and the place of the right one."""

    patient: Any
    message: str
    choices: tuple[str, ...]
    right: int


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
