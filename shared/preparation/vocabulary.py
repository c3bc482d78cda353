"""What of the questions a new tokenizer may learn words from: nothing that one patient alone could have said.

Merges of a byte-pair tokenizer are kept as text in the model's directory, which is shared. So it is trained on the prompts'
own words, on names and headers of the codebook, on numbers, and on values that are no free text and that at least
`MIN_PATIENTS` training patients share, or that the codebook itself spells. Everything else is encoded letter by letter.

The list of these words is written beside the questions when a registry is prepared (`registry_words`); a question file
without a list is read for what its own questions show (`question_words`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from shared.questions.record import LETTERS, MASK, Question
from shared.registry.features import as_number
from shared.registry.statistics import FEW_VALUES
from shared.registry.store import Registry
from shared.tasks.catalogue import TASKS
from shared.tasks.denoising import shown_section

MIN_PATIENTS = 10
_NUMBER = re.compile(r"[-+]?[\d.:, -]*\d")  # digits are never merged: see `tokenizer.PIECES`


def registry_words(registry: Registry) -> list[str]:
    """Names, headers and code labels, and the values of categories that enough training patients share; sorted.

    A category that the codebook does not spell counts only where it can be asked for and takes at most `FEW_VALUES`
    values: more are free text, whatever its kind says. A feature of kind text gives nothing, however often it repeats.
    """
    found = {MASK}
    for feature in (feature for feature in registry.features if feature.visible):
        found |= {feature.display_name, shown_section(feature.section)}
        if feature.kind in ("category", "number"):
            found |= set(feature.labels)
        statistics = registry.statistics.get(feature.name)
        if statistics is None:
            continue
        texts = registry.train[feature.name].dropna()
        counts = texts[[as_number(text) != as_number(text) for text in texts]].value_counts()
        if len(counts) <= FEW_VALUES:
            found |= {str(text) for text in counts.index[counts >= MIN_PATIENTS]}
    return sorted(found - {""})


def question_words(questions: Sequence[Question]) -> list[str]:
    """The same as far as questions tell: what is asked for is no free text, and enough patients must have it.

    Lines of a record whose feature is never asked for give nothing, or their name where all their values are numbers; in
    tasks that ask for one outcome they give their name, and their values where there are at most `FEW_VALUES`.
    """
    names: dict[str, set[str]] = defaultdict(set)
    values: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    numeric: set[str] = set()
    asked = {name for question in questions if (name := asked_name(question))}
    for question in questions:
        who = question.patient
        names[question.section].add(who)
        answer = question.choices[LETTERS.index(question.answer)]
        values[asked_name(question) or question.feature][answer].add(who)
        for line in question.context.split("\n"):
            name, mark, value = line.partition(": ")
            names[name].add(who)
            if mark and _NUMBER.fullmatch(value):
                numeric.add(name)
            elif mark and value != MASK:
                values[name][value].add(who)
    every = not any(question.task in TASKS and TASKS[question.task].masks_record for question in questions)
    sections = {question.section for question in questions}
    known = {name for name in names if every or name in asked or name in sections or name in numeric - values.keys()}
    found = {MASK} | {name for name in known if len(names[name]) >= MIN_PATIENTS}
    for name, patients_of in values.items():
        if (name in asked or every) and len(patients_of) <= FEW_VALUES:
            found |= {value for value, patients in patients_of.items() if len(patients) >= MIN_PATIENTS}
    return sorted(found - {""})


def asked_name(question: Question) -> str:
    """The feature's name as the question's line shows it; "" where it shows none."""
    shown = re.search(r"'(.+)'", question.question)
    return shown.group(1) if shown else ""


def spelled(question: Question, words: Collection[str]) -> Question:
    """The question with everything cut that is neither a word nor a number: what a tokenizer may be trained on."""

    def kept(value: str) -> str:
        return value if value in words or _NUMBER.fullmatch(value) else ""

    lines = []
    for line in question.context.split("\n"):
        if line in words or not line:
            lines.append(line)
            continue
        name, mark, value = _parted(line, words)
        if mark:
            lines.append(f"{name}{mark}{kept(value)}")
    name = asked_name(question)
    return dataclasses.replace(
        question,
        context="\n".join(lines),
        question=question.question if not name or name in words else question.question.replace(name, ""),
        choices=tuple(kept(text) for text in question.choices),
    )


def _parted(line: str, words: Collection[str]) -> tuple[str, str, str]:
    """A line's name, ": " and value, where it begins with a name among `words`; else three empty texts."""
    for place in (match.start() for match in re.finditer(": ", line)):
        if line[:place] in words:
            return line[:place], ": ", line[place + 2 :]
    return "", "", ""


def training_texts(questions: Sequence[Question], words: Collection[str] | None) -> Iterator[Question]:
    """`spelled` for each question; without a list of words, by what the questions themselves show."""
    known = frozenset(question_words(questions) if words is None else words)
    return (spelled(question, known) for question in questions)
