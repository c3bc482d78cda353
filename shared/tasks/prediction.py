"""Questions about what comes later: one target, many patients, the record up to a moment (spec: registry, d, mended).

Every random choice is keyed by (seed, patient, task, draw), as in `shared.tasks.denoising`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from shared.errors import InputError
from shared.questions.record import LETTERS, Question
from shared.randomness import generator
from shared.registry.patients import pseudonym
from shared.registry.store import Registry
from shared.tasks.balanced import WindowLaw, category_law


@dataclasses.dataclass(frozen=True)
class Case:
    """A moment in a patient's stay: what is shown then (`context` makes the text), and the value asked for."""

    patient: str
    moment: str
    label: str
    context: Callable[[], str]


@dataclasses.dataclass(frozen=True)
class Target:
    """What is asked for: the task's name, the target's name, the question's line, and the values in their order."""

    task: str
    feature: str
    line: str
    values: tuple[str, ...]


def questions(
    registry: Registry,
    target: Target,
    cases: Sequence[Case],
    training: Sequence[Case],
    count: int,
    *,
    seed: int,
    num_choices: int = 5,
    balance: bool = True,
    progress: Callable[[int], object] | None = None,
) -> list[Question]:
    """Up to `count` questions, in each round one about every patient and each moment once.

    With `balance` each option is the right one equally often; else values come as often as among the patients.
    `training` are the cases that tell which value is frequent. Raises InputError where no two values occur.
    """
    if not cases or len({case.label for case in training}) < 2:
        raise InputError(f"task {target.task}: no question is possible, {target.feature} takes fewer than two values")
    common = Counter(case.label for case in training)
    law = category_law(Counter(case.label for case in cases if case.label in common), num_choices=num_choices)
    salt = str(registry.provenance.get("salt", ""))
    made: list[Question] = []
    for case, draw in _rounds(cases, seed):
        if len(made) == count:
            break
        options = _options(case, law, target, draw, seed, balance)
        if options is None:
            continue
        name = pseudonym(salt, case.patient)
        made.append(
            Question(
                id=f"{registry.cohort}-{target.task}-{name}-{case.moment}-{draw}",
                cohort=registry.cohort,
                task=target.task,
                feature=target.feature,
                section="",
                patient=name,
                context=case.context(),
                question=target.line,
                choices=tuple(options),
                answer=LETTERS[options.index(case.label)],
                majority=LETTERS[int(np.argmax([common[text] for text in options]))],
            )
        )
        if progress:
            progress(1)
    return made


def _rounds(cases: Sequence[Case], seed: int) -> Iterator[tuple[Case, int]]:
    """Each case once, patients in turn; then each once more with another draw, as options may differ."""
    by_patient: dict[str, list[Case]] = {}
    for case in cases:
        by_patient.setdefault(case.patient, []).append(case)
    patients = list(by_patient)
    longest = max(len(found) for found in by_patient.values())
    for number in range(longest * 2):
        draw, place = divmod(number, longest)
        for index in generator(seed, "round", number).permutation(len(patients)):
            found = by_patient[patients[index]]
            order = generator(seed, patients[index], "moments", draw).permutation(len(found))
            if place < len(found):
                yield found[order[place]], draw


def _options(case: Case, law: WindowLaw, target: Target, draw: int, seed: int, balance: bool) -> list[str] | None:
    """The options in order; None where this draw gives no question."""
    if not law.can_ask(case.label):
        return None
    rng = generator(seed, case.patient, target.task, case.moment, draw)
    drawn = law.draw(case.label, rng)
    order = rng.permutation(len(drawn))
    if balance and rng.random() >= law.accept(case.label, drawn):
        return None
    return [drawn[i] for i in order]
