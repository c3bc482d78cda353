"""The record beside prepared questions, `questions/provenance.json`: what decided them, and whether that has changed."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.cohorts import tables
from shared.cohorts.custom.exclusions import keyed_digest
from shared.cohorts.mimic3.options import Mimic3Config
from shared.preparation.reading import source_digests
from shared.preparation.section import DataConfig
from shared.storage import files

RULES = 4  # raised whenever the same options would make other questions
PROVENANCE = "provenance.json"
NOT_RECORDED = ("source", "train", "valid", "exclude", "mimic3")  # as they are: by their content, or not at all
MIMIC3 = "mimic3."  # what the names of that cohort's own options begin with


def wanted_record(data: DataConfig, out: Path, seed: int, salt: str) -> dict[str, Any]:
    """What decides the questions, as their record says it. Raises InputError where a raw file is missing."""
    wanted = _options(data, seed, salt)
    if data.source:
        wanted["source"] = source_digests(data, out)
    if data.exclude:
        wanted["exclude"] = keyed_digest(Path(data.exclude), salt)
    return wanted


def _options(data: DataConfig, seed: int, salt: str) -> dict[str, Any]:
    options = {k: v for k, v in dataclasses.asdict(data).items() if k not in NOT_RECORDED}
    if data.cohort == "mimic3":
        options |= {f"{MIMIC3}{name}": value for name, value in data.mimic3.deciding().items()}
    if data.source:
        del options["patients"]
    return {"rules": RULES, "options": options, "seed": seed, "salt": salt}


def options_of(record: Mapping[str, Any]) -> DataConfig:
    """The options that a record's questions were made with, as far as they are known today; its raw files are not needed."""
    recorded = record["options"]
    fields, own = ({field.name for field in dataclasses.fields(kind)} for kind in (DataConfig, Mimic3Config))
    options = {name: value for name, value in recorded.items() if name in fields}
    mimic3 = {name: recorded[f"{MIMIC3}{name}"] for name in own if f"{MIMIC3}{name}" in recorded}
    drawn = "patients" in options  # else the registry was read from a source
    return DataConfig(**options, mimic3=Mimic3Config(**mimic3), source="" if drawn else "unused")


def found_record(out: Path) -> dict[str, Any]:
    """The record of the questions in `out`; nothing where there are none, or no record of them that can be read."""
    path = out / "questions" / PROVENANCE
    found = files.read_json(path) if path.is_file() else None
    return found if isinstance(found, dict) and {"options", "salt"} <= set(found) else {}


def changes(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In what a request differs from the one that made the questions; salts are not shown."""
    then, now = found["options"], wanted["options"]
    changed = [
        f"{name} was {then.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if found.get("seed") != wanted["seed"]:
        changed.append(f"seed was {found.get('seed')}, now {wanted['seed']}")
    if found["salt"] != wanted["salt"]:
        changed.append("another salt")
    if found.get("rules") != wanted["rules"]:
        changed.append("made by the rules of another version")
    before, after = found.get("source", {}), wanted.get("source", {})
    changed += [f"{name} differs" for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if found.get("exclude") != wanted.get("exclude"):
        changed.append("another list of patients to leave out")
    return changed


def is_whole(out: Path, found: dict[str, Any]) -> bool:
    """Whether every file of the record is as it was written."""
    kept = found.get("files", {})
    return bool(kept) and all((out / name).is_file() and tables.digest(out / name) == kept[name] for name in kept)


def kept_salt(data: DataConfig, found: dict[str, Any]) -> str:
    """The salt of pseudonyms where none is given: fixed for the synthetic cohort, else that of the record, else a new one."""
    if data.cohort == "synthetic":
        return "synthetic"
    return str(found["salt"]) if found else secrets.token_hex(16)
