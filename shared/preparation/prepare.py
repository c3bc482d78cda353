"""From raw files, or from nothing, to a prepared registry and its question files in one folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shared.cohorts import synthetic, tables
from shared.cohorts.custom import problems
from shared.errors import InputError
from shared.evaluation import baselines
from shared.paper import cohorts as paper_cohorts
from shared.preparation import reading
from shared.preparation.making import Maker, paper_maker, question_maker
from shared.preparation.provenance import PROVENANCE, changes, found_record, is_whole, kept_salt, wanted_record
from shared.preparation.section import DataConfig
from shared.preparation.vocabulary import registry_words
from shared.questions import shortcuts
from shared.questions.record import write_questions
from shared.registry import store
from shared.registry.build import build, versions
from shared.registry.leakage import leak_audit
from shared.registry.patients import write_patients
from shared.registry.store import Registry
from shared.storage import files
from shared.tasks import denoising
from shared.tasks.catalogue import TASKS, task

SPLITS = ("train", "valid")
STAGED = "prepared"  # where everything is written before it takes its place
EARLIER = "cohort.parquet"  # what earlier versions left of MIMIC-III, in another form
DRAWING, READING = "drawing a synthetic registry", "reading the raw files"
NAMED = 5  # differences that a message names
LEAKS, PATIENTS = "leaks.csv", "patients.parquet"

Stage = Callable[[str], None]


def prepare(
    data: DataConfig,
    out: Path,
    *,
    seed: int,
    progress: bool,
    salt: str | None = None,
    ceiling: bool = False,
    overwrite: bool = False,
    say: Callable[[str], object] | None = None,
) -> None:
    """Write `out/registry`, `out/questions/train.parquet` and `out/questions/valid.parquet`, all of it or nothing.

    For the synthetic cohort without a source the raw files are drawn, into `out/raw`; intermediate files of MIMIC-III stay in
    `out/cache`. It returns at once if the same questions are there: made by the same rules from the same files with the same
    options. `salt` goes into the
    pseudonyms of patients; by default it is fixed for the synthetic cohort and random, then kept, for real ones. `ceiling`
    adds to the audit what boosted trees reach on held-out questions from what the records show. `overwrite` replaces questions
    that were made otherwise, with another salt, so that answers to the old ones are not taken for answers to the new. `say` is
    called with the name of each stage that begins once the raw files are read. Raises InputError where the raw files or the
    options are wrong, or questions are there that were made otherwise; the cells of a custom registry that do not fit its
    codebook are then listed in `out/problems.csv`.
    """
    found = found_record(out)
    if (out / EARLIER).exists():
        raise InputError(f"{out}: holds what an earlier version prepared of MIMIC-III; give another folder")
    wanted = wanted_record(data, out, seed, salt or kept_salt(data, found))
    changed = changes(found, wanted) if found else []
    if changed and not overwrite:
        raise InputError(
            f"{out}: holds questions that were made otherwise ({'; '.join(changed[:NAMED])}); give another folder, or replace "
            "them with `creason prepare --overwrite`: what was trained on them or answered them then no longer fits"
        )
    if found and not changed and is_whole(out, found):
        return
    if changed and not salt:
        wanted = wanted_record(data, out, seed, kept_salt(data, {}))
    for path in out.glob(".*.partial"):  # of a preparation that was killed
        files.remove(path)
    with files.replacing(out / STAGED) as staged:
        staged.mkdir(parents=True, mode=files.OWNER_ONLY_FOLDER)
        with _stages(progress, say) as stage:
            registry, maker = _registry(data, staged, out, seed, wanted, stage, progress)
        _write_questions(registry, maker, data, staged, wanted, progress=progress, ceiling=ceiling, say=say)
        files.owner_only(staged)
        files.remove(out / "questions")  # so that no questions lie beside a registry that they were not made from
        for folder in ("raw", "registry", "questions"):
            if (staged / folder).is_dir():
                files.remove(out / folder)
                (staged / folder).rename(out / folder)
    files.remove(out / STAGED)


def _registry(
    data: DataConfig, staged: Path, out: Path, seed: int, wanted: dict[str, Any], stage: Stage, progress: bool
) -> tuple[Registry, Maker]:
    """Write the registry, and the raw files where they are drawn."""
    source = Path(data.source) if data.source else staged / "raw"
    if not data.source:
        stage(DRAWING)
        synthetic.write_raw(source, patients=data.patients, seed=seed)
    try:
        registry, maker = _made(data, source, out, seed, wanted, stage, progress)
    except problems.Problems as error:
        problems.write_report(out / problems.REPORT, error.problems)
        raise
    stage("saving the registry")
    store.save(registry, staged / "registry")
    leaks = leak_audit(
        registry.features,
        registry.statistics,
        registry.leakage,
        cutoff=data.mi_cutoff,
        relations=registry.relations,
        later=denoising.later_features(registry.features) if data.causal else None,
    )
    with files.replacing(staged / "registry" / LEAKS) as temporary:
        leaks.to_csv(temporary, index=False)
    return registry, maker


def _made(
    data: DataConfig, source: Path, out: Path, seed: int, wanted: dict[str, Any], stage: Stage, progress: bool
) -> tuple[Registry, Maker]:
    """The registry, and what makes its questions."""
    stage(READING)
    options: dict[str, Any] = {
        "valid_patients": data.valid_patients,
        "seed": seed,
        "mi_cutoff": data.mi_cutoff,
        "salt": wanted["salt"],
    }
    if data.compat == "paper":
        cohort = paper_cohorts.load(data.cohort, source, valid_patients=data.valid_patients)
        registry = build(cohort.raw, split="paper", fit="all", progress=stage, **options)
        registry = _stamped(registry, wanted)
        return registry, paper_maker(registry, cohort, data)
    raw = reading.read(data, source, out, progress=progress)
    registry = build(raw, split=data.split, held_out=data.held_out, fit=data.fit, progress=stage, **options)
    registry = _stamped(registry, wanted)
    return registry, question_maker(registry, data, seed)


def _stamped(registry: Registry, wanted: dict[str, Any]) -> Registry:
    return dataclasses.replace(registry, provenance={**registry.provenance, "prepared": wanted})


def _write_questions(
    registry: Registry,
    maker: Maker,
    data: DataConfig,
    out: Path,
    wanted: dict[str, Any],
    *,
    progress: bool,
    ceiling: bool,
    say: Callable[[str], object] | None,
) -> None:
    folder = out / "questions"
    folder.mkdir(mode=files.OWNER_ONLY_FOLDER)
    audits: dict[str, Any] = {}
    pseudonyms: dict[str, set[str]] = {}
    words = {*registry_words(registry), *task(data.task).words(registry)}
    for split in SPLITS:
        count = data.train_questions if split == "train" else data.valid_questions
        if say:
            say(f"making and auditing {split} questions")
        with tqdm(total=count, desc=f"{split} questions", unit=" questions", disable=not progress) as bar:
            made = maker(split, count, bar.update)
        write_questions(folder / f"{split}.parquet", made, words=words)
        audits[split] = shortcuts.audit(made, sets=len(SPLITS))
        if ceiling and split == "valid" and TASKS[data.task].table_answers and data.compat == "none":
            audits[split]["ceiling"] = baselines.ceiling(registry, made, mi_cutoff=data.mi_cutoff)
        pseudonyms[split] = {question.patient for question in made}
    both = pseudonyms["train"] & pseudonyms["valid"]
    if both or set(registry.train.index) & set(registry.valid.index):
        raise InputError(f"{len(both)} patients are in both splits; ids must name one patient each")
    write_patients(folder / PATIENTS, registry)
    written = [path for part in (out / "registry", folder) for path in sorted(part.iterdir())]
    digests = {str(path.relative_to(out)): tables.digest(path) for path in written}
    record = {"versions": versions(), "files": digests, "shortcuts": audits}
    if data.exclude:
        record["left_out"] = registry.provenance["left_out"]
    files.write_json(folder / PROVENANCE, wanted | record)


class _stages:
    """A bar that names the stage it is at; calling it moves on to the next. `say` hears of those after the reading: what is
    refused until then is one line alone."""

    TOTAL = 5

    def __init__(self, shown: bool, say: Callable[[str], object] | None) -> None:
        self._say = say
        self._bar = tqdm(total=self.TOTAL, bar_format="{desc} {elapsed}", disable=not shown)

    def __enter__(self) -> Callable[[str], None]:
        return self._next

    def _next(self, name: str) -> None:
        self._bar.set_description_str(name)
        if self._say and name not in (DRAWING, READING):
            self._say(name)

    def __exit__(self, *_: object) -> None:
        self._bar.close()
