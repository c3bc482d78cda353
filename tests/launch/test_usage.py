"""`--help` of every program shows every flag and field that it takes, in groups, with examples that work."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from absl import flags

from launch import cli, usage
from parity.config import ParityConfig
from shared.config import RunConfig, validate
from shared.options.fields import sections
from shared.report import config_page
from tests.support.commands import REPOSITORY, here

FIELDS = {"train": RunConfig, "plan": RunConfig, "parity": ParityConfig}
# Flags that name what a program reads, and those that name what it makes.
READS = {
    "compare", "config", "first", "model", "model_config", "notes", "patients", "questions", "ratings", "registry", "replay",
    "second", "source", "workdirs",
}  # fmt: skip
MAKES = {"json", "key", "lm_eval", "out"}
MAKES_ITS_WORKDIR = {"train", "parity", "jobset"}
BROUGHT = {"notes.csv"}  # by whoever runs it


@pytest.fixture
def defined(monkeypatch):
    """Define a program's flags as in its own process; they are forgotten afterwards."""
    known = set(flags.FLAGS)

    def define(program: str, *arguments: str):
        _forget(known)
        monkeypatch.setattr(sys, "argv", [f"launch.{program}", *arguments])
        module = importlib.import_module(f"launch.{program}")
        module.define_flags()
        return module

    yield define
    _forget(known)


def _forget(known: set[str]) -> None:
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize("program", cli.NAMES)
def test_every_flag_is_shown_with_its_meaning(program, defined):
    before = set(flags.FLAGS)
    module = defined(program)
    shown = usage.text(module.main)
    labels = {line.split()[0].replace("[no]", "") for line in shown.split("\n") if line.startswith("  --")}
    for name in set(flags.FLAGS) - before:
        assert f"--{name}" in labels
        assert len(flags.FLAGS[name].help) > 5 and "no help available" not in flags.FLAGS[name].help
    assert not labels & {"--verbosity", "--log_dir", "--pdb", "--run_with_pdb", "--only_check_args"}
    if program in FIELDS:
        fields = [field for section in sections(FIELDS[program]) for field in section.fields]
        assert len(fields) >= len(dataclasses.fields(FIELDS[program]))
        assert [field.name for field in fields if f"--config.{field.name}" not in labels or not field.help] == []
    elif program != "jobset":
        assert not any(label.startswith("--config") for label in labels)


def test_every_field_of_every_section_is_documented():
    """Of the dataclasses themselves, however they are nested."""

    def names(kind: type, prefix: str = "") -> Iterator[str]:
        for name, hint in typing.get_type_hints(kind).items():
            if dataclasses.is_dataclass(hint):
                yield from names(typing.cast(type, hint), f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}"

    found = {field.name: field for section in sections(RunConfig) for field in section.fields}
    assert sorted(found) == sorted(names(RunConfig))
    assert [name for name, field in found.items() if not field.help] == []
    assert found["grpo.beta"].default == 0.04 and found["grpo.beta"].source == "grpo, section 1"
    assert found["warmup.optimizer.b2"].default == 0.95 and found["warmup.optimizer.b2"].source == ""
    assert found["name"].needed and not found["seed"].needed


@pytest.mark.parametrize("columns", [50, 100])
def test_lines_are_as_wide_as_the_terminal(columns, defined, monkeypatch):
    module = defined("evaluate")
    monkeypatch.setenv("COLUMNS", str(columns))
    assert usage.width() == columns
    lines = usage.text(module.main, columns).split("\n")
    wide = [line for line in lines if len(line) > columns]
    assert all(line.strip().startswith(("creason", "--")) for line in wide)
    assert max(map(len, lines)) > columns - 15


def test_the_form_of_an_entry(defined):
    shown = usage.text(defined("evaluate").main)
    assert (
        """
  --protocol                      The letter that the model boxes; or, as in the paper, the likelier
                                  letter after its reasoning and a phrase. (boxed|forced_choice;
                                  default boxed)
"""
        in shown
    )
    assert (
        """
  --[no]cyclic                    Ask each question with its options in every cyclic order. (default
                                  off)
"""
        in shown
    )
    assert (
        """
  --questions                     Question files (Parquet), separated by commas; addresses such as
                                  gs:// too. (list, separated by commas; needed)
"""
        in shown
    )
    assert """
  --config.grpo.beta              Weight of the KL to the reference policy; 0: no reference policy
                                  in memory. (number; default 0.04)
""" in usage.text(defined("train").main)


