"""Whether a prepared folder is what it says it is: `launch.prepare --verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

from shared.cohorts import tables
from shared.cohorts.catalogue import COHORTS
from shared.cohorts.mimic3.registry import CACHE
from shared.errors import InputError
from shared.preparation.making import question_maker
from shared.preparation.prepare import EARLIER, PATIENTS, SPLITS
from shared.preparation.provenance import PROVENANCE, RULES, options_of
from shared.questions.record import Question, read_questions
from shared.registry import store
from shared.registry.build import versions
from shared.registry.patients import read_patients
from shared.registry.store import Registry
from shared.storage import files

REPEATED = 500  # questions of each split that are made again


def verify(out: Path, *, progress: bool = False) -> list[str]:
    """One line for each thing found right. Raises InputError, naming the file, for the first that is not.

    Checked: the digest of every file written; that no patient is in both splits, and every question's patient in its own;
    that ids are unique and options differ; that the first questions come out again from the registry.
    """
    record = _record(out)
    _check_files(out, record)
    registry = store.load(out / "registry")
    questions = {split: read_questions(out / "questions" / f"{split}.parquet") for split in SPLITS}
    found = [f"{len(record['files'])} files are as they were written"]
    found.append(_check_patients(out, registry, questions))
    for split in SPLITS:
        _check_questions(out / "questions" / f"{split}.parquet", questions[split])
    found.append(
        f"{sum(map(len, questions.values())):,} questions have one right answer each, among options that differ"
    )
    found.append(_check_again(registry, record, questions, progress))
    failed = [split for split in SPLITS if not record["shortcuts"][split]["passed"]]
    found.append(f"shortcuts: {'a guesser beats chance in ' + ' and '.join(failed) if failed else 'none'}")
    return found


def check_sources(out: Path, source: Path) -> str:
    """Whether `source` still holds the raw files that `out` was made from. Raises InputError naming those that changed."""
    record = _record(out)
    then, now = record.get("source", {}), COHORTS[record["options"]["cohort"]].digests(source)
    changed = [name for name in sorted({*then, *now}) if then.get(name) != now.get(name)]
    if then and changed:
        raise InputError(f"{source}: not what {out} was made from, these files differ: {', '.join(changed)}")
    return f"{len(now)} raw files are those that it was made from"


def _record(out: Path) -> dict[str, Any]:
    path = out / "questions" / PROVENANCE
    if not path.is_file():
        if (out / EARLIER).exists():
            raise InputError(
                f"{out}: holds what an earlier version prepared of MIMIC-III; prepare again in another folder"
            )
        begun = (out / "registry").is_dir() or (out / CACHE).is_dir() or any(out.glob(".*.partial"))
        raise InputError(
            f"{out}: {'a preparation that did not end: there are no questions' if begun else 'nothing was prepared there'}; "
            "prepare again"
        )
    record = files.read_json(path)
    if not isinstance(record, dict) or not {"files", "options", "seed", "shortcuts", "rules"} <= set(record):
        raise InputError(f"{path}: not the record of prepared questions; prepare again")
    return record


def _check_files(out: Path, record: dict[str, Any]) -> None:
    for name, digest in record["files"].items():
        path = out / name
        if not path.is_file():
            raise InputError(f"{path}: is missing; prepare again")
        if tables.digest(path) != digest:
            raise InputError(f"{path}: is not as it was written; prepare again")


def _check_patients(out: Path, registry: Registry, questions: dict[str, list[Question]]) -> str:
    if set(registry.train.index) & set(registry.valid.index):
        raise InputError(f"{out / 'registry'}: a patient is in both splits; prepare again")
    known = read_patients(out / "questions" / PATIENTS).set_index("patient")["split"]
    if not known.index.is_unique:
        raise InputError(f"{out / 'questions' / PATIENTS}: a pseudonym comes twice; prepare again with another salt")
    for split in SPLITS:
        wrong = {question.patient for question in questions[split]} - set(known.index[known == split])
        if wrong:
            raise InputError(
                f"{out / 'questions' / f'{split}.parquet'}: asks about {len(wrong)} patients of another split"
            )
    return f"{len(registry.train):,} training and {len(registry.valid):,} held-out patients, none in both"


def _check_questions(path: Path, questions: list[Question]) -> None:
    if len({question.id for question in questions}) < len(questions):
        raise InputError(f"{path}: a question's id comes twice")
    for question in questions:
        if len(set(question.choices)) < len(question.choices):
            raise InputError(f"{path}: question {question.id} has two equal options")


def _check_again(
    registry: Registry, record: dict[str, Any], questions: dict[str, list[Question]], progress: bool
) -> str:
    if record["options"]["compat"] == "paper":
        return "made with compat = paper: prepare again elsewhere and compare to see whether it comes out again"
    if (record["rules"], record["versions"]) != (RULES, versions()):
        return "made by other rules or versions, so it is not made again here"
    maker = question_maker(registry, options_of(record), record["seed"])
    total = 0
    for split in SPLITS:
        count = min(REPEATED, len(questions[split]))
        with tqdm(total=count, desc=f"{split} again", disable=not progress) as bar:
            if maker(split, count, bar.update) != questions[split][:count]:
                raise InputError(f"{split}.parquet: the registry does not give the same questions again; prepare again")
        total += count
    return f"{total:,} questions come out again"
