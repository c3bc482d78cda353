"""From raw files, or from nothing, to a prepared registry and its question files in one folder."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from shared.cohorts import custom, synthetic, tables
from shared.cohorts.catalogue import COHORTS
from shared.cohorts.custom import problems
from shared.cohorts.custom.exclusions import keyed_digest
from shared.errors import InputError
from shared.evaluation import baselines
from shared.paper import cohorts as paper_cohorts
from shared.paper import questions as paper_questions
from shared.preparation.section import DataConfig
from shared.preparation.vocabulary import registry_words
from shared.questions import shortcuts
from shared.questions.record import Question, read_questions, write_questions
from shared.registry import store
from shared.registry.build import build, versions
from shared.registry.leakage import leak_audit
from shared.registry.patients import write_patients
from shared.registry.store import Registry
from shared.storage import files
from shared.tasks import aki, denoising, stroke_outcome

RULES = 4  # raised whenever the same options would make other questions
SPLITS = ("train", "valid")
STAGED = "prepared"  # where everything is written before it takes its place
MIMIC3 = "cohort.parquet"  # what the preparation of another kind leaves
DRAWING, READING = "drawing a synthetic registry", "reading the raw files"
NAMED = 5  # differences that a message names
MANY_TIMES = 10  # a value that is asked for more often than this is worth a line
LEAKS, PATIENTS, PROVENANCE = "leaks.csv", "patients.parquet", "provenance.json"

Stage = Callable[[str], None]
Maker = Callable[[str, int, Callable[[int], object]], list[Question]]


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

    For the synthetic cohort without a source the raw files are drawn, into `out/raw`. Nothing is done where the
    questions are there already, made by the same rules from the same files with the same options. `salt` goes into the
    pseudonyms of patients; by default it is fixed for the synthetic cohort and random, then kept, for real ones. `ceiling`
    adds to the audit what boosted trees reach on held-out questions from what the records show. `overwrite` replaces questions
    that were made otherwise, with another salt, so that answers to the old ones are not taken for answers to the new. `say` is
    called with the name of each stage that begins once the raw files are read. Raises InputError where the raw files or the
    options are wrong, or questions are there that were made otherwise; the cells of a custom registry that do not fit its
    codebook are then listed in `out/problems.csv`.
    """
    found = _found(out)
    if (out / MIMIC3).exists():
        raise InputError(f"{out}: holds what --cohort=mimic3 prepared; give another folder")
    wanted = _wanted(data, seed, salt or _kept_salt(data, found))
    changed = _changes(found, wanted) if found else []
    if changed and not overwrite:
        raise InputError(
            f"{out}: holds questions that were made otherwise ({'; '.join(changed[:NAMED])}); give another folder, or replace "
            "them with `creason prepare --overwrite`: what was trained on them or answered them then no longer fits"
        )
    if found and not changed and _is_whole(out, found):
        return
    if changed and not salt:
        wanted = _wanted(data, seed, _kept_salt(data, {}))
    for path in out.glob(".*.partial"):  # of a preparation that was killed
        files.remove(path)
    with files.replacing(out / STAGED) as staged:
        staged.mkdir(parents=True, mode=files.OWNER_ONLY_FOLDER)
        with _stages(progress, say) as stage:
            registry, maker = _registry(data, staged, out, seed, wanted, stage)
        _write_questions(registry, maker, data, staged, wanted, progress=progress, ceiling=ceiling, say=say)
        files.owner_only(staged)
        files.remove(out / "questions")  # so that no questions lie beside a registry that they were not made from
        for folder in ("raw", "registry", "questions"):
            if (staged / folder).is_dir():
                files.remove(out / folder)
                (staged / folder).rename(out / folder)
    files.remove(out / STAGED)


