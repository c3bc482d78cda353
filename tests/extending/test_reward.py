"""A reward is added as docs/extending.md says: one function, and its name in the line of a task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.page_code import REPOSITORY, additions, extended_copy, new_file, run

SECTION, FILE = "A reward", "shared/questions/brief.py"
# The terms of completions of some lengths, in the copy.
ASKED = """
import dataclasses, json
from tests.support.exam import exam
from shared.config import GrpoConfig
from shared.tasks.rewards import score, total

question = dataclasses.replace(exam(1)[0], task=sys.argv[1], answer="B")
config = GrpoConfig(reward_answer=2.0, reward_format=0.5)
found = [
    score(question, text, tokens=tokens, truncated=truncated, config=config, max_new_tokens=1_000)
    for text, tokens, truncated in json.loads(sys.argv[2])
]
print(json.dumps([found, [total(terms) for terms in found]]))
"""
COMPLETIONS = [
    [r"\boxed{B}", 200, False],
    [r"\boxed{B}", 201, False],
    [r"\boxed{B}", 200, True],
    [r"\boxed{A}", 9, False],
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = extended_copy(SECTION, tmp_path_factory.mktemp("copy"))
    (folder / FILE).write_text(new_file(SECTION, FILE), encoding="utf-8")
    return folder


def test_the_page_adds_one_file_and_one_line():
    assert not (REPOSITORY / FILE).exists()
    assert list(additions(SECTION)) == ["shared/tasks/catalogue.py"]


def scored(copy: Path, task: str) -> list:
    (copy / "asked.py").write_text(f"import sys\nsys.path.insert(0, 'tests/shared')\n{ASKED}", encoding="utf-8")
    return json.loads(run(copy, "asked.py", task, json.dumps(COMPLETIONS)))


@pytest.mark.slow
def test_completions_are_scored_by_it(copy):
    terms, totals = scored(copy, "denoising")
    assert terms[0] == {"answer": 2.0, "format": 0.5, "brief": 0.2, "length": 0.0, "overlong": 0.0}
    assert [found["brief"] for found in terms] == [0.2, 0.0, 0.0, 0.0]
    assert totals == pytest.approx([2.7, 2.5, 2.5, 0.5])


@pytest.mark.slow
def test_other_tasks_keep_theirs(copy):
    terms, totals = scored(copy, "aki")
    assert all("brief" not in found for found in terms) and totals == [2.5, 2.5, 2.5, 0.5]
