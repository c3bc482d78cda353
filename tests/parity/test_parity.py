"""The fast rungs of the ladder on one family, and that every fault put in on purpose is found and named."""

from __future__ import annotations

import html
import inspect
import json
import re
from pathlib import Path

import pytest

from parity import report, runner
from parity.config import ParityConfig
from parity.faults import FAULTS
from shared.errors import InputError

pytestmark = pytest.mark.slow

DOCS = Path(__file__).resolve().parents[2] / "docs" / "parity.md"
FAMILY = "phi3"
FAST = ("contract", "operations", "scoring", "gradients")
# For each fault the lowest rung that fails, part of its first failed check's name, and part of where that is worst.
NAMED = {
    "ddof_0": ("contract", "advantages", "right"),
    "uncounted_eos": ("contract", "masks and positions", "completion_mask"),
    "bf16_log_softmax": ("operations", "log-softmax, jax", "token"),
    "naive_kl": ("operations", "small KL, jax", "k3"),
    "layer_swapped": ("scoring", "weights as loaded, jax", "model.layers."),
    "shift_by_one": ("scoring", "logprobs, jax", "question"),
    "padding_seen": ("scoring", "logprobs, jax", "question"),
    "frozen_pad_row": ("gradients", "every parameter, paper, jax", "model.embed_tokens.weight"),
    "eps_inside_root": ("optimizer", "AdamW", ""),
    "rate_off_by_one": ("updates", "learning rate of every step, jax", "step"),
    "stale_reference": ("reference", "mixed policy, jax", "token"),
    "bf16_masters": ("precision", "movement of the masters, jax", "model."),
    "mean_of_means": ("invariance", "gradient, 7 x 5, jax", "model."),
    "previous_key_unseen": ("generation", "greedy tokens, jax", "question"),
    "stale_engine": ("publishing", "greedy tokens after 3 publishes, jax", "question"),
    "lost_moments": ("exchange", "moments, jax to torch to jax", "weight"),
}


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """The fast rungs with nothing put in."""
    folder = tmp_path_factory.mktemp("parity")
    return folder, *runner.run(ParityConfig(rungs=FAST, families=(FAMILY,)), folder)


def test_the_fast_rungs_are_within_their_bounds(ladder):
    _, checks, _ = ladder
    assert {check.rung for check in checks} == set(FAST)
    assert [check.row() for check in checks if not check.passed] == []
    assert runner.culprit(checks) is None
    assert {"float64", "torch"} <= {check.against for check in checks}


def test_the_report_holds_every_check(ladder):
    folder, checks, world = ladder
    report.write(folder, checks, world)
    rows = json.loads((folder / "parity.json").read_text())
    assert len(rows) == len(checks)
    assert set(rows[0]) == {"rung", "check", "family", "against", "value", "bound", "unit", "passed", "worst"}
    assert {row["unit"] for row in rows} <= set(report.UNITS)
    page = (folder / "parity.html").read_text()
    assert page.count("<svg ") == len(world.curves) > 0
    assert all(f">{check.check}</td>" in page for check in checks)
    assert all(f"<h2>{number}. {name.capitalize()}</h2>" in page for number, name in enumerate(FAST))
    assert re.search(r"question \d, completion \d, token \d", page) and not re.search(r"completion \d\[", page)
    assert f"All {len(checks)} checks are within their bounds" in report.verdict(checks)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_by_its_rung_and_named(name, tmp_path):
    config = ParityConfig(rungs=(FAULTS[name].rung,), families=(FAMILY,), engines=("jax", "hf"), steps=3)
    checks, world = runner.run(config, tmp_path, inject=name, to_first_failure=True)
    first = runner.culprit(checks)
    assert first is not None
    rung, what, where = NAMED[name]
    assert first.rung == rung == FAULTS[name].rung
    assert what in first.check and where in first.worst
    named = f"rung {runner.NUMBERS[rung]} {rung}, {first.check} ({FAMILY if first.family != 'all' else 'all'}"
    assert named in report.verdict(checks)
    report.write(tmp_path, checks, world, inject=name)
    assert FAULTS[name].what in html.unescape((tmp_path / "parity.html").read_text())


@pytest.mark.parametrize(
    ("worst", "words"),
    [
        ("question 1, completion 4[11]", "question 1, completion 4, token 11"),
        ("token[7]", "token 7"),
        ("token[2, 14]", "row 2, token 14"),
        ("prompts padded by 3[5, 0]", "prompts padded by 3, completion 5, token 0"),
        ("q[0, 3, 1, 5]", "q, element (0, 3, 1, 5)"),
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("", ""),
    ],
)
def test_a_place_in_words(worst, words):
    assert report.place(worst) == words


def test_every_fault_is_named():
    assert set(NAMED) == set(FAULTS)


def rows_of_table(heading: str) -> list[list[str]]:
    """The cells of the table in docs/parity.md whose header begins with `heading`."""
    text = DOCS.read_text(encoding="utf-8")
    lines = text[text.index(f"| {heading} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]


def test_rungs_have_the_numbers_of_the_table_in_the_docs():
    assert [row[:2] for row in rows_of_table("rung")] == [[str(n), name] for name, n in runner.NUMBERS.items()]
    for number, rung in enumerate(runner.LADDER):
        docstring = inspect.getmodule(rung.checks).__doc__
        assert re.search(rf"^Rungs? (\d+ and )?{number}\b", docstring), rung.name


def test_the_docs_list_every_fault():
    assert rows_of_table("fault") == [[name, fault.what, fault.rung] for name, fault in FAULTS.items()]


@pytest.mark.parametrize(
    ("config", "inject", "message"),
    [
        ({"rungs": ("nothing",)}, "", "unknown rung 'nothing'"),
        ({"families": ("gpt2",)}, "", "unknown family 'gpt2'"),
        ({"rungs": ("precision",), "dtypes": ("float32",)}, "", "computes in float32"),
        ({"rungs": ("contract",)}, "gremlins", "unknown fault"),
        (
            {"rungs": ("scoring",)},
            "naive_kl",
            "rung operations is the first that sees it, and it is not chosen; add it to",
        ),
        ({"dtypes": ("float32",)}, "bf16_masters", "add it to --rungs, bfloat16 to --dtypes"),
    ],
)
def test_what_is_not_known_is_refused(config, inject, message, tmp_path):
    with pytest.raises(InputError, match=message):
        runner.run(ParityConfig(**config), tmp_path, inject=inject)
