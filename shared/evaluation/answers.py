"""The answer to one question, and the file of the answers to all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from shared.errors import InputError
from shared.questions.record import Question
from shared.storage import files


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a policy answered to one question. `predicted` is a letter, or "" where the completion holds none.

    `truncated`: whether the length limit ended the completion. `tokens`: how long the completion is. Both are None where they
    are not known, as may be with answers made elsewhere. `probabilities` are those of the options, in order: the model's own,
    or shares of votes; empty where there is one greedy answer. `strict` and `lenient` are the letters by the two readings of
    boxes (`shared.questions.boxes`), one of which is `predicted`. They are None where the letter was not read from a box, and
    in files of earlier versions.
    """

    question_id: str
    patient: str
    feature: str
    section: str
    predicted: str
    correct: bool
    truncated: bool | None
    tokens: int | None
    probabilities: tuple[float, ...] = ()
    strict: str | None = None
    lenient: str | None = None


COLUMNS = [field.name for field in dataclasses.fields(Answer)]
KINDS = {"correct": "bool", "truncated": "boolean", "tokens": "Int64", "probabilities": "object"}
OPTIONAL = {"probabilities", "strict", "lenient"}  # not in files of earlier versions


def answer_to(
    question: Question,
    predicted: str,
    *,
    truncated: bool | None,
    tokens: int | None,
    probabilities: tuple[float, ...] = (),
    strict: str | None = None,
    lenient: str | None = None,
) -> Answer:
    """The record for `question` answered with the letter `predicted` ("": no answer found)."""
    return Answer(
        question_id=question.id,
        patient=question.patient,
        feature=question.feature,
        section=question.section,
        predicted=predicted,
        correct=predicted == question.answer,
        truncated=truncated,
        tokens=tokens,
        probabilities=probabilities,
        strict=strict,
        lenient=lenient,
    )


def read_by(rule: str, question: Question, answer: Answer) -> Answer:
    """The same answer with the letter that `rule` reads (`shared.questions.boxes.RULES`); unchanged where it is not known."""
    letter = answer.strict if rule == "strict_first" else answer.lenient
    if letter is None:
        return answer
    return dataclasses.replace(answer, predicted=letter, correct=letter == question.answer)


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as Parquet, readable by its owner only; replaces `path` atomically."""
    table = pd.DataFrame([dataclasses.asdict(answer) for answer in answers], columns=COLUMNS)
    table["probabilities"] = table["probabilities"].map(list)
    table = table.astype({name: KINDS.get(name, "string") for name in COLUMNS})
    with files.replacing(path) as temporary:
        table.to_parquet(temporary, index=False)


def read_answers(path: Path) -> list[Answer]:
    """Read what `write_answers` wrote. Raises InputError if the file is missing or is not such a file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file of answers; write one with `creason evaluate`")
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})".replace("\n", " ")) from error
    missing = [name for name in COLUMNS if name not in table.columns and name not in OPTIONAL]
    if missing:
        raise InputError(f"{path}: not a file of answers, these columns are missing: {', '.join(missing)}")
    if "probabilities" not in table.columns:
        table["probabilities"] = [()] * len(table)
    table["probabilities"] = table["probabilities"].map(lambda shares: tuple(map(float, shares)))
    table = table.reindex(columns=COLUMNS).astype(object)
    table = table.where(table.notna(), None)
    columns = {name: table[name].tolist() for name in COLUMNS}
    return [Answer(**dict(zip(COLUMNS, row, strict=True))) for row in zip(*columns.values(), strict=True)]
