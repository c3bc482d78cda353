"""A loss is added as docs/extending.md says: a row of the table and three formulas, and nothing else."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared.config import GrpoConfig
from shared.grpo.losses import LOSSES
from tests.support.page_code import additions, extended_copy, run

NAME, SECTION = "topr", "A loss"
FORMULAS = ["shared/grpo/objective.py", "creason_jax/learner/loss.py", "creason_torch/learner/loss.py"]
# Sections that the config of the copy is asked to take, and what it says of them.
ASKED = """
import json, sys
from shared.config import validate
from shared.errors import InputError

def answer(section):
    try:
        return validate({"name": "run", "grpo": section}).grpo.loss
    except InputError as error:
        return str(error)

print(json.dumps([answer(section) for section in json.loads(sys.argv[1])]))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return extended_copy(SECTION, tmp_path_factory.mktemp("copy"))


def test_the_page_adds_one_row_and_three_formulas():
    assert NAME not in LOSSES
    assert list(additions(SECTION)) == ["shared/grpo/losses.py", *FORMULAS]


def test_the_formula_by_hand():
    """Two tokens with ratios 0.5 and 0.8, 2 and 3, and the first two again where the advantage is positive: 0.4, 1 and 1."""
    reference = importlib.import_module("shared.grpo.objective")
    terms: dict[str, Any] = {}
    exec(additions(SECTION)[FORMULAS[0]], vars(reference) | {"POLICY_TERMS": terms})
    ratios = np.array([[0.5, 0.8], [2.0, 3.0], [0.5, 0.8]])
    logprobs = np.log([[0.2, 0.4], [0.3, 0.6], [0.2, 0.4]])
    advantages = np.array([[-1.0, -1.0], [-2.0, -2.0], [3.0, 3.0]])
    tokens = reference.Tokens(np.ones((3, 2), bool), advantages, logprobs, ratios, np.log(ratios), ratios)
    found = terms["tapered"](tokens, GrpoConfig(beta=0.0))
    np.testing.assert_allclose(found, -np.array([[0.4], [1.0], [1.0]]) * advantages * logprobs, rtol=1e-12)


@pytest.mark.slow
def test_the_config_takes_its_name_and_refuses_what_it_does_not_read(copy):
    sections = [{"loss": NAME}, {"loss": NAME, "delta": 1.6}, {"loss": NAME, "sapo_temperature_pos": 2.0}]
    sections += [{"loss": "other"}]
    known = ", ".join([*LOSSES, NAME])
    assert json.loads(run(copy, "-c", ASKED, json.dumps(sections))) == [
        NAME,
        "grpo.delta = 1.6: loss 'topr' does not read it; leave it out",
        "grpo.sapo_temperature_pos = 2.0: loss 'topr' does not read it; leave it out",
        f"grpo.loss = 'other': must be one of {known}",
    ]
    page = run(copy, "-c", "from shared.report.config_page import page; print(page())")
    assert f"| `{NAME}` | `tapered` | completions of the batch | none | - |" in page


@pytest.mark.slow
def test_the_three_agree_in_value_and_gradient(copy):
    """By the tests of every loss, which take the new row: against float64 and its finite differences, with every option."""
    files = ["tests/shared/test_grpo.py", *(f"tests/{side}/test_loss.py" for side in ("creason_jax", "creason_torch"))]
    found = run(copy, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-vv", "-k", NAME, *files)
    passed = [line for line in found.splitlines() if "PASSED" in line]
    for side in ("creason_jax", "creason_torch"):
        for test in ("setting_agrees_with_the_reference", "gradient_agrees_with_finite_differences"):
            assert sum(side in line and test in line for line in passed) == 5, found
    run(copy, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "tests/parity/test_losses.py")
