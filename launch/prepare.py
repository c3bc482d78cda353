"""Make a registry and question files from raw files; or check them, or draft a codebook.

    creason prepare --cohort=synthetic --patients=300 --valid_patients=60 --out=prepared
    creason prepare --verify --out=prepared
    creason prepare --cohort=custom --source=docs/custom --valid_patients=20 --out=prepared_custom

`--source` is the folder of the raw files. For a custom registry these are a table and its codebook; --draft_codebook writes a
first codebook (docs/custom.md). At its end the program prints the number of questions by section and, on a terminal, one whole
question.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from launch import app, prepare_mimic3, usage
from shared.cohorts import custom
from shared.cohorts.custom import drafting, redcap
from shared.cohorts.custom.codebook import CODEBOOK, Line, write_codebook
from shared.cohorts.custom.table import find_files, read_data
from shared.config import DataConfig
from shared.errors import InputError
from shared.preparation.prepare import prepare
from shared.preparation.summary import summary
from shared.preparation.verification import check_sources, verify
from shared.questions.record import read_questions
from shared.runs import showing
from shared.runs.showing import Selection
from shared.tasks.catalogue import TASKS

FLAGS = flags.FLAGS

DEFINE: dict[type, Callable[..., Any]] = {
    bool: flags.DEFINE_bool,
    int: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    str: flags.DEFINE_string,
}

# Field of DataConfig that makes questions -> the help of the flag with the same name.
HELP = {
    "cohort": "The registry to prepare.",
    "task": f"What questions ask for: {', '.join(line.asks for line in TASKS.values())}.",
    "source": "Folder of the raw files; without it, a synthetic registry is drawn.",
    "encoding": "Character encoding of a custom registry, such as cp949 or cp1252, if its files are not UTF-8 and name no other.",
    "delimiter": "What separates the cells of a custom registry's text file: a character, or comma, semicolon, tab, bar, space.",
    "decimal": "The decimal mark in a custom registry's numbers: a point or a comma.",
    "exclude": "File with the ids of patients to leave out of a custom registry, such as those who withdrew their consent.",
    "compat": "paper: reproduce the original's values, statistics and random draws, with its faults.",
    "patients": "How many patients to draw; only for synthetic.",
    "valid_patients": "How many patients are held out for validation.",
    "split": "Who is held out: patients at random, whole sites, or the latest patients.",
    "held_out": "The held-out sites, separated by commas, or the first held-out date or year; empty: use --valid_patients.",
    "fit": "Patients whose values give the statistics and the mutual information; all reproduces the original.",
    "train_questions": "How many questions about patients that are not held out.",
    "valid_questions": "How many questions about held-out patients.",
    "num_choices": "Number of options of a question, 2 to 5.",
    "difficulty": "Distance between neighbouring numeric options, in standard deviations: smaller is harder. Paper: 2.",
    "mi_cutoff": "Features with more mutual information (in nats) with the masked feature are hidden.",
    "balance": "Questions in which each option is right equally often: all, train (held-out values stay as they are), none.",
    "all_victims": "Ask for every value of one held-out patient after another, with one value masked at a time.",
    "masked": "How many values of a record are masked together; a question asks for each.",
    "causal": "Show no section that a record shows after the section of the masked value.",
    "core_features": "Use only so many of the most informative features; 0: all features.",
    "core_kind": "Kind of the features that --core_features keeps.",
    "option_order": "Order of the options.",
    "context_features": "How many features to show, drawn at random; 0: the whole record.",
}


def define_flags() -> None:
    """Define this program's flags."""
    hints = typing.get_type_hints(DataConfig)
    defaults = {field.name: field.default for field in dataclasses.fields(DataConfig)}
    for name, text in HELP.items():
        _define(name, hints[name], defaults[name], text)
    flags.DEFINE_string("out", "", "Folder for the prepared registry and the questions.")
    flags.DEFINE_integer("seed", 42, "Seed of the split and of all questions.")
    flags.DEFINE_string("salt", "", "Secret text for patients' pseudonyms; default for a real cohort: random.")
    flags.DEFINE_bool(
        "verify",
        False,
        "Check the contents of --out: files, sources, splits, and that the same questions come out again.",
    )
    flags.DEFINE_bool(
        "overwrite", False, "Replace questions in --out that were made from other data or with other flags."
    )
    flags.DEFINE_bool("draft_codebook", False, f"Write a first {CODEBOOK} beside the table of a custom registry.")
    flags.DEFINE_bool(
        "show", app.read_on_terminal(),
        "Print one whole question at the end. It is a patient's record, so by default only where standard output is a terminal: "
        "then no log of a batch job holds it.",
    )  # fmt: skip
    flags.DEFINE_string(
        "dictionary", "", "With --draft_codebook: file of the REDCap data dictionary, if it is not in --source."
    )
    flags.DEFINE_bool("progress", app.on_terminal(), "Show progress bars (default: on a terminal).")
    prepare_mimic3.define_flags()


def _define(name: str, kind: Any, default: Any, text: str) -> None:
    if typing.get_origin(kind) is typing.Literal:
        flags.DEFINE_enum(name, str(default), [*typing.get_args(kind)], text)
    else:
        DEFINE[kind](name, default, text)


