"""Denoising questions as the original made them (spec: registry, c): for one row after the other, from one stream of draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shared.paper.draws import Draws
from shared.paper.records import ID, CannotShow, Places, Row, Style, is_missing, show
from shared.paper.values import CannotDraw, Choices, value_choices

LETTERS = "ABCDEFGHIJ"
SECTION_TEMPLATE = "Q{}. What would be the masked value of '{}' in section {}?"
PLAIN_TEMPLATE = "Q{}. What would be the masked value of '{}'?"
TRIES = 10_000  # the original had no limit: if a row has no usable value, it never ended


@dataclasses.dataclass(frozen=True)
class Material:
    """What questions are made from.

    `places` says how columns are shown, and `choices` how their values are distributed. `hidden[victim]` are the features whose
    mutual information with the victim (the masked column) is above the cutoff.
    """

    style: Style
    places: Places
    choices: Mapping[str, Choices]
    hidden: Mapping[str, frozenset[str]]
    num_choices: int = 5
    difficulty: float = 2.0


@dataclasses.dataclass(frozen=True)
class Asked:
    """One question of a message: its line, its options in order, and the position of the right one."""

    victim: str
    line: str
    choices: tuple[str, ...]
    right: int

    @property
    def text(self) -> str:
        """The question's line and one line for each option."""
        options = "".join(f"\n{LETTERS[i]}. {choice}" for i, choice in enumerate(self.choices))
        return f"{self.line}{options}"


@dataclasses.dataclass(frozen=True)
class Message:
    """One prompt: a patient's record and the questions about it."""

    patient: Any
    record: str
    asked: tuple[Asked, ...]

    @property
    def text(self) -> str:
        """The user's message."""
        return "\n".join((self.record, *(question.text for question in self.asked)))


def ask(row: Row, material: Material, draws: Draws, *, victim: str | None = None, count: int = 1) -> Message | None:
    """One message about a row, with `count` masked values drawn at random, or with `victim` masked; None if not possible."""
    for _ in range(TRIES):
        asked, hidden = _questions(row, material, draws, victim, count)
        if asked is None:
            return None
        try:
            text = show(material.style, row, material.places, masked=[q.victim for q in asked], hidden=hidden)
        except CannotShow:
            return None
        if text:
            return Message(row.get(ID), text, tuple(asked))
        if victim is not None:
            return None
    return None


def _questions(
    row: Row, material: Material, draws: Draws, victim: str | None, count: int
) -> tuple[list[Asked] | None, set[str]]:
    asked: list[Asked] = []
    hidden: set[str] = set()
    for _ in range(TRIES):
        if len(asked) == count:
            return asked, hidden
        unusable = {question.victim for question in asked} | hidden
        candidates = [
            name
            for name, value in row.items()
            if name != ID and name not in unusable and not is_missing(value) and value != "NA"
        ]
        if (victim is not None and (victim not in candidates or victim not in material.choices)) or not candidates:
            return None, hidden
        name = victim or draws.py.choice(candidates)
        if name not in material.choices:
            continue
        try:
            label, options = value_choices(
                row[name],
                material.choices[name],
                draws,
                num_choices=material.num_choices,
                difficulty=material.difficulty,
            )
        except CannotDraw:
            return None, hidden
        if not options:
            if victim is not None:
                return None, hidden
            continue
        hidden |= material.hidden.get(name, frozenset())
        draws.py.shuffle(options)
        right = int(draws.np.randint(0, len(options) + 1))
        options.insert(right, label)
        asked.append(Asked(name, _line(name, len(asked) + 1, material), tuple(options), right))
    return None, hidden


def _line(name: str, number: int, material: Material) -> str:
    template = PLAIN_TEMPLATE if material.style == "lines" else SECTION_TEMPLATE
    place = material.places.get(name)
    return template if place is None else template.format(number, place.name, place.section)


def plain(
    rows: Sequence[Row],
    material: Material,
    draws: Draws,
    *,
    count: int = 1,
    progress: Callable[[int], object] | None = None,
) -> list[Message]:
    """One message with `count` questions for each row, without the rows for which this is not possible."""
    messages = []
    for row in rows:
        messages.append(ask(row, material, draws, count=count))
        if progress:
            progress(1)
    return [message for message in messages if message is not None]


def all_victims(
    rows: Sequence[Row], material: Material, draws: Draws, *, progress: Callable[[int], object] | None = None
) -> list[Message]:
    """One message for each value that can be asked for, column after column, and row after row within a column."""
    messages = []
    for name in (name for name in rows[0] if name in material.choices):
        for row in rows:
            message = ask(row, material, draws, victim=name)
            if message is not None:
                messages.append(message)
            if progress:
                progress(1)
    return messages


def oversample(
    rows: Sequence[Row],
    material: Material,
    draws: Draws,
    *,
    wanted: int,
    count: int = 1,
    progress: Callable[[int], object] | None = None,
) -> list[Message]:
    """Messages from complete passes over the rows, until twice `wanted` rows are used; equal messages are kept once."""
    message_of_text: dict[str, Message] = {}
    produced = 0
    while produced < 2 * wanted:
        for message in plain(rows, material, draws, count=count, progress=progress):
            message_of_text.setdefault(message.text, message)
        produced += len(rows)
    return list(message_of_text.values())
