"""Questions, answers and completions as text for the terminal of their owner. They may be about real patients: never log them."""

from __future__ import annotations

import dataclasses
import difflib
import textwrap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from shared.errors import InputError
from shared.questions.record import LETTERS, Question
from shared.randomness import generator
from shared.tasks.prompts import user_message
from shared.tasks.rewards import answer_letter

# Control characters in a text would be commands to the terminal, so each is replaced by a visible sign.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | dict.fromkeys(
    range(127, 160), 0xFFFD
)
NEAREST = 3  # names offered in place of an unknown one


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which questions to show: how many, about which feature, from which section; drawn by `seed`."""

    count: int
    feature: str = ""
    section: str = ""
    seed: int = 0

    def fitting(self, questions: Sequence[Question]) -> list[Question]:
        """The questions that fit. Raises InputError where none does, naming the nearest feature or section."""
        fitting = [question for question in questions if self._fits(question)]
        if not fitting:
            raise InputError(self._why_none(questions))
        return fitting

    def of(self, questions: Sequence[Question]) -> list[Question]:
        """Up to `count` of the questions that fit, drawn at random, in their order. Raises InputError where none fits."""
        fitting = self.fitting(questions)
        drawn = generator(self.seed, "show").permutation(len(fitting))[: self.count]
        return [fitting[index] for index in np.sort(drawn)]

    def _fits(self, question: Question) -> bool:
        feature = self.feature.casefold() in ("", question.feature.casefold())
        return feature and self.section.casefold() in question.section.casefold()

    def _why_none(self, questions: Sequence[Question]) -> str:
        if not questions:
            return "there are no questions to show"
        features = {question.feature for question in questions}
        sections = {question.section for question in questions}
        if self.feature and self.feature.casefold() not in {name.casefold() for name in features}:
            return f"--feature={self.feature}: no question asks for it; {_nearest(self.feature, features)}"
        if self.section and not any(self.section.casefold() in name.casefold() for name in sections):
            return f"--section={self.section}: no question is from there; {_nearest(self.section, sections)}"
        return f"--feature={self.feature} --section={self.section}: no question is both; leave one of them out"


def section_counts(files: Mapping[str, Sequence[Question]]) -> list[str]:
    """How many questions each section has, in a table with a column for each question file."""
    counts = {
        name: Counter(question.section or "(no section)" for question in listed) for name, listed in files.items()
    }
    total = sum(counts.values(), Counter[str]())
    width = max(map(len, (*total, "section")))
    widths = {name: max(len(name), 9) for name in counts}
    lines = [f"{'section':<{width}}" + "".join(f"  {name:>{size}}" for name, size in widths.items())]
    lines += [
        f"{section:<{width}}" + "".join(f"  {counts[name][section]:>{size},}" for name, size in widths.items())
        for section, _ in total.most_common()
    ]
    return lines


def question_lines(question: Question, width: int) -> list[str]:
    """A question in full: what it is about, the record and options as a model reads them, and the right answer."""
    return [
        *wrapped(about(question), width),
        "",
        *wrapped(user_message(question), width),
        "",
        *wrapped(right_answer(question), width),
    ]


def about(question: Question) -> str:
    """What a question is about, in one line."""
    return f"{question.id}: asks for {question.feature}" + (f", {question.section}" if question.section else "")


def right_answer(question: Question) -> str:
    """The right answer, the most frequent one, and the best possible one where that is known."""
    lines = f"right answer: {_option(question, question.answer)}\nmost frequent: {_option(question, question.majority)}"
    if question.bayes_accuracy is not None:
        lines += f"\nbest possible: right with probability {question.bayes_accuracy:.2f}"
        lines += f", {_option(question, question.bayes_answer)}" if question.bayes_answer else ""
    return lines


def example_lines(question: str, answer: str, completions: Mapping[str, str], width: int) -> Iterator[str]:
    """A question as it was asked, its right answer, and completions by their titles, each under its own."""
    yield from wrapped(question, width)
    if answer:
        yield from ("", *wrapped(f"right answer: {answer}", width))
    for title, completion in completions.items():
        yield ""
        yield from wrapped(f"--- {title}{verdict(completion, answer)}", width)
        yield from wrapped(completion, width)


def verdict(completion: str, answer: str) -> str:
    """Which letter a completion has in its box, and whether it is right; "" where the right answer is no letter."""
    if answer not in tuple(LETTERS):
        return ""
    letter = answer_letter(completion)
    if not letter:
        return "no answer in a box"
    return f"answered {letter}, {'right' if letter == answer else 'wrong'}"


def numbered(title: str, number: int, count: int, width: int) -> str:
    """A line that begins the next of several questions."""
    return f"=== {title} {number} of {count} ".ljust(min(width, 78), "=")


def wrapped(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` characters, nothing left out; the rest of a longer line is indented."""
    return [
        part.rstrip()
        for line in text.translate(CONTROLS).split("\n")
        for part in textwrap.wrap(
            line, width, subsequent_indent="    ", drop_whitespace=False, replace_whitespace=False
        )
        or [""]
    ]


def _option(question: Question, letter: str) -> str:
    return f"{letter}. {question.choices[LETTERS.index(letter)]}"


def _nearest(name: str, names: Collection[str]) -> str:
    by_small = {known.casefold(): known for known in names}
    near = [by_small[small] for small in difflib.get_close_matches(name.casefold(), by_small, n=NEAREST)]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are {len(names)}: {', '.join(sorted(names)[:10])}{', ...' if len(names) > 10 else ''}"
