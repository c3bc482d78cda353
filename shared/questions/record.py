"""The question record, the question store (Parquet), and the deterministic order of training."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from shared.errors import InputError
from shared.questions.boxes import LETTERS
from shared.randomness import generator
from shared.storage import buckets, files

CHOICE = "choice"
KINDS = (CHOICE,)  # what an answer may be: a letter among choices
MASK = "[MASK]"  # stands in a record in place of the value that is asked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question with a checkable answer. `kind` is one of `KINDS` and says what the answer is.

    `context` is the record with the masked value shown as `[MASK]`; `question` is the line that asks; `answer` and
    `majority` are letters into `choices`. `majority` is the option that the training split makes most frequent for this
    feature, which a guesser who never reads the case would take. `bayes_accuracy` is the posterior probability of the
    best option given everything shown, `bayes_answer` its letter; both are None where the truth has no known law.
    """

    id: str
    cohort: str
    task: str
    feature: str
    section: str
    patient: str
    context: str
    question: str
    choices: tuple[str, ...]
    answer: str
    majority: str
    bayes_accuracy: float | None = None
    bayes_answer: str | None = None
    kind: str = CHOICE

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"question {self.id}: kind {self.kind!r} is not known; there is {', '.join(KINDS)}")
        if not 2 <= len(self.choices) <= len(LETTERS):
            raise InputError(f"question {self.id}: {len(self.choices)} choices; 2 to {len(LETTERS)} are possible")
        if self.answer not in tuple(LETTERS[: len(self.choices)]):
            raise InputError(
                f"question {self.id}: answer {self.answer!r} is not one of its {len(self.choices)} letters"
            )

    @property
    def chance(self) -> float:
        """Accuracy of a uniform guess among the options shown."""
        return 1.0 / len(self.choices)

    def row(self) -> dict[str, Any]:
        """Its fields as files and digests have them: without `kind` where it is a choice, as when there were no others."""
        return {name: value for name, value in dataclasses.asdict(self).items() if (name, value) != ("kind", CHOICE)}


COLUMNS = [field.name for field in dataclasses.fields(Question)]
TYPES = {"choices": pa.list_(pa.string()), "bayes_accuracy": pa.float64()}
WORDS = b"words"  # key of the file's own note of which texts are no patient's: see `shared.preparation.vocabulary`
ROWS_AT_ONCE = 2_048  # written together: questions may share a context in memory, but not on their way to the file


def write_questions(path: Path, questions: Sequence[Question], *, words: Collection[str] | None = None) -> None:
    """Write a question store (Parquet, readable by its owner only); replaces `path` atomically.

    `words`: texts in the questions that are no patient's own, from which a new tokenizer may learn
    (`shared.preparation.vocabulary`). Without a column `kind` all questions are choices.
    """
    waiting = iter(questions)
    all_choices = all(question.kind == CHOICE for question in questions)
    names = [name for name in COLUMNS if name != "kind" or not all_choices]
    schema = pa.schema([(name, TYPES.get(name, pa.string())) for name in names])
    if words is not None:
        schema = schema.with_metadata({WORDS: json.dumps(sorted(words))})
    with files.replacing(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        while part := list(itertools.islice(waiting, ROWS_AT_ONCE)):
            columns = {name: [getattr(question, name) for question in part] for name in names}
            writer.write_table(pa.table(columns, schema=schema))


def read_words(path: Path | str) -> list[str] | None:
    """The `words` that a question store was written with; None where it names none, as one made elsewhere."""
    source = io.BytesIO(buckets.read_bytes(path)) if isinstance(path, str) and buckets.is_address(path) else path
    metadata = pq.read_schema(source).metadata or {}
    return list(json.loads(metadata[WORDS])) if WORDS in metadata else None


def check_questions(path: Path | str) -> None:
    """Raise InputError unless there is a file at this path or address."""
    if not buckets.is_file(path):
        raise InputError(f"{path}: no such question file; write one with `creason prepare`")


def read_questions(path: Path | str) -> list[Question]:
    """Read a question store, a file or an address in a bucket. Raises InputError if it is missing or is no question store."""
    check_questions(path)
    source = io.BytesIO(buckets.read_bytes(path)) if isinstance(path, str) and buckets.is_address(path) else path
    try:
        table = pd.read_parquet(source)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error})".replace("\n", " ")) from error
    if "kind" not in table.columns:
        table["kind"] = CHOICE
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"{path}: not a question store, these columns are missing: {', '.join(missing)}")
    empty = [name for name in COLUMNS if not name.startswith("bayes_") and table[name].isna().any()]
    if empty or not all(isinstance(choices, np.ndarray) for choices in table["choices"]):
        what = f"{empty[0]} is empty in some rows" if empty else "choices are not lists"
        raise InputError(f"{path}: not a question store, {what}")
    table["choices"] = table["choices"].map(tuple)
    table = table.astype(object).where(table.notna(), None)
    try:
        return [Question(**{str(k): v for k, v in row.items()}) for row in table[COLUMNS].to_dict("records")]
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def check_apart(train: Path | str, valid: Path | str) -> None:
    """Raise InputError where held-out questions are about patients of the training questions."""
    held_out = {question.patient for question in read_questions(valid)}
    both = held_out & {question.patient for question in read_questions(train)}
    if both:
        raise InputError(
            f"data.valid = {valid}: {len(both):,} of its {len(held_out):,} patients are in data.train = {train} too, so that "
            "they are not held out; give questions about other patients"
        )


def question_at(questions: Sequence[Question], seed: int, position: int) -> Question:
    """The question at `position` (0, 1, ...) of training: each epoch is its own permutation of all of them."""
    epoch, index = divmod(position, len(questions))
    return questions[int(_permutation(len(questions), seed, epoch)[index])]


@functools.lru_cache(maxsize=1)
def _permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, "order", epoch).permutation(size)
