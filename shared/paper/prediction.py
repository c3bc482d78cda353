"""The two prediction tasks of the original (spec: registry, d): AKI within 48 hours, and the outcome of a stroke."""

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
    """A prediction question: its message, its options in order, and the position of the right one."""

    patient: Any
    message: str
    choices: tuple[str, ...]
    right: int


def paper_label(flags: Sequence[float], shown: int) -> str:
    """The label of the original after slot `shown`. The window begins with that slot, and a missing flag gives "no"."""
    window = flags[shown : shown + WINDOW]
    return "yes" if sum(window) >= 1 else "no"  # a sum with NaN is NaN, which is not >= 1


def aki_questions(row: Row, flags: Sequence[float], places: Places, draws: Draws) -> list[Predicted]:
    """One question after each section of the patient's days. `flags` `[24]` are AKI by slot, NaN if unknown."""
    hidden = {name for name in row if "aki" in name}
    questions: list[Predicted] = []
    record = ""
    sections = list(sections_until_empty(row, places, masked=(), hidden=hidden))
    for section, following in zip(sections, [*sections[1:], None]):
        if section.empty or following is None:
            break
        record += section.whole
        shown = slot_shown(section.header)
        if not shown:  # no question after another kind of section, nor after the first slot
            continue
        label = paper_label(flags, shown)
        choices = ("yes", "no") if draws.py.random() > 0.5 else ("no", "yes")
        question = f"\n{AKI_QUESTION}\nA.{choices[0]}\nB.{choices[1]}"
        questions.append(Predicted(row.get(ID), (record + question).strip(), choices, choices.index(label)))
    return questions


def one_for_each(questions: Sequence[Predicted], count: int, draws: Draws) -> list[Predicted]:
    """One question for each of `count` patients, who are drawn at random."""
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
    """One question for each patient, as in the original.

    Its distractors are sorted, and the label is put in between, so the position of the label may reveal it.
    """
    questions = []
    for row in rows:
        shown = {name: row[name] for name in outcome_columns(list(row), target)}
        label, options = value_choices(row[target], stats, draws, num_choices=num_choices, difficulty=difficulty)
        right = int(draws.np.randint(0, len(options) + 1))
        options.insert(right, label)
        listed = "".join(f"\n{'ABCDEFGHIJ'[i]}. {option}" for i, option in enumerate(options))
        record = show("lines", shown, places, masked=(), hidden=())
        message = f"{record}\n{OUTCOME_QUESTIONS[target]}{listed}"
        questions.append(Predicted(row.get(ID), message, tuple(options), right))
    return questions
