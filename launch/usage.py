"""The text of `--help`: what a program does, examples, and all its flags and config fields, in groups.

The flags of absl itself (logging, debugging) are only in `--helpfull`.
"""

from __future__ import annotations

import inspect
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from shared.options.fields import Field, sections

FLAGS = flags.FLAGS
WIDTH, NARROWEST = 100, 40  # columns where the output is not a terminal; and the fewest columns of a terminal
COLUMN = 34  # the column at which explanations begin
COMMANDS = ("creason ", "python ", "torchrun ", "deepspeed ")

# Heading -> its flags, in the order in which they are shown. An entry `program.flag` overrides an entry `flag`. A flag without an
# entry stands under the heading of its module (`MODULES`), else under `OTHERS`.
GROUPS: dict[str, tuple[str, ...]] = {
    "what goes in": (
        "config", "model", "answers",
        "cohort", "source", "encoding", "delimiter", "decimal", "exclude", "dictionary", "questions", "notes",
        "workdirs", "metrics", "report.workdir", "export.workdir", "show.workdir", "export.step", "show.step", "replay",
        "registry", "patients", "compare", "first", "second", "names", "ratings", "topology", "model_config",
    ),
    "what comes out": (
        "out", "workdir", "key", "json", "completions", "lm_eval", "lm_eval_name", "show", "show_examples",
        "wandb_project",
    ),
    "which questions": ("n", "feature", "section", "show.seed", "limit", "cyclic", "cases", "raters"),
    "who is held out": ("prepare.patients", "valid_patients", "split", "held_out", "fit", "salt"),
    "what is asked": (
        "task", "train_questions", "valid_questions", "num_choices", "difficulty", "mi_cutoff", "balance", "all_victims",
        "masked", "causal", "core_features", "core_kind", "option_order", "context_features", "compat",
    ),
    "how it answers": (
        "protocol", "answer_rule", "allow_missing",
        "samples", "temperature", "max_prompt_tokens", "max_new_tokens", "prefill", "thinking", "template_date",
    ),
    "what is done": (
        "dry_run", "measure", "verify", "overwrite", "draft_codebook", "search", "steps", "rungs", "families", "dtypes", "inject",
        "seed", "bootstrap", "progress",
    ),
    "the machine": (
        "backend", "device", "engine", "compute_dtype", "slots", "coordinator",
        "num_processes", "process_id", "local_rank", "stopped_exit_code",
    ),
    "the cluster": ("image", "claim", "mount", "name", "slices", "train", "max_restarts", "grace_seconds"),
}  # fmt: skip
MODULES = {
    "launch.prepare_mimic3": "MIMIC-III alone",
    "launch.backends": "the machine",
    "launch.generation": "how it answers",
}
OTHERS = "further flags"
REPEATED = ";\n repeat this option to specify a list of values"
KINDS = {
    "string": "text",
    "str": "text",
    "int": "whole number",
    "float": "number",
    "float|None": "number or None",
    "tuple": "list of names",
    "comma separated list of strings": "list, separated by commas",
    "multi string": "text, may come several times",
    "config file": "file",
}


def show(main: Callable[[], None]) -> None:
    """Print the help of the program whose `main` this is, as wide as the terminal."""
    sys.stdout.write(text(main, width()))


def width() -> int:
    """Columns of the terminal, or the value of the variable COLUMNS."""
    return max(NARROWEST, shutil.get_terminal_size((WIDTH, 24)).columns)


def text(main: Callable[[], None], columns: int = WIDTH) -> str:
    """The help of the program whose `main` this is. Its flags must be defined.

    Lines are at most `columns` wide, except for commands.
    """
    program = Path(inspect.getfile(main)).stem
    lines = list(_described(main.__globals__.get("__doc__") or "", columns))
    for heading, names in grouped(program).items():
        lines += ["", heading]
        for name in names:
            lines += _entry(*_of_flag(FLAGS[name]), columns)
    for name in own_flags():
        lines += _fields(name, columns)
    return "\n".join([*lines, "", "--helpfull also shows the flags of logging and debugging.", ""])


def own_flags() -> dict[str, str]:
    """Flag of this project -> the module that defines it."""
    module_of_flag: dict[str, str] = {}
    for module, module_flags in FLAGS.flags_by_module_dict().items():
        if module.startswith("launch.") or module == sys.argv[0]:
            module_of_flag |= {flag.name: module for flag in module_flags}
    return module_of_flag


