"""A task is added as docs/extending.md says: one file and a line in the catalogue, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from shared.tasks.catalogue import TASKS
from tests.support.page_code import REPOSITORY, additions, extended_copy, new_file, run, section

SECTION, NAME = "A task", "hospital_death"
FILE = f"shared/tasks/{NAME}.py"
# What the copy makes of a prepared folder: the message of its first question and the reward of each letter, and what it refuses.
ASKED = """
import json
from shared.config import DataConfig, GrpoConfig
from shared.errors import InputError
from shared.questions.record import read_questions
from shared.tasks.prompts import user_message
from shared.tasks.rewards import score

def refused(**fields):
    try:
        DataConfig(task="hospital_death", **fields)
    except InputError as error:
        return str(error)

train, valid = (read_questions(f"deaths/questions/{split}.parquet") for split in ("train", "valid"))
first = valid[0]
terms = {letter: score(first, f"\\\\boxed{{{letter}}}", tokens=9, truncated=False, config=GrpoConfig(reward_format=0.5),
                       max_new_tokens=20) for letter in ("A", "B")}
print(json.dumps({
    "message": user_message(first), "answer": first.answer, "terms": terms, "context": first.context,
    "tasks": sorted({question.task for question in train + valid}), "sizes": [len(train), len(valid)],
    "options": sorted({question.choices for question in train + valid}),
    "right": sorted({question.choices["AB".index(question.answer)] for question in train}),
    "refused": [refused(num_choices=3), refused(cohort="stroke", source="x")],
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = extended_copy(SECTION, tmp_path_factory.mktemp("copy"))
    shutil.copytree(REPOSITORY / "launch", folder / "launch", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / FILE).write_text(new_file(SECTION, FILE), encoding="utf-8")
    return folder


def test_the_page_adds_one_file_and_one_line():
    assert NAME not in TASKS and not (REPOSITORY / FILE).exists()
    assert list(additions(SECTION)) == ["shared/tasks/catalogue.py"]
    assert section(SECTION).count("A new file") == 1


@pytest.mark.slow
def test_its_questions_are_prepared_worded_and_scored(copy):
    """With the command on the page."""
    command = next(line for line in section(SECTION).splitlines() if line.startswith("creason prepare "))
    printed = run(copy, "-m", "launch.prepare", *command.split()[2:], "--noshow")
    assert "questions 100 about 1 features" in " ".join(printed.split())
    assert "questions come out again" in run(copy, "-m", "launch.prepare", "--verify", "--out=deaths")
    found = json.loads(run(copy, "-c", ASKED))
    assert found["tasks"] == [NAME] and found["sizes"] == [100, 30]
    assert found["options"] == [["no", "yes"], ["yes", "no"]] and found["right"] == ["no", "yes"]
    assert (
        "[ICU/" not in found["context"]
        and "[Outcome/" not in found["context"]
        and "[Comorb" not in found["message"][:5]
    )
    lines = found["message"].splitlines()
    assert lines[-3] == "Q. Will this patient die in the hospital?" and lines[-2][:3] == "A. "
    wrong = "B" if found["answer"] == "A" else "A"
    assert found["terms"][found["answer"]] == {"answer": 1.0, "format": 0.5, "length": 0.0, "overlong": 0.0}
    assert found["terms"][wrong]["answer"] == 0.0
    assert found["refused"] == [
        f"num_choices = 3: task '{NAME}' does not read it; leave it out",
        f"task = '{NAME}': needs cohort = 'synthetic'; the tasks of 'stroke' are denoising, mrs_3m, mace_1y",
    ]


@pytest.mark.slow
def test_the_config_and_the_help_take_its_name(copy):
    code = "from shared.config import validate; print(validate({'name': 'r', 'data': {'task': 'hospital_death'}}).data.task)"
    assert run(copy, "-c", code) == f"{NAME}\n"
    shown = " ".join(run(copy, "-m", "launch.prepare", "--help").split())
    assert NAME in shown and "death in the hospital" in shown
