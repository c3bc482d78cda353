"""From raw files, or from nothing, to a prepared registry and its question files in one folder."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shared import files
from shared.cohorts import sepsis, synthetic
from shared.cohorts.sepsis import reader
from shared.config import DataConfig
from shared.questions import Question, read_questions, write_questions
from shared.registry import store
from shared.registry.build import versions
from shared.registry.store import Registry
from shared.tasks import denoising
from shared.tasks.denoising import Oracle

RULES = 1  # raised whenever the same options would make other questions
SPLITS = ("train", "valid")


def prepare(data: DataConfig, out: Path, *, seed: int, progress: bool, salt: str | None = None) -> None:
    """Write `out/registry`, `out/questions/train.parquet` and `out/questions/valid.parquet`.

    For the synthetic cohort without a source the raw files are drawn into `out/raw` first. Nothing is done where the
    questions are there already, made by the same rules from the same files with the same options. `salt` goes into the
    pseudonyms of patients; by default it is fixed for the synthetic cohort and random, then kept, for real ones. Raises
    InputError where the raw files or the options are wrong.
    """
    source = Path(data.source) if data.source else out / "raw"
    salt = salt or _kept_salt(data, out)
    wanted = _options(data, seed, salt)
    if data.source:
        wanted["source"] = reader.digests(source)
    if _is_done(out, wanted):
        return
    files.remove(out / "questions")  # so that no questions lie beside a registry that they were not made from
    out.mkdir(parents=True, exist_ok=True)
    oracle = synthetic.Oracle() if data.cohort == "synthetic" else None
    with _stages(progress) as stage:
        if not data.source:
            stage("drawing a synthetic registry")
            with files.replacing(source) as temporary:
                synthetic.write_raw(temporary, patients=data.patients, seed=seed)
        registry = sepsis.prepare(
            source,
            valid_patients=data.valid_patients,
            seed=seed,
            salt=salt,
            mi_cutoff=data.mi_cutoff,
            cohort=data.cohort,
            progress=stage,
        )
        stage("saving the registry")
        registry = dataclasses.replace(registry, provenance={**registry.provenance, "prepared": wanted})
        store.save(registry, out / "registry")
    _write_questions(registry, data, out / "questions", wanted, seed=seed, oracle=oracle, progress=progress)


def _write_questions(
    registry: Registry,
    data: DataConfig,
    folder: Path,
    wanted: dict[str, Any],
    *,
    seed: int,
    oracle: Oracle | None,
    progress: bool,
) -> None:
    with files.replacing(folder) as temporary:
        temporary.mkdir(mode=files.OWNER_ONLY_FOLDER)
        for split in SPLITS:
            count = data.train_questions if split == "train" else data.valid_questions
            with tqdm(total=count, desc=f"{split} questions", unit=" questions", disable=not progress) as bar:
                made = denoising.questions(
                    registry,
                    split,
                    count,
                    seed=seed,
                    num_choices=data.num_choices,
                    difficulty=data.difficulty,
                    mi_cutoff=data.mi_cutoff,
                    core_features=data.core_features,
                    core_kind=data.core_kind,
                    context_features=data.context_features,
                    option_order=data.option_order,
                    oracle=oracle,
                    progress=bar.update,
                )
            write_questions(temporary / f"{split}.parquet", made)
        files.write_json(temporary / "provenance.json", wanted | {"versions": versions()})


def _options(data: DataConfig, seed: int, salt: str) -> dict[str, Any]:
    options = {k: v for k, v in dataclasses.asdict(data).items() if k not in ("source", "train", "valid")}
    if data.source:
        del options["patients"]
    return {"rules": RULES, "options": options, "seed": seed, "salt": salt}


def _is_done(out: Path, wanted: dict[str, Any]) -> bool:
    record = out / "questions" / "provenance.json"
    if not record.is_file() or not (out / "registry").is_dir():
        return False
    found = files.read_json(record)
    return isinstance(found, dict) and {key: found.get(key) for key in wanted} == wanted


def _kept_salt(data: DataConfig, out: Path) -> str:
    if data.cohort == "synthetic":
        return "synthetic"
    kept = out / "questions" / "provenance.json"
    if kept.is_file():
        found = files.read_json(kept)
        if isinstance(found, dict) and isinstance(found.get("salt"), str):
            return found["salt"]
    return secrets.token_hex(16)


class _stages:
    """A bar that names the stage it is at; calling it moves on to the next."""

    TOTAL = 5

    def __init__(self, shown: bool) -> None:
        self._bar = tqdm(total=self.TOTAL, bar_format="{desc} {elapsed}", disable=not shown)

    def __enter__(self) -> Callable[[str], None]:
        return self._next

    def _next(self, name: str) -> None:
        self._bar.set_description_str(name)

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def summary(out: Path) -> str:
    """What `prepare` wrote, on one screen; figures only, nothing about any patient."""
    registry = store.load(out / "registry")
    kinds = [feature.kind for feature in registry.features]
    lines = [
        f"cohort           {registry.cohort}",
        f"patients         {len(registry.train):,} train, {len(registry.valid):,} valid",
        f"features         {len(kinds)}: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))),
        f"can be asked for {len(registry.statistics)}",
    ]
    for split in SPLITS:
        path = out / "questions" / f"{split}.parquet"
        lines += ["", f"{split}: {path}", *(f"  {line}" for line in _figures(read_questions(path)))]
    return "\n".join(lines)


def _figures(questions: list[Question]) -> list[str]:
    if not questions:
        return ["no questions"]
    count = len(questions)
    options = [len(q.choices) for q in questions]
    sizes = ", ".join(f"{options.count(size):,} with {size}" for size in sorted(set(options)))
    lines = [
        f"questions      {count:,} about {len({q.feature for q in questions})} features",
        f"options        {sizes}",
        f"context        {sum(len(q.context) for q in questions) / count:,.0f} characters on average",
        f"accuracy of a  uniform guess {sum(q.chance for q in questions) / count:.3f}, "
        f"majority guess {sum(q.majority == q.answer for q in questions) / count:.3f}",
    ]
    known = [q.bayes_accuracy for q in questions if q.bayes_accuracy is not None]
    if known:
        lines.append(f"best possible  {sum(known) / len(known):.3f}")
    return lines
