"""MIMIC-III's CSV files to the sepsis cohort and its two question sets, in one folder (spec: mimic3)."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
from tqdm import tqdm

from shared.cohorts.mimic3 import cohort, exclusions, extracts, final, imputation, reference, scores, tables
from shared.cohorts.mimic3.cohort import Options
from shared.cohorts.mimic3.reading import Extracts
from shared.cohorts.mimic3.stages import Done, Stages, Written, key_of, save, watched
from shared.cohorts.mimic3.tables import Table
from shared.errors import InputError
from shared.questions.record import write_questions
from shared.registry.build import versions
from shared.storage import files
from shared.tasks import measurement, mortality, timeline

RULES = 2  # raised whenever the same files and options would make something else
CACHE = "cache"
CSV = "sepsis_final_data_RAW_withTimes.csv"
LISTS = ("extract_items", "antibiotic_gsn", "elixhauser_icd9")
GIGABYTE = 10**9
LEAST_MEMORY = GIGABYTE
DATABASE_SHARE = 0.5  # of the memory limit, while extracts are made
READING_SHARE = 0.2  # while they are read back
STAYS_PER_GIGABYTE = 150  # worked on at once, so that their charted times take a fraction of the limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to make. `salt`: goes into pseudonyms; drawn and kept if None. `memory`: bytes to stay below."""

    options: Options = Options()
    measurement_stays: int = 1_000
    mortality_stays: int = 1_000
    csv: bool = False
    salt: str | None = None
    memory: int = 4 * GIGABYTE
    threads: int = 2

    def __post_init__(self) -> None:
        if self.memory < LEAST_MEMORY:
            raise InputError(f"memory_limit: {self.memory:,} bytes is too little; give 1GB or more")


