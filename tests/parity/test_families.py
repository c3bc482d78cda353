"""The rungs of scores and gradients for the families whose decoder differs most from the first one's, which others climb."""

from __future__ import annotations

import pytest

from parity import runner
from parity.config import ParityConfig

pytestmark = pytest.mark.slow

RUNGS = ("scoring", "gradients")


@pytest.mark.parametrize("family", ["mistral", "olmo2"])
def test_scores_and_gradients_are_within_their_bounds(family, tmp_path):
    checks, _ = runner.run(ParityConfig(rungs=RUNGS, families=(family,)), tmp_path)
    assert {(check.rung, check.family) for check in checks} == {(rung, family) for rung in RUNGS}
    assert [check.row() for check in checks if not check.passed] == []
    assert {("scoring", "logprobs"), ("gradients", "every parameter, paper")} <= {
        (check.rung, check.check) for check in checks
    }
