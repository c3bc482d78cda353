"""The tasks by name: what is asked about a registry's patients. A new task is a file and a line here (docs/extending.md).

The table is plain data, so that `shared.config` can read it; a task's own file is loaded when the task is used.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.questions.record import Question
    from shared.tasks.task import Task

    Reward = Callable[..., float | Mapping[str, float]]

# Cohorts with one row for each patient.
REGISTRIES = ("synthetic", "sepsis", "hospitalized", "stroke", "custom")
DEFAULT = "denoising"  # words and scores letters among choices plainly


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """What is known of a task before its file is loaded. `options` and the like are fields of the config's section `data`.

    A field of a section inside it is named as `mimic3.stays`; the task is told it as `stays`.
    """

    file: str  # the module that offers the task as TASK
    asks: str  # what it asks for, in a few words
    cohorts: tuple[str, ...]  # that it suits
    options: tuple[str, ...] = ()  # that say how its questions are made; any other is refused
    held_out_options: tuple[str, ...] = ()  # of these, the ones that hold for questions about held-out patients alone
    paper_options: tuple[str, ...] = ()  # that it reads with compat = "paper"
    # It is given the law that a synthetic registry was drawn from, as `oracle`, and says what is best possible.
    knows_law: bool = False
    masks_record: bool = False  # it asks for values of the record itself, and not for one outcome
    # A model of the registry's columns can answer it, so that its ceiling is computed; not where a record ends at a moment of
    # the stay.
    table_answers: bool = False
    reward: str = ""  # the function that scores its completions, as "module:function"; empty: the task's own


TASKS: dict[str, Line] = {
    "denoising": Line(
        file="shared.tasks.denoising",
        asks="a masked value",
        cohorts=REGISTRIES,
        options=("num_choices", "difficulty", "mi_cutoff", "balance", "all_victims", "masked", "causal", "core_features",
                 "core_kind", "option_order", "context_features"),
        held_out_options=("all_victims",),
        paper_options=("num_choices", "difficulty", "mi_cutoff", "all_victims", "masked"),
        knows_law=True,
        masks_record=True,
        table_answers=True,
    ),
    "aki": Line(
        file="shared.tasks.aki", asks="AKI within 48 hours", cohorts=("hospitalized",),
        options=("balance",),  # its options are always yes and no
    ),
    "mrs_3m": Line(
        file="shared.tasks.mrs_3m", asks="mRS at 3 months", cohorts=("stroke",), options=("num_choices", "balance"),
        table_answers=True,
    ),
    "mace_1y": Line(
        file="shared.tasks.mace_1y", asks="MACE within a year", cohorts=("stroke",), options=("balance",),
        table_answers=True,
    ),
    "measurement": Line(
        file="shared.tasks.measurement", asks="a measurement 24 hours ahead", cohorts=("mimic3",),
        options=("mimic3.stays", "mimic3.ties"),
    ),
    "mortality": Line(
        file="shared.tasks.mortality", asks="death in the hospital", cohorts=("mimic3",),
        options=("mimic3.stays", "mimic3.ties"),
    ),
}  # fmt: skip


def task(name: str) -> Task:
    """The task called `name`, which is in the table."""
    found: Task = importlib.import_module(TASKS[name].file).TASK
    return found


def name_of(question: Question) -> str:
    """The name of a question's task; of one that is not in the table, as may be in a file made elsewhere, that of `DEFAULT`."""
    return question.task if question.task in TASKS else DEFAULT


def line_of(question: Question) -> Line:
    """The line of a question's task."""
    return TASKS[name_of(question)]


def task_of(question: Question) -> Task:
    """The task that words and scores a question."""
    return task(name_of(question))


def reward_of(question: Question) -> Reward:
    """What scores completions of a question; see `shared.tasks.rewards`."""
    module, _, name = line_of(question).reward.partition(":")
    found: Reward = getattr(importlib.import_module(module), name) if module else task_of(question).reward
    return found


def suiting(cohort: str) -> list[str]:
    """The names of the tasks that suit a cohort."""
    return [name for name, line in TASKS.items() if cohort in line.cohorts]
