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
from shared.config import DataConfig
from shared.errors import InputError
from shared.evaluation import baselines
from shared.paper import cohorts as paper_cohorts
from shared.paper import questions as paper_questions
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
LEAKS, PATIENTS, PROVENANCE = "leaks.csv", "patients.parquet", "provenance.json"

Stage = Callable[[str], None]
Maker = Callable[[str, int, Callable[[int], object]], list[Question]]


def prepare(
    data: DataConfig, out: Path, *, seed: int, progress: bool, salt: str | None = None, ceiling: bool = False
) -> None:
    """Write `out/registry`, `out/questions/train.parquet` and `out/questions/valid.parquet`.

    For the synthetic cohort without a source the raw files are drawn into `out/raw` first. Nothing is done where the
    questions are there already, made by the same rules from the same files with the same options. `salt` goes into the
    pseudonyms of patients; by default it is fixed for the synthetic cohort and random, then kept, for real ones. `ceiling`
    adds to the audit what boosted trees reach on held-out questions from what the records show. Raises
    InputError where the raw files or the options are wrong; the cells of a custom registry that do not fit its codebook
    are then listed in `out/problems.csv`.
    """
    source = Path(data.source) if data.source else out / "raw"
    salt = salt or _kept_salt(data, out)
    wanted = _options(data, seed, salt)
    if data.source:
        wanted["source"] = COHORTS[data.cohort].digests(source)
    if data.exclude:
        wanted["exclude"] = keyed_digest(Path(data.exclude), salt)
    if _is_done(out, wanted):
        return
    with _stages(progress) as stage:
        if not data.source:
            stage("drawing a synthetic registry")
            with files.replacing(source) as temporary:
                synthetic.write_raw(temporary, patients=data.patients, seed=seed)
        try:
            registry, maker = _made(data, source, seed, salt, wanted, stage)
        except problems.Problems as error:
            problems.write_report(out / problems.REPORT, error.found)
            raise
        stage("saving the registry")
        files.remove(out / "questions")  # so that no questions lie beside a registry that they were not made from
        store.save(registry, out / "registry")
        leaks = leak_audit(
            registry.features,
            registry.statistics,
            registry.leakage,
            cutoff=data.mi_cutoff,
            relations=registry.relations,
            later=denoising.later_features(registry.features) if data.causal else None,
        )
        with files.replacing(out / "registry" / LEAKS) as temporary:
            leaks.to_csv(temporary, index=False)
    _write_questions(registry, maker, data, out, wanted, progress=progress, ceiling=ceiling)


def _made(
    data: DataConfig, source: Path, seed: int, salt: str, wanted: dict[str, Any], stage: Stage
) -> tuple[Registry, Maker]:
    """The registry, and what makes its questions."""
    stage("reading the raw files")
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
) -> None:
    folder = out / "questions"
    with files.replacing(folder) as temporary:
        temporary.mkdir(mode=files.OWNER_ONLY_FOLDER)
        audits: dict[str, Any] = {}
        pseudonyms: dict[str, set[str]] = {}
        words = registry_words(registry)
        for split in SPLITS:
            count = data.train_questions if split == "train" else data.valid_questions
            with tqdm(total=count, desc=f"{split} questions", unit=" questions", disable=not progress) as bar:
                made = maker(split, count, bar.update)
            write_questions(temporary / f"{split}.parquet", made, words=words)
            audits[split] = shortcuts.audit(made, sets=len(SPLITS))
            if ceiling and split == "valid" and data.task != "aki" and data.compat == "none":
                audits[split]["ceiling"] = baselines.ceiling(registry, made, mi_cutoff=data.mi_cutoff)
            pseudonyms[split] = {question.patient for question in made}
        both = pseudonyms["train"] & pseudonyms["valid"]
        if both or set(registry.train.index) & set(registry.valid.index):
            raise InputError(f"{len(both)} patients are in both splits; ids must name one patient each")
        write_patients(temporary / PATIENTS, registry)
        digests = {
            str(path.relative_to(base)): tables.digest(path)
            for base, found in ((out, out / "registry"), (temporary.parent, temporary))
            for path in sorted(found.iterdir())
        }
        digests = {name.replace(temporary.name, folder.name): digest for name, digest in digests.items()}
        record = {"versions": versions(), "files": digests, "shortcuts": audits}
        if data.exclude:
            record["left_out"] = registry.provenance["left_out"]
        files.write_json(temporary / PROVENANCE, wanted | record)


def _options(data: DataConfig, seed: int, salt: str) -> dict[str, Any]:
    options = {k: v for k, v in dataclasses.asdict(data).items() if k not in ("source", "train", "valid", "exclude")}
    if data.source:
        del options["patients"]
    return {"rules": RULES, "options": options, "seed": seed, "salt": salt}


def _is_done(out: Path, wanted: dict[str, Any]) -> bool:
    record = out / "questions" / PROVENANCE
    if not record.is_file() or not (out / "registry").is_dir():
        return False
    found = files.read_json(record)
    return isinstance(found, dict) and {key: found.get(key) for key in wanted} == wanted


def _kept_salt(data: DataConfig, out: Path) -> str:
    if data.cohort == "synthetic":
        return "synthetic"
    kept = out / "questions" / PROVENANCE
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
        figures = [*_figures(read_questions(path)), *shortcuts.lines(audits[split])]
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
