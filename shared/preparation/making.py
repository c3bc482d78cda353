"""What makes the questions of a registry: its task, or the original's own rules."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from tqdm import tqdm

from shared.cohorts import synthetic
from shared.paper import cohorts as paper_cohorts
from shared.paper import questions as paper_questions
from shared.preparation.section import DataConfig
from shared.questions.record import Question
from shared.registry.store import Registry
from shared.tasks.catalogue import TASKS, task

Maker = Callable[[str, int, Callable[[int], object]], list[Question]]


def question_maker(registry: Registry, data: DataConfig, seed: int) -> Maker:
    """Makes the questions of a split: their number, and what is called with 1 for each."""

    def make(split: str, count: int, progress: Callable[[int], object]) -> list[Question]:
        options = task_options(data, split)
        return task(data.task).questions(registry, split, count, options, seed=seed, progress=progress)

    return make


def task_options(data: DataConfig, split: str) -> dict[str, Any]:
    """What a task is told for the questions of a split: the options that its line names, and a known law where it wants one."""
    line = TASKS[data.task]
    held_out = line.held_out_options if split == "train" else ()
    options = {name: attrgetter(name)(data) for name in line.options if name not in held_out}
    if "balance" in options:
        options["balance"] = data.balance == "all" or (data.balance == "train" and split == "train")
    if line.knows_law:
        options["oracle"] = synthetic.Oracle() if data.cohort == "synthetic" else None
    return {name.rpartition(".")[2]: value for name, value in options.items()}


def paper_maker(registry: Registry, cohort: paper_cohorts.PaperCohort, data: DataConfig) -> Maker:
    """The same by the original's rules, for `compat` = "paper"."""
    material = paper_cohorts.material(
        cohort, registry, mi_cutoff=data.mi_cutoff, num_choices=data.num_choices, difficulty=data.difficulty
    )

    def make(split: str, count: int, progress: Callable[[int], object]) -> list[Question]:
        made, unscorable = paper_questions.questions(
            registry,
            cohort,
            material,
            split,
            count,
            task=data.task,
            masked=data.masked,
            all_victims=data.all_victims and split == "valid",
        )
        progress(len(made))
        if unscorable:
            tqdm.write(
                f"{split}: {unscorable} questions have more options than the reward has letters and are left out"
            )
        return made

    return make
