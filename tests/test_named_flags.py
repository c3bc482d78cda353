"""Whatever a message, a docstring or a page advises exists: every flag that it names, and every field of the config."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import re
import typing
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from absl import flags

from shared.config import RENAMED, RunConfig

REPOSITORY = Path(__file__).resolve().parents[1]
CODE = ("shared", "creason_jax", "creason_torch", "parity", "launch", "configs")
SPEC = REPOSITORY / "docs" / "spec"  # names flags and fields of the original
PAGES = (
    REPOSITORY / "README.md",
    *(page for page in sorted((REPOSITORY / "docs").rglob("*.md")) if SPEC not in page.parents),
)
PROGRAMS = [
    path.stem
    for path in sorted((REPOSITORY / "launch").glob("*.py"))
    if "app.run(main" in path.read_text(encoding="utf-8") and "define_flags()" in path.read_text(encoding="utf-8")
]
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9_-]*(?:\.[a-z0-9_.]*[a-z0-9_])?)")
COMMAND = re.compile(r"(?:python3? -m launch\.|\bcreason )(\w+)((?:[^\n`#]|\\+\n)*)")
# Flags of programs that are not ours, by the program.
FOREIGN = {
    "absl": {"help", "helpfull", "verbosity"},
    "apt, git, pip": {"version", "no-deps", "dry-run", "ignore-installed", "no-build-isolation", "depth", "upgrade"},
    "benchmarks": {"folder", "kills", "multiples", "remats", "trl", "tunix"},
    "deepspeed, torchrun": {"hostfile", "include", "module", "nproc-per-node", "num_gpus"},
    "gcloud": {"accelerator-type", "recurse", "recursive", "worker", "zone"},
    "lm_eval": {"apply_chat_template", "include_path", "model_args", "tasks"},
    "sbatch": {"export"},
    "vllm serve": {
        "dtype",
        "generation-config",
        "hf-overrides",
        "logprobs-mode",
        "max-model-len",
        "skip-tokenizer-init",
    },
    "XLA": {"xla_force_host_platform_device_count"},
    "an example of any field": {"name.section.field"},
}
# What looks like a field of the config and is none, by the section's name.
NOT_FIELDS = {
    "data": {
        "csv",
        "dta",
        "parquet",
        "sas7bdat",
        "sav",
        "por",
        "xls",
        "xlsx",
        "ods",
        "tsv",
        "txt",
        "xpt",
        "zsav",
    },  # file names
    "evaluation": {"html", "md"},
    "health": {"md"},
    "jax": {"jit", "lax", "nn", "numpy"},  # the library
    "model": {"embed_tokens", "layers", "norm", "safetensors"},  # names of weights
    "torch": {"optim", "set_num_threads", "where"},  # the library
}


@cache
def flags_of(program: str) -> frozenset[str]:
    module = importlib.import_module(f"launch.{program}")
    known = set(flags.FLAGS)
    module.define_flags()
    found = frozenset(set(flags.FLAGS) - known)
    for name in found:
        delattr(flags.FLAGS, name)
    return found


@cache
def fields() -> dict[str, set[str]]:
    """Fields of each section, and of the config itself under ""."""
    found: dict[str, set[str]] = {}

    def add(prefix: str, kind: type) -> None:
        found[prefix] = {field.name for field in dataclasses.fields(kind)}
        for name, hint in typing.get_type_hints(kind).items():
            if dataclasses.is_dataclass(hint):
                add(f"{prefix}.{name}" if prefix else name, typing.cast(type, hint))

    add("", RunConfig)
    return found


def texts() -> Iterator[tuple[str, str]]:
    """Every text of the code and every page, each with where it stands."""
    for folder in CODE:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield f"{path.relative_to(REPOSITORY)}:{node.lineno}", node.value
    for path in PAGES:
        yield str(path.relative_to(REPOSITORY)), path.read_text(encoding="utf-8")


def is_field(name: str) -> bool:
    section, _, field = name.rpartition(".")
    return field in fields().get(section, ())


def unknown_flags(text: str, known: frozenset[str] | set[str]) -> list[str]:
    found = []
    for name in FLAG.findall(text):
        ours = name in known or name.removeprefix("no") in known
        of_config = "config" in known and name.partition(".")[0] in ("config", "noconfig") and "." in name
        if not ours and not (of_config and is_field(name.partition(".")[2])):
            found.append(name)
    return found


def test_every_program_is_found():
    assert {
        "consult",
        "curves",
        "evaluate",
        "export",
        "jobset",
        "parity",
        "plan",
        "prepare",
        "report",
        "review",
        "train",
    } <= {*PROGRAMS}


def test_every_flag_that_is_named_exists():
    known = set().union(*map(flags_of, PROGRAMS), *FOREIGN.values())
    wrong = [f"{where}: --{name}" for where, text in texts() for name in unknown_flags(text, known)]
    assert wrong == []


def test_every_command_has_the_flags_that_it_is_given():
    """Of the program that the command starts, not of any."""
    commands = [
        (where, program, words)
        for where, text in texts()
        for program, words in COMMAND.findall(text)
        if program in PROGRAMS
    ]
    assert len(commands) > 40
    wrong = [
        f"{where}: creason {program} --{name}"
        for where, program, words in commands
        for name in unknown_flags(words, flags_of(program) | FOREIGN["absl"])
    ]
    assert wrong == []


def test_every_field_that_is_named_exists():
    sections = [name for name in fields() if name]
    pattern = re.compile(rf"(?<![\w./-])({'|'.join(map(re.escape, sections))})\.([a-z_][a-z_0-9]*)")
    wrong = [
        f"{where}: {section}.{field}"
        for where, text in texts()
        for section, field in pattern.findall(text)
        if field not in fields()[section] and field not in NOT_FIELDS.get(section, ())
        if not (where.startswith("shared/config.py:") and f"{section}.{field}" in RENAMED)  # the table itself
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("leave --baselines away", ["baselines"]),
        ("leave --registry out, or --noprogress", []),
        ("--config.grpo.bta=1 and --config.grpo.beta=1", ["config.grpo.bta"]),
        ("--config.warmup.optimizer.eps=1, --noconfig.learner.group_layout", []),
    ],
)
def test_what_does_not_exist_is_seen(text, wrong):
    assert unknown_flags(text, set().union(*map(flags_of, PROGRAMS))) == wrong