def grouped(program: str) -> dict[str, list[str]]:
    """Heading -> flags of this project, in the order of `GROUPS`."""
    module_of_flag = own_flags()
    headings = {name: heading for heading, names in GROUPS.items() for name in names}
    flags_by_heading: dict[str, list[str]] = {heading: [] for heading in (*GROUPS, *MODULES.values(), OTHERS)}
    for name, module in module_of_flag.items():
        heading = headings.get(f"{program}.{name}") or headings.get(name) or MODULES.get(module, OTHERS)
        flags_by_heading[heading].append(name)
    ranks = {name: rank for rank, name in enumerate(headings)}

    def rank(name: str) -> int:
        return ranks.get(f"{program}.{name}", ranks.get(name, len(ranks)))

    return {heading: sorted(names, key=rank) for heading, names in flags_by_heading.items() if names}


def examples(document: str) -> list[str]:
    """The example commands in a module's docstring, each on one line."""
    shown = [line.strip() for part in _paragraphs(document) if _is_commands(part) for line in part]
    return [line for line in "\n".join(shown).replace("\\\n", " ").split("\n") if line.startswith(COMMANDS)]


def _described(document: str, width: int) -> Iterator[str]:
    for number, part in enumerate(_paragraphs(document)):
        if number:
            yield ""
        if _is_commands(part):
            yield from textwrap.indent(textwrap.dedent("\n".join(part)), "  ").split("\n")
        else:
            yield from textwrap.wrap(" ".join(part), width, break_long_words=False, break_on_hyphens=False)


def _paragraphs(document: str) -> list[list[str]]:
    return [part.split("\n") for part in inspect.cleandoc(document).split("\n\n") if part.strip()]


def _is_commands(lines: list[str]) -> bool:
    return lines[0].strip().startswith(COMMANDS)


def _of_flag(flag: flags.Flag) -> tuple[str, str]:
    """A flag's name as it is typed, and its meaning."""
    boolean = flag.flag_type() == "bool"
    options = getattr(flag.parser, "enum_values", None)
    kind = "|".join(options) if options else "" if boolean else KINDS.get(flag.flag_type(), flag.flag_type())
    meaning = flag.help.removeprefix(f"<{kind}>: ").removesuffix(REPEATED)  # absl adds both
    if any("must have a value" in validator.message for validator in flag.validators):
        default = "needed"
    elif flag.default in (None, "", []) or "default:" in flag.help:
        default = ""
    else:
        default = f"default {_typed(flag.default)}"
    return f"--[no]{flag.name}" if boolean else f"--{flag.name}", _with_notes(meaning, kind, default)


def _of_field(flag: str, field: Field) -> tuple[str, str]:
    boolean = field.kind == "bool"
    default = "needed, mostly in the file" if field.needed else f"default {_typed(field.default)}"
    kind = "" if boolean else KINDS.get(field.kind, field.kind)
    prefix = "--[no]" if boolean else "--"
    return f"{prefix}{flag}.{field.name}", _with_notes(field.help, kind, default)


def _fields(name: str, width: int) -> Iterator[str]:
    """The fields of the config that the flag `name` reads."""
    documented = getattr(FLAGS[name].parser, "documented", None)
    kind = documented() if documented else None
    if kind is None:
        return
    yield from ("", f"the fields of --{name}: the file sets them, and each can be set on the command line")
    for section in sections(kind):
        yield ""
        title = f"{section.name}: {section.help}" if section.name else section.help
        yield from textwrap.wrap(title, width)
        for field in section.fields:
            yield from _entry(*_of_field(name, field), width)


def _typed(value: Any) -> str:
    """A default value as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value)) or "none"
    return "empty" if value == "" else str(value)


def _with_notes(help_text: str, *notes: str) -> str:
    joined = "; ".join(filter(None, notes))
    return f"{help_text} ({joined})" if joined else help_text


def _entry(label: str, meaning: str, width: int) -> list[str]:
    column = COLUMN if width >= 2 * COLUMN else 6
    lines = textwrap.wrap(meaning, width - column, break_long_words=False, break_on_hyphens=False)
    if len(label) + 4 <= column:
        first, *rest = lines
        return [f"  {label:<{column - 2}}{first}", *(" " * column + line for line in rest)]
    return [f"  {label}", *(" " * column + line for line in lines)]