def prepare(source: Path, out: Path, settings: Settings, *, progress: bool, make_stages: type[Stages] = Stages) -> str:
    """Write `out/cohort.parquet` and `out/questions/{measurement,mortality}.parquet`; returns a summary in words.

    Intermediate files stay in `out/cache`, each with a digest of what it was made from: what has not changed is not
    made again, so a run that was stopped goes on. `make_stages` lets a benchmark watch them. Raises InputError naming
    the file, the line and the column that is wrong.
    """
    sources = tables.find(source)
    for folder in (out, out / CACHE, out / "questions"):
        for path in folder.glob(".*.partial"):  # of a run that was killed
            files.remove(path)
    stages = make_stages(out / CACHE, progress=progress)
    salt = settings.salt or _kept_salt(out / CACHE / "salt.json")
    digests = tables.digests(sources, out / CACHE / "digests.json", progress=progress)
    key = _make_extracts(stages, sources, digests, settings)
    memory = int(settings.memory * READING_SHARE)
    with extracts.connected({}, out / CACHE, memory=memory, threads=settings.threads) as connection:
        batch = max(50, settings.memory * STAYS_PER_GIGABYTE // GIGABYTE)
        reader = Extracts(stages.folder, connection, batch=batch, as_csv=settings.options.as_csv)
        counts = _make_cohort(stages, reader, out, settings, key)
        counts |= _make_questions(stages, reader, out, settings, key, salt)
    notes = [note for table in sources.values() for note in table.notes]
    record = {
        "rules": RULES,
        "notes": notes,
        "source": digests,
        "options": {
            "ties": settings.options.ties,
            "fixes": sorted(settings.options.fixes),
            "measurement_stays": settings.measurement_stays,
            "mortality_stays": settings.mortality_stays,
        },
        "salt": salt,
        "counts": counts,
        "stages": {done.name: {"rows": done.rows, "seconds": done.seconds} for done in stages.done},
        "versions": versions() | {"duckdb": duckdb.__version__},
    }
    files.write_json(out / "provenance.json", record)
    return _summary(out, counts, stages.done, notes)


def _kept_salt(note: Path) -> str:
    # Kept before any question is made, so that a run stopped in between goes on with the same pseudonyms.
    if not note.is_file():
        files.write_json(note, secrets.token_hex(16))
    return str(files.read_json(note))


def _make_extracts(stages: Stages, sources: Mapping[str, Table], digests: Mapping[str, str], settings: Settings) -> str:
    """Makes the extracts that are not there yet; returns a key of all of them."""
    lists = [reference.table(name).to_csv() for name in LISTS]

    def key(name: str) -> str:
        read = {table: digests[sources[table].path.name] for table in extracts.SOURCES[name]}
        return key_of(RULES, lists, extracts.query("charted"), extracts.query(name), read)

    keys = {name: key(name) for name in extracts.NAMES}
    missing = extracts.missing(lambda name: stages.kept(name, keys[name]) is not None)
    if missing:
        memory = int(settings.memory * DATABASE_SHARE)
        with extracts.connected(sources, stages.folder, memory=memory, threads=settings.threads) as connection:
            tables.check_keys(connection, sources)
            for name in missing:

                def write(path: Path, bar: tqdm[Any], name: str = name) -> Written:
                    with watched(connection, bar):
                        return extracts.write(connection, name, sources, path), {}

                stages.run(name, keys[name], write, total=100, unit="%")
    earlier = [stages.kept(name, keys[name]) for name in extracts.NAMES[1:] if name not in missing]
    stages.done += [done for done in earlier if done]
    files.remove(stages.path("charted"))  # gigabytes that nothing reads any more
    return key_of([keys[name] for name in extracts.NAMES])


def _make_cohort(stages: Stages, reader: Extracts, out: Path, settings: Settings, key: str) -> dict[str, Any]:
    """Both passes and the final table; returns what was counted on the way."""
    options, fixes = settings.options, sorted(settings.options.fixes)
    key_with_ties = key_of(key, fixes, options.ties)

    def find(path: Path, bar: tqdm[Any]) -> Written:
        stays, lost = cohort.candidates(reader)
        save(stays, path)
        return len(stays), lost

    def windows(name: str, key: str, stays: pd.DataFrame, *, second: bool) -> Done:
        def write(path: Path, bar: tqdm[Any]) -> Written:
            table = cohort.window_table(reader, stays, options, second=second, report=bar.update)
            save(table, path)
            return len(table), {}

        return stages.run(name, key, write, total=len(stays), unit=" stays")

    def exclude(path: Path, bar: tqdm[Any]) -> Written:
        table = pd.read_parquet(first.path)
        columns, rare = imputation.frequent(table)
        table = imputation.impute(table, columns, ties=options.ties, progress=bar.update)
        kept, lost = exclusions.retained(scores.finish(table, second=False))
        save(kept, path)
        return len(kept), {"excluded": lost, "rare": rare}

    def finish(path: Path, bar: tqdm[Any]) -> Written:
        table = pd.read_parquet(second.path)
        table = imputation.impute(table, imputation.SECOND_PASS, ties=options.ties, progress=bar.update)
        table = final.final_table(scores.finish(table, second=True))
        save(table, path)
        return len(table), {"stays": int(table["traj"].nunique())}

    found = stages.run("candidates", key, find)
    candidates = pd.read_parquet(found.path)
    first = windows("first_windows", key_of(key, fixes), candidates, second=False)
    kept = stages.run("stays", key_with_ties, exclude, total=first.rows, unit=" rows")
    remaining = candidates["icustay_id"].isin(pd.read_parquet(kept.path)["icustayid"])
    second = windows("second_windows", key_with_ties, candidates[remaining].reset_index(drop=True), second=True)
    path = out / "cohort.parquet"
    if stages.kept("cohort", key_with_ties, path) is None:
        files.remove(out / "questions")  # so that none lie beside a cohort that they were not made from
        files.remove(out / CSV)
    (out / "questions").mkdir(exist_ok=True, mode=files.OWNER_ONLY_FOLDER)
    done = stages.run("cohort", key_with_ties, finish, path=path, total=second.rows, unit=" rows")
    if settings.csv and not (out / CSV).is_file():
        with files.replacing(out / CSV) as temporary:
            pd.read_parquet(path).to_csv(temporary, index=False)
    return {
        "before": found.notes,
        "candidates": found.rows,
        "excluded": kept.notes["excluded"],
        "rare": kept.notes["rare"],
        "stays": done.notes["stays"],
        "rows": done.rows,
    }


def _make_questions(
    stages: Stages, reader: Extracts, out: Path, settings: Settings, key: str, salt: str
) -> dict[str, Any]:
    """Both question files; returns what was counted on the way."""
    key = key_of(key, sorted(settings.options.fixes), settings.options.ties, salt)
    table = pd.read_parquet(out / "cohort.parquet")
    if settings.options.as_csv:
        table = final.reread(table)
    table, left_out = timeline.finite_stays(table)
    demog = reader.whole("demog")
    stays = demog["icustay_id"].tolist()
    patients = {stay: timeline.pseudonym(salt, who) for stay, who in zip(stays, demog["subject_id"], strict=True)}
    died = dict(zip(stays, (demog["morta_hosp"] == 1).tolist(), strict=True))

    def ahead(path: Path, bar: tqdm[Any]) -> Written:
        names, count = reference.question_names("measurement"), settings.measurement_stays
        made = measurement.questions(table, names, patients, count=count, salt=salt, progress=bar.update)
        write_questions(path, made, words=timeline.words(table, names))
        return len(made), {"patients": len({question.patient for question in made})}

    def outcome(path: Path, bar: tqdm[Any]) -> Written:
        names, count = reference.question_names("mortality"), settings.mortality_stays
        made = mortality.questions(table, names, patients, died, count=count, salt=salt, progress=bar.update)
        write_questions(path, made, words=timeline.words(table, names))
        return len(made), {"patients": len({question.patient for question in made})}

    counts: dict[str, Any] = {"not finite": left_out}
    for task, write, count in (
        ("measurement", ahead, settings.measurement_stays),
        ("mortality", outcome, settings.mortality_stays),
    ):
        path = out / "questions" / f"{task}.parquet"
        done = stages.run(task, key_of(key, count), write, path=path, unit=" stays")
        counts[task] = {"questions": done.rows, **done.notes}
    return counts


def _summary(out: Path, counts: Mapping[str, Any], stages: list[Done], notes: list[str]) -> str:
    before = dict(counts["before"])
    patients, total = before.pop("patients"), before.pop("ICU stays")
    lines = ["cohort           mimic3"]
    if patients <= tables.DEMO_PATIENTS:
        lines.append(f"source           {patients} patients only, as in the public demo: too few for results")
    lines += [f"note             {note}" for note in notes]
    lines.append(f"ICU stays        {total:,} of {patients:,} patients")
    lines += [f"  - {number:,} {name}" for name, number in before.items()]
    lines.append(f"first pass       {counts['candidates']:,} stays")
    lines += [f"  - {number:,} {name}" for name, number in counts["excluded"].items()]
    lines.append(f"cohort           {counts['stays']:,} stays, {counts['rows']:,} rows: {out / 'cohort.parquet'}")
    if counts["rare"]:
        lines.append(f"kept although 70 % or more are missing: {', '.join(counts['rare'])}")
    lines.append(f"not asked about  {counts['not finite']:,} stays with a missing or infinite value")
    for task in ("measurement", "mortality"):
        made, path = counts[task], out / "questions" / f"{task}.parquet"
        lines.append(f"{task:<16} {made['questions']:,} questions about {made['patients']:,} patients: {path}")
    lines += ["", f"{'stage':<16} {'rows':>12} {'seconds':>9}"]
    lines += [f"{done.name:<16} {done.rows:>12,} {done.seconds:>9.2f}" for done in stages]
    return "\n".join(lines)