def test_headings_in_their_order_and_a_flag_of_no_group(defined, monkeypatch):
    defined("train")
    monkeypatch.setattr(sys, "argv", [__name__])
    flags.DEFINE_string("never_grouped", "", "Of no group.", module_name=__name__)
    found = usage.grouped("train")
    assert found[usage.OTHERS] == ["never_grouped"]
    flags.DEFINE_string("of_one_cohort", "", "Of no group.", module_name="launch.prepare_mimic3")
    assert usage.grouped("train")["MIMIC-III alone"] == ["of_one_cohort"]
    assert found["what goes in"][0] == "config" and "workdir" in found["what comes out"]
    defined("report")
    assert usage.grouped("report")["what goes in"] == ["workdir"]
    defined("show")
    assert usage.grouped("show") == {
        "what goes in": ["questions", "workdir", "step"], "which questions": ["n", "feature", "section", "seed"]
    }  # fmt: skip


@pytest.mark.parametrize("program", cli.NAMES)
def test_examples_are_accepted_and_their_files_are_there_or_made_by_another(program, defined, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    made = {Path(path) for name in cli.NAMES for words in _examples(name) for path in _paths(words, name)[1]}
    commands = _examples(program)
    assert len(commands) >= 2
    for words in commands:
        assert words[:2] == ["creason", program]
        defined(program, *words[2:])
        assert len(flags.FLAGS([f"launch.{program}", *words[2:]])) == 1
        if program in ("train", "plan"):
            validate(flags.FLAGS.config)
        for path in _paths(words, program)[0]:
            there = (REPOSITORY / path).exists() or path in BROUGHT
            assert there or {Path(path), *Path(path).parents} & made, (words, path)


def _examples(program: str) -> list[list[str]]:
    """The examples of a program, as words; what a shell redirects is left out."""
    document = importlib.import_module(f"launch.{program}").__doc__
    return [shlex.split(line.partition(" > ")[0]) for line in usage.examples(document or "")]


def _paths(words: list[str], program: str) -> tuple[list[str], list[str]]:
    """What an example reads, and what it makes."""
    reads, makes = [], []
    for word in words[2:]:
        name, _, value = word.lstrip("-").partition("=")
        values = [part.rpartition("=")[2] for part in value.split(",")]
        if name in READS and (name, program) != ("patients", "prepare"):
            reads += values
        elif name in MAKES or (name == "workdir" and program in MAKES_ITS_WORKDIR):
            makes += values
        elif name == "workdir":
            reads += values
    return reads, makes


def test_what_a_program_prints_is_its_help(monkeypatch, capfd):
    ended = here("export", "--help", monkeypatch=monkeypatch, capfd=capfd)
    assert ended.code == 0 and ended.err == ""
    assert ended.out.startswith("Export a checkpoint of a run")
    assert "\n  creason export --workdir=runs/quickstart --out=exported\n" in ended.out
    assert "\nthe machine\n  --backend " in ended.out


def test_a_wrong_name_keeps_its_suggestion(monkeypatch, capfd):
    ended = here("train", "--bakcend=jax", monkeypatch=monkeypatch, capfd=capfd)
    assert ended.refusal == "error: Unknown command line flag 'bakcend'. Did you mean: backend ?"


@dataclasses.dataclass(frozen=True)
class Inner:
    """An inner section."""

    rate: float = 1.0  # of all (spec: grpo, section 1)


@dataclasses.dataclass(frozen=True)
class Outer:
    """An outer
    section."""

    # what stands above,
    # on two lines
    kind: typing.Literal["a", "b"] = "a"  # and behind
    low: float | None = None  # b1 stays as it is
    bare: int = 3
    inner: Inner = Inner()
    other: Inner = Inner(rate=2.0)


def test_what_is_said_of_a_field_is_its_comment():
    outer, inner, other = sections(Outer)
    assert (outer.name, outer.help) == ("", "An outer section.")
    assert [(field.name, field.kind, field.default, field.help) for field in outer.fields] == [
        ("kind", "a|b", "a", "What stands above, on two lines and behind."),
        ("low", "float|None", None, "b1 stays as it is."),
        ("bare", "int", 3, ""),
    ]
    assert [(field.name, field.default, field.source) for field in (*inner.fields, *other.fields)] == [
        ("inner.rate", 1.0, "grpo, section 1"),
        ("other.rate", 2.0, ""),
    ]
    assert inner.fields[0].help == "Of all."


def test_the_page_of_the_configuration_is_up_to_date():
    assert config_page.PAGE.read_text(encoding="utf-8") == config_page.page(), "run python -m shared.report.config_page"
