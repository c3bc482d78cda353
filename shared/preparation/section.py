"""The section `data` of a run's config: where questions come from. An option that its task does not read is refused, not
silently ignored: `DataConfig` refuses what differs from its default, `launch.prepare` any flag that is given.
"""

from __future__ import annotations

import dataclasses
import types
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

from shared.cohorts.mimic3.options import Mimic3Config
from shared.options.checks import at_least, check
from shared.tasks.catalogue import TASKS, suiting
from shared.tasks.rules import QuestionRules

# The names of a table are a field's choices; a type checker cannot read them from a value.
if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]

# How questions are made, whatever the task.
OF_QUESTIONS = tuple(dict.fromkeys(option for line in TASKS.values() for option in line.options))
OF_CUSTOM = ("encoding", "delimiter", "decimal", "exclude")
OF_MIMIC3 = tuple(f"mimic3.{field.name}" for field in dataclasses.fields(Mimic3Config))
# Fields by which it is decided which others are read.
DECIDING = ("cohort", "task", "compat", "source", "split", "held_out")


def unread(*, cohort: str, task: str, compat: str, source: str, split: str, held_out: str) -> dict[str, str]:
    """The options that nothing would read, and for each the reason, as the end of a message."""
    line = TASKS.get(task)  # a name that is none is refused as such
    read = OF_QUESTIONS if line is None else line.paper_options if compat == "paper" else line.options
    whose = f"with compat = {compat!r}, task" if compat == "paper" else "task"
    found = {name: f"{whose} {task!r} does not read it; leave it out" for name in OF_QUESTIONS if name not in read}
    if cohort != "custom":
        found |= dict.fromkeys(OF_CUSTOM, "goes with cohort = 'custom' only")
    if cohort != "mimic3":
        found |= dict.fromkeys(OF_MIMIC3, "goes with cohort = 'mimic3' only")
    if split == "random":
        found["held_out"] = "goes with split = 'site' or 'time'"
    if source or cohort != "synthetic":
        found["patients"] = "only a synthetic registry that is drawn reads it, not one with a source; leave it out"
    if held_out:
        found["valid_patients"] = "held_out says who is held out; leave one of the two out"
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(QuestionRules):
    """Where questions come from. With `train` and `valid` empty they are made from `cohort` into the work directory."""

    # which registry; custom: your own table and codebook
    cohort: Literal["synthetic", "sepsis", "hospitalized", "stroke", "mimic3", "custom"] = "synthetic"
    # what is asked: a masked value, AKI within 48 hours, mRS at 3 months, MACE within a year; of MIMIC-III a measurement 24 hours
    # ahead, or death in the hospital
    task: TaskName = "denoising"
    source: str = ""  # folder of the raw files; empty with `synthetic`: the registry is drawn
    # of a custom registry's texts, such as cp949, where its files do not say it and are not in UTF-8
    encoding: str = ""
    delimiter: str = ""  # between the cells of a custom registry's text file; empty: detected and printed
    decimal: str = ""  # mark of decimals in a custom registry, a point or a comma; empty: detected and printed
    exclude: str = ""  # file of the ids of patients to leave out of a custom registry, such as those who withdrew
    train: str = ""  # question files that exist already: paths, or addresses such as gs://bucket/train.parquet
    valid: str = ""  # the same for held-out questions
    compat: Literal["none", "paper"] = "none"  # paper: the original's values, statistics and draws, faults included
    patients: int = 2_000  # number of patients to draw, for `synthetic` only
    valid_patients: int = 1_000  # number of patients held out
    split: Literal["random", "site", "time"] = "random"  # who is held out
    held_out: str = ""  # sites held out, or the first date held out; empty: by valid_patients
    fit: Literal["train", "all"] = "train"  # whose values statistics and mutual information describe (the paper: all)
    train_questions: int = 30_000  # training questions (spec: grpo, section 1)
    valid_questions: int = 1_000  # held-out questions
    # Each option is the right one equally often, so that frequency is no answer. "train": held-out values come as often as
    # among patients, e.g. to judge calibration. "none": the paper.
    balance: Literal["all", "train", "none"] = "all"
    all_victims: bool = False  # held-out patients: every value of one after the other, not one drawn from each in turn
    mimic3: Mimic3Config = Mimic3Config()

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "patients", "valid_patients", "train_questions", "valid_questions")
        check(bool(self.train) == bool(self.valid), "valid", self.valid, "give both `train` and `valid`, or neither")
        check(self.cohort == "synthetic" or bool(self.source or self.train), "source", self.source,
              f"the folder with the raw files of {self.cohort!r} is needed")  # fmt: skip
        drawn = self.cohort == "synthetic" and not self.source and not self.held_out
        check(not drawn or self.valid_patients < self.patients, "valid_patients", self.valid_patients,
              f"must leave training patients: below patients = {self.patients}")  # fmt: skip
        check(self.task in TASKS, "task", self.task, f"must be one of {', '.join(TASKS)}")
        suited = TASKS[self.task].cohorts
        check(self.cohort in suited, "task", self.task, f"needs cohort = {' or '.join(map(repr, suited))}; the tasks of "
              f"{self.cohort!r} are {', '.join(suiting(self.cohort))}")  # fmt: skip
        check(not (self.exclude and self.train), "exclude", self.exclude,
              "nobody can be left out of questions that are made already; leave them out when they are prepared")  # fmt: skip
        check(self.compat == "none" or self.cohort != "custom", "compat", self.compat,
              "the original had no custom cohort")  # fmt: skip
        check(self.compat == "none" or self.cohort != "mimic3", "compat", self.compat,
              "the questions of mimic3 are the original's in any case; leave it out")  # fmt: skip
        check(self.compat == "none" or (self.split, self.fit) == ("random", "train"), "compat", self.compat,
              "fixes the split and what is fitted; leave split and fit alone")  # fmt: skip
        defaults = types.SimpleNamespace(**{field.name: field.default for field in dataclasses.fields(self)})
        for name, reason in self.unread().items():
            value, default = (attrgetter(name)(values) for values in (self, defaults))
            check(value == default, name, value, reason)

    def unread(self) -> dict[str, str]:
        """The options that nothing would read, and why; `balance` = "none" is what compat = "paper" does anyway."""
        found = unread(**{name: getattr(self, name) for name in DECIDING})
        if (self.compat, self.balance) == ("paper", "none"):
            del found["balance"]
        return found
