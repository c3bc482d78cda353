"""Which options of the data section mean something to a task: the others are refused, not silently ignored.

`shared.config` refuses what differs from its default, `launch.prepare` any flag that is given.
"""

from __future__ import annotations

import dataclasses

from shared.cohorts.mimic3.options import Mimic3Config
from shared.tasks.catalogue import TASKS

# How questions are made, whatever the task; the defaults are in `shared.config.DataConfig`.
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