def _registry(
    data: DataConfig, staged: Path, out: Path, seed: int, wanted: dict[str, Any], stage: Stage
) -> tuple[Registry, Maker]:
    """Write the registry, and the raw files where they are drawn."""
    source = Path(data.source) if data.source else staged / "raw"
    if not data.source:
        stage(DRAWING)
        synthetic.write_raw(source, patients=data.patients, seed=seed)
    try:
        registry, maker = _made(data, source, seed, wanted["salt"], wanted, stage)
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
    data: DataConfig, source: Path, seed: int, salt: str, wanted: dict[str, Any], stage: Stage
) -> tuple[Registry, Maker]:
    """The registry, and what makes its questions."""
    stage(READING)
    options: dict[str, Any] = {
        "valid_patients": data.valid_patients,
        "seed": seed,
        "mi_cutoff": data.mi_cutoff,
        "salt": salt,
    }
    if data.compat == "paper":
        cohort = paper_cohorts.load(data.cohort, source, valid_patients=data.valid_patients)
        registry = build(cohort.raw, split="paper", fit="all", progress=stage, **options)
        registry = _stamped(registry, wanted)
        return registry, _paper_maker(registry, cohort, data)
    if data.cohort == "custom":
        how = {"encoding": data.encoding, "delimiter": data.delimiter, "decimal": data.decimal}
        raw = custom.read(source, **how, exclude=data.exclude)
    else:
        raw = COHORTS[data.cohort].read(source, cohort=data.cohort)
    registry = build(raw, split=data.split, held_out=data.held_out, fit=data.fit, progress=stage, **options)
    registry = _stamped(registry, wanted)
    return registry, question_maker(registry, data, seed)


def _stamped(registry: Registry, wanted: dict[str, Any]) -> Registry:
    return dataclasses.replace(registry, provenance={**registry.provenance, "prepared": wanted})


def question_maker(registry: Registry, data: DataConfig, seed: int) -> Maker:
    """Makes the questions of a split: their number, and what is called with 1 for each."""

    def make(split: str, count: int, progress: Callable[[int], object]) -> list[Question]:
        balance = data.balance == "all" or (data.balance == "train" and split == "train")
        common: dict[str, Any] = {"seed": seed, "balance": balance, "progress": progress}
        if data.task == "aki":
            return aki.questions(registry, split, count, **common)
        if data.task in stroke_outcome.TARGETS:
            return stroke_outcome.questions(
                registry, split, count, task=data.task, num_choices=data.num_choices, **common
            )
        return denoising.questions(
            registry,
            split,
            count,
            oracle=synthetic.Oracle() if data.cohort == "synthetic" else None,
            all_victims=data.all_victims and split == "valid",
            num_choices=data.num_choices,
            difficulty=data.difficulty,
            mi_cutoff=data.mi_cutoff,
            masked=data.masked,
            causal=data.causal,
            core_features=data.core_features,
            core_kind=data.core_kind,
            context_features=data.context_features,
            option_order=data.option_order,
            **common,
        )

    return make


def _paper_maker(registry: Registry, cohort: paper_cohorts.PaperCohort, data: DataConfig) -> Maker:
    material = paper_cohorts.material(
        cohort, registry, mi_cutoff=data.mi_cutoff, num_choices=data.num_choices, difficulty=data.difficulty
    )

    def make(split: str, count: int, progress: Callable[[int], object]) -> list[Question]:
        made, unscorable = paper_questions.questions(
            registry,
            cohort,
            material,
            split,
            count,
            task=data.task,
            masked=data.masked,
            all_victims=data.all_victims and split == "valid",
        )
        progress(len(made))
        if unscorable:
            tqdm.write(
                f"{split}: {unscorable} questions have more options than the reward has letters and are left out"
            )
        return made

    return make


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
    words = registry_words(registry)
    for split in SPLITS:
        count = data.train_questions if split == "train" else data.valid_questions
        if say:
            say(f"making and auditing {split} questions")
        with tqdm(total=count, desc=f"{split} questions", unit=" questions", disable=not progress) as bar:
            made = maker(split, count, bar.update)
        write_questions(folder / f"{split}.parquet", made, words=words)
        audits[split] = shortcuts.audit(made, sets=len(SPLITS))
        if ceiling and split == "valid" and data.task != "aki" and data.compat == "none":
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


def _wanted(data: DataConfig, seed: int, salt: str) -> dict[str, Any]:
    """What decides the questions, as their record says it."""
    wanted = _options(data, seed, salt)
    if data.source:
        wanted["source"] = COHORTS[data.cohort].digests(Path(data.source))
    if data.exclude:
        wanted["exclude"] = keyed_digest(Path(data.exclude), salt)
    return wanted


def _options(data: DataConfig, seed: int, salt: str) -> dict[str, Any]:
    options = {k: v for k, v in dataclasses.asdict(data).items() if k not in ("source", "train", "valid", "exclude")}
    if data.source:
        del options["patients"]
    return {"rules": RULES, "options": options, "seed": seed, "salt": salt}


