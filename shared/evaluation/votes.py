"""From the completions of one question to its answer: the letter of the only completion, or the most frequent letter."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from shared.evaluation.answers import Answer, answer_to
from shared.questions.boxes import RULES, answer_letter
from shared.questions.record import LETTERS, Question


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """A completion as text.

    `truncated`: whether the length limit ended it. `tokens`: its length. Both are None where they are not known. `thinking`:
    whether its prompt ended inside the model's reasoning, so that the text begins inside it.
    """

    completion: str
    truncated: bool | None = None
    tokens: int | None = None
    thinking: bool = False

    def to_row(self) -> dict[str, Any]:
        """As JSON holds it; `shared.evaluation.given_answers` reads it."""
        return dataclasses.asdict(self)


def answer_of(
    question: Question, samples: Sequence[Sample], rule: str, *, probabilities: tuple[float, ...] = ()
) -> Answer:
    """One answer with the letters by both readings of boxes; `rule` (`shared.questions.boxes.RULES`) says which is the answer.

    Of several samples the letters are put to the vote (`vote`), and the shares are the answer's probabilities. `probabilities`
    are those of the options where there is one sample.
    """
    letters = {
        reading: [
            answer_letter(sample.completion, reading, options=len(question.choices), thinking=sample.thinking)
            for sample in samples
        ]
        for reading in RULES
    }
    strict, lenient = (vote(question, letters[reading])[0] for reading in RULES)
    predicted, shares = vote(question, letters[rule])
    return answer_to(
        question,
        predicted,
        truncated=_most([sample.truncated for sample in samples]),
        tokens=_mean([sample.tokens for sample in samples]),
        probabilities=probabilities if len(samples) == 1 else shares,
        strict=strict,
        lenient=lenient,
    )


def vote(question: Question, letters: Sequence[str]) -> tuple[str, tuple[float, ...]]:
    """The most frequent letter ("" where there is none), and the share of votes of each option.

    Where some letters are equally frequent, the first in the alphabet is taken. Where no vote is for an option, shares are equal.
    """
    votes = Counter(letter for letter in letters if letter)
    best = max(sorted(votes), key=votes.__getitem__, default="")
    known = LETTERS[: len(question.choices)]
    cast = sum(votes[letter] for letter in known)
    return best, tuple(votes[letter] / cast if cast else 1 / len(known) for letter in known)


def _most(truncated: Sequence[bool | None]) -> bool | None:
    known = [value for value in truncated if value is not None]
    return sum(known) * 2 > len(known) if known else None


def _mean(tokens: Sequence[int | None]) -> int | None:
    known = [count for count in tokens if count is not None]
    return round(sum(known) / len(known)) if known else None
