"""A model family is added as docs/extending.md says: a row of the table, and a variant for the tests."""

from __future__ import annotations

import dataclasses
import re
import textwrap
from pathlib import Path

import pytest

from shared.policy.families import FAMILIES, Family
from tests.support.page_code import REPOSITORY, additions, extended_copy, run, section

NAME, SECTION = "seed_oss", "A model family"
# For each file the tests that must have passed for the new family, by a part of their names.
WANTED = {
    "tests/creason_jax/test_families.py": (
        "logits_and_gradients_of_short_rows",
        "long_rows_and_far_positions",
        "greedy_tokens_equal_hugging_face",
        "every_bit_and_transformers_loads_it",
        "silent_config",
    ),
    "tests/creason_torch/test_families.py": ("long_rows_and_far_positions",),
    "tests/creason_torch/test_attention.py": ("hidden_states_and_gradients_of_separate_rows",),
    "tests/creason_torch/test_rollout.py": ("draws_what_hugging_face_generates",),
    "tests/shared/test_initial.py": ("transformers_loads_what_is_written",),
}


def test_the_page_shows_rows_of_the_table_as_they_stand():
    shown = section(SECTION).split("```python\n")[1].split("```")[0]
    assert re.findall(r'^"(\w+)": Family', shown, re.MULTILINE) == ["mistral", "olmo2"]
    assert textwrap.indent(shown, "    ") in (REPOSITORY / "shared" / "policy" / "families.py").read_text()


def test_the_page_names_every_field_of_a_row():
    table = section(SECTION).split("| --- | --- |")[1].split("\n\n")[0]
    named = re.findall(r"`(\w+)`", "".join(line.split(" | ")[0] for line in table.splitlines()))
    assert named == [field.name for field in dataclasses.fields(Family)]


def test_the_page_adds_one_row_and_what_the_tests_need():
    assert NAME not in FAMILIES
    assert list(additions(SECTION)) == ["shared/policy/families.py", "tests/support/families.py"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return extended_copy(SECTION, tmp_path_factory.mktemp("copy"))


@pytest.mark.slow
def test_the_new_family_equals_hugging_face_on_both_backends(copy):
    names = {part for parts in WANTED.values() for part in parts}
    chosen = f"{NAME} and ({' or '.join(sorted(names))})"
    found = run(copy, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-vv", "-k", chosen, *WANTED)
    passed = [line for line in found.splitlines() if "PASSED" in line]
    for file, parts in WANTED.items():
        for part in parts:
            assert any(file in line and part in line for line in passed), found


@pytest.mark.slow
def test_the_config_makes_a_policy_of_it(copy):
    program = "from shared.config import validate; print(validate({'name': 'run', 'model': {'family': 'seed_oss'}}).model.family)"
    assert run(copy, "-c", program).strip() == NAME