def main() -> None:
    """Prepare, then say what was written; or check, or draft. Raises InputError for a bad flag or raw file."""
    if FLAGS.draft_codebook:
        check_alone("draft_codebook", "cohort", "source", "encoding", "delimiter", "decimal", "dictionary")
        if FLAGS["cohort"].present and FLAGS.cohort != "custom":
            raise InputError(
                f"--cohort={FLAGS.cohort}: --draft_codebook is for a registry of your own, --cohort=custom"
            )
        how = {name: getattr(FLAGS, name) for name in ("encoding", "delimiter", "decimal")}
        print(draft_codebook(Path(FLAGS.source), dictionary=FLAGS.dictionary, **how))
        return
    if FLAGS["dictionary"].present:
        raise InputError("--dictionary: only --draft_codebook reads it; leave it out")
    if not FLAGS.out:
        raise InputError("--out must have a value: the folder for the prepared registry and the questions")
    out = Path(FLAGS.out)
    if FLAGS.verify:
        check_alone("verify", "out", "source", "progress")
        lines = verify(out, progress=FLAGS.progress)
        print("\n".join([*lines, check_sources(out, Path(FLAGS.source))] if FLAGS.source else lines))
        return
    prepare_mimic3.check_csv(FLAGS.cohort)
    data = DataConfig(**{name: getattr(FLAGS, name) for name in HELP}, mimic3=prepare_mimic3.config())
    check_given(data)
    app.make_folder("out", out)
    prepare(
        data,
        out,
        seed=FLAGS.seed,
        progress=FLAGS.progress,
        salt=FLAGS.salt or None,
        ceiling=True,
        overwrite=FLAGS.overwrite,
        say=None if FLAGS.progress or FLAGS["progress"].present else say,
    )
    prepare_mimic3.write_csv(out / "registry")
    print(summary(out))
    print(made(out / "questions", "train", "valid"))
    if data.cohort == "custom" and (
        remarks := drafting.open_remarks(custom.codebook_of(Path(data.source), data.encoding))
    ):
        print(remarks)


def say(stage: str) -> None:
    """Print the name of a stage to standard error, if it is still read. For runs without progress bars."""
    with contextlib.suppress(OSError):
        print(stage, file=sys.stderr, flush=True)


def made(folder: Path, *names: str) -> str:
    """The end of the output: number of questions by section, one whole question with `--show`, and how to see more."""
    questions_of = {name: read_questions(folder / f"{name}.parquet") for name in names}
    lines = ["", *showing.section_counts(questions_of)]
    first = next((name for name in names if questions_of[name]), "")
    if first and FLAGS.show:
        (question,) = Selection(count=1).of(questions_of[first])
        columns = usage.width()
        lines += ["", showing.numbered(f"{first}: question", 1, len(questions_of[first]), columns)]
        lines += showing.question_lines(question, columns)
    return "\n".join(
        [*lines, "", f"creason show --questions={folder / (first or names[0])}.parquet shows questions in full"]
    )


def check_given(data: DataConfig) -> None:
    """Raise InputError for a flag on the command line that nothing would read, whatever its value."""
    for name, reason in data.unread().items():
        flag = name.rpartition(".")[2]
        if FLAGS[flag].present:
            raise InputError(f"--{flag}: {reason}")
    if FLAGS["seed"].present and data.compat == "paper" and data.source:
        raise InputError("--seed: compat = 'paper' draws with the original's own seed; leave it out")


def check_alone(mode: str, *read: str) -> None:
    """Refuse a flag that was given but that the flag `mode` makes useless. Raises InputError."""
    modules = {str(FLAGS.find_module_defining_flag(name)) for name in ("out", "fix")}
    for name in (flag.name for module in sorted(modules) for flag in FLAGS.flags_by_module_dict()[module]):
        if FLAGS[name].present and name not in (mode, *read):
            raise InputError(f"--{name}: --{mode} does not read it; leave it out")


def draft_codebook(
    source: Path, *, encoding: str = "", delimiter: str = "", decimal: str = "", dictionary: str = ""
) -> str:
    """Write a first codebook beside the table in `source`; returns a text on what to check in it.

    A REDCap data dictionary in `source`, or the file `dictionary`, describes the columns. Raises InputError if there is a
    codebook already, or no table.
    """
    source_files = find_files(source)
    path = source / CODEBOOK
    if source_files.codebook:
        raise InputError(f"{source_files.codebook}: is there already; remove it to have a new draft")
    table = read_data(
        source_files.data, encoding=encoding, delimiter=delimiter, decimal=decimal, catalogue=source_files.catalogue
    )
    described: dict[str, Line] = {}
    notes = list(table.notes)
    dictionary_file = Path(dictionary) if dictionary else redcap.find_dictionary(source, source_files.all)
    if dictionary_file:
        described, further_notes = redcap.described(redcap.read_fields(dictionary_file), table)
        notes += [f"{dictionary_file.name}: describes {len(described)} of {len(table.columns)} columns", *further_notes]
    lines = drafting.draft(table, described)
    write_codebook(path, lines)
    drafted = [line.kind for line in lines]
    kinds = ", ".join(f"{drafted.count(kind)} {kind}" for kind in dict.fromkeys(drafted))
    missing = (
        ""
        if "id" in drafted
        else "; no column looks like an id: give one the kind id, or add a column that numbers patients"
    )
    held_out = max(1, table.rows // 5)
    return "\n".join(
        [
            f"{path}: {len(lines)} columns ({kinds}){missing}",
            *drafting.screen(lines),
            *(f"note: {note}" for note in notes),
            f"edit it (docs/custom.md), then: creason prepare --cohort=custom --source={source} --out=prepared "
            f"--valid_patients={held_out}",
        ]
    )


if __name__ == "__main__":
    define_flags()
    app.run(main)
