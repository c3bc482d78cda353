"""The program: its exit codes, what it writes, and how it refuses."""

from __future__ import annotations

import json

import pytest

from tests.support.commands import apart

pytestmark = pytest.mark.slow

CONFIG = "--config=configs/parity.py"


@pytest.mark.parametrize(("fault", "code"), [("", 0), ("ddof_0", 1)])
def test_the_exit_code_says_whether_all_is_well(fault, code, tmp_path):
    ended = apart("parity", CONFIG, f"--workdir={tmp_path}", "--rungs=contract", f"--inject={fault}")
    assert ended.code == code, ended.err
    rows = json.loads((tmp_path / "parity.json").read_text())
    assert all(row["passed"] for row in rows) == (not fault)
    said = (
        "Worst: rung 0 contract, advantages (all, against closed form)" if fault else "checks are within their bounds"
    )
    assert said in ended.out and "\n0 contract  advantages" in ended.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--workdir is needed"),
        (("--workdir={0}", "--rungs=attic"), "unknown rung 'attic'; there are contract, operations"),
        (("--workdir={0}", "--config.step=3"), "unknown field step"),
        (("--workdir={0}", "--dtypes=int8"), "must be of float32, bfloat16"),
        (("--workdir={0}", "--rungs=contract", "--inject=x"), "--inject=x: unknown fault; there are ddof_0"),
    ],
)
def test_what_is_wrong_is_one_line(flags, message, tmp_path):
    ended = apart("parity", CONFIG, *(flag.format(tmp_path) for flag in flags))
    assert message in ended.refusal