def _found(out: Path) -> dict[str, Any]:
    """The record of the questions in `out`; nothing where there are none, or no record of them that can be read."""
    path = out / "questions" / PROVENANCE
    found = files.read_json(path) if path.is_file() else None
    return found if isinstance(found, dict) and {"options", "salt"} <= set(found) else {}


def _changes(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """In what a request differs from the one that made the questions; salts are not shown."""
    then, now = found["options"], wanted["options"]
    changes = [
        f"{name} was {then.get(name)!r}, now {now.get(name)!r}"
        for name in sorted({*then, *now})
        if then.get(name) != now.get(name)
    ]
    if found.get("seed") != wanted["seed"]:
        changes.append(f"seed was {found.get('seed')}, now {wanted['seed']}")
    if found["salt"] != wanted["salt"]:
        changes.append("another salt")
    if found.get("rules") != wanted["rules"]:
        changes.append("made by the rules of another version")
    before, after = found.get("source", {}), wanted.get("source", {})
    changes += [f"{name} differs" for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if found.get("exclude") != wanted.get("exclude"):
        changes.append("another list of patients to leave out")
    return changes


def _is_whole(out: Path, found: dict[str, Any]) -> bool:
    """Whether every file of the record is as it was written."""
    kept = found.get("files", {})
    return bool(kept) and all((out / name).is_file() and tables.digest(out / name) == kept[name] for name in kept)


def _kept_salt(data: DataConfig, found: dict[str, Any]) -> str:
    if data.cohort == "synthetic":
        return "synthetic"
    return str(found["salt"]) if found else secrets.token_hex(16)


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


def summary(out: Path) -> str:
    """What `prepare` wrote, on one screen; figures only, nothing about any patient."""
    registry = store.load(out / "registry")
    kinds = [feature.kind for feature in registry.features if feature.visible]
    lines = [
        f"cohort           {registry.cohort}",
        f"patients         {len(registry.train):,} train, {len(registry.valid):,} valid",
        f"features         {len(kinds)}: " + ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))),
        f"can be asked for {len(registry.statistics)}",
        f"hidden with what {out / 'registry' / LEAKS}",
        *(f"note             {note}" for note in registry.provenance.get("notes", [])),
        *_causal_lines(registry),
    ]
    audits = files.read_json(out / "questions" / PROVENANCE)["shortcuts"]
    for split in SPLITS:
        path = out / "questions" / f"{split}.parquet"
        figures = [*_figures(read_questions(path), split), *shortcuts.lines(audits[split])]
        lines += ["", f"{split}: {path}", *(f"  {line}" for line in figures)]
    return "\n".join(lines)


def _causal_lines(registry: Registry) -> list[str]:
    """With `causal`: what drops out of a record, by the section of the masked value."""
    if not registry.provenance.get("prepared", {}).get("options", {}).get("causal"):
        return []
    ranks = denoising.section_ranks(registry.features)
    shown = [feature for feature in registry.features if feature.visible]
    headers = {ranks[feature.name]: denoising.shown_section(feature.section) for feature in shown}
    return [
        f"causal           asked in {headers[rank] or 'no section'}: "
        f"{sum(other > rank for other in ranks.values())} of {len(shown)} features stand later and are not shown"
        for rank in sorted(headers)
    ]


def _figures(questions: list[Question], split: str) -> list[str]:
    if not questions:
        return ["no questions"]
    count = len(questions)
    options = [len(q.choices) for q in questions]
    sizes = ", ".join(f"{options.count(size):,} with {size}" for size in sorted(set(options)))
    lines = [
        f"questions      {count:,} about {len({q.feature for q in questions})} features",
        f"options        {sizes}",
        f"context        {sum(len(q.context) for q in questions) / count:,.0f} characters on average",
        f"right by       chance {sum(q.chance for q in questions) / count:.3f}, "
        f"always the most frequent value {sum(q.majority == q.answer for q in questions) / count:.3f}",
    ]
    values = len({(q.patient, q.feature) for q in questions})
    if count > MANY_TIMES * values:
        lines.append(
            f"asked often    each of {values:,} values {count / values:.0f} times on average; "
            f"--{split}_questions={MANY_TIMES * values} asks each about {MANY_TIMES} times"
        )
    known = [q.bayes_accuracy for q in questions if q.bayes_accuracy is not None]
    if known:
        lines.append(f"best possible  {sum(known) / len(known):.3f}")
    return lines
