"""The catalogue of tasks: plain data that the config reads, and files that offer what it says."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from operator import attrgetter
from typing import get_args, get_type_hints

import pytest

from shared.cohorts.catalogue import COHORTS
from shared.config import DataConfig
from shared.errors import InputError
from shared.questions import letters
from shared.questions.record import Question
from shared.tasks import catalogue
from shared.tasks.catalogue import TASKS
from shared.tasks.prompts import user_message
from shared.tasks.task import Task

QUESTION = Question(
    id="q", cohort="synthetic", task="denoising", feature="f", section="", patient="p", context="c", question="?",
    choices=("1", "2"), answer="A", majority="A",
)  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_a_line_says_what_its_file_offers(name):
    line, task = TASKS[name], catalogue.task(name)
    assert Task in type(task).__mro__ and type(task).questions is not Task.questions
    assert set(line.cohorts) <= set(COHORTS) and line.cohorts and line.asks
    assert set(line.held_out_options) <= set(line.options)
    example = DataConfig(train="a", valid="b")
    for option in (*line.options, *line.paper_options):
        attrgetter(option)(example)


def test_the_config_has_the_catalogues_names_and_cohorts():
    hints = get_type_hints(DataConfig)
    assert get_args(hints["task"]) == tuple(TASKS) and set(get_args(hints["cohort"])) == set(COHORTS)
    for cohort in COHORTS:
        for name in catalogue.suiting(cohort):
            assert DataConfig(cohort=cohort, task=name, source="x").task == name
    with pytest.raises(InputError, match="task = 'nothing': must be one of denoising, aki"):
        DataConfig(task="nothing")


def test_a_question_is_worded_and_scored_by_its_task():
    assert user_message(QUESTION) == "c\n?\nA. 1\nB. 2"
    assert user_message(dataclasses.replace(QUESTION, task="aki")) == "c\n?\nA.1\nB.2"
    elsewhere = dataclasses.replace(QUESTION, task="made elsewhere")
    assert user_message(elsewhere) == letters.message(elsewhere) and catalogue.line_of(elsewhere) is TASKS["denoising"]


def test_the_config_loads_no_task():
    """Nor what tasks need: a help screen is not to wait for it."""
    code = "import shared.config, sys; print(*(name for name in sys.modules if name.startswith(('shared.tasks', 'pandas'))))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert found == ["shared.tasks", "shared.tasks.catalogue", "shared.tasks.rules"]
