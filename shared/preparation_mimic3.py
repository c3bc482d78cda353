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

from shared import files
from shared.cohorts.mimic3 import cohort, exclusions, extracts, final, imputation, reference, scores, tables
from shared.cohorts.mimic3.cohort import Options
from shared.cohorts.mimic3.reading import Extracts
from shared.cohorts.mimic3.stages import Done, Stages, key_of, save, watched
from shared.cohorts.mimic3.tables import Table
from shared.errors import InputError
from shared.questions import Question, write_questions
from shared.registry.build import versions
from shared.tasks import measurement, mortality, timeline

RULES = 1  # raised whenever the same files and options would make something else
CACHE = "cache"
CSV = "sepsis_final_data_RAW_withTimes.csv"
GIGABYTE = 10**9
LEAST_MEMORY = GIGABYTE
DATABASE_SHARE = 0.5  # of the memory limit, while extracts are made; a quarter while they are read back
STAYS_PER_GIGABYTE = 150  # worked on at once, so that their charted times take a fraction of the limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What to make. `salt`: goes into pseudonyms; drawn and kept if None. Memory in bytes."""

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


def prepare(source: Path, out: Path, settings: Settings, *, progress: bool) -> str:
    """Write `out/cohort.parquet` and `out/questions/{measurement,mortality}.parquet`; returns a summary in words.

    Intermediate files stay in `out/cache`, each with the digests of what it was made from: what has not changed is not
    made again, so a run that was stopped goes on. Raises InputError naming the file, the line and the column that is
    wrong.
    """
    sources = tables.find(source)
    stages = Stages(out / CACHE, progress=progress)
    salt = settings.salt or _kept_salt(out)
    digests = tables.digests(sources, out / CACHE / "digests.json", progress=progress)
    extract_keys = _make_extracts(stages, sources, digests, settings)
    with extracts.connected({}, out / CACHE, memory=settings.memory // 4, threads=settings.threads) as connection:
        steps = _Steps(stages, connection, settings, key_of(RULES, extract_keys), out, salt)
        counts = steps.cohort() | steps.questions()
    record = {
        "rules": RULES,
        "source": digests,
        "options": {"ties": settings.options.ties, "fixes": sorted(settings.options.fixes),
                    "measurement_stays": settings.measurement_stays, "mortality_stays": settings.mortality_stays},
        "salt": salt,
        "counts": counts,
        "stages": {done.name: {"rows": done.rows, "seconds": done.seconds} for done in stages.done},
        "versions": versions() | {"duckdb": duckdb.__version__},
    }  # fmt: skip
    files.write_json(out / "provenance.json", record)
    return _summary(out, counts, stages.done)


def _kept_salt(out: Path) -> str:
    # Noted before any question is made, so that a run stopped in between goes on with the same pseudonyms.
    note = out / CACHE / "salt.json"
    if not note.is_file():
        files.write_json(note, secrets.token_hex(16))
    return str(files.read_json(note))


def _make_extracts(
    stages: Stages, sources: Mapping[str, Table], digests: Mapping[str, str], settings: Settings
) -> dict[str, str]:
    """Makes the extracts that are not there yet; returns the key of each."""
    lists = key_of([reference.table(name).to_csv() for name in ("extract_items", "antibiotic_gsn", "elixhauser_icd9")])

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

                def write(path: Path, bar: tqdm[Any], name: str = name) -> tuple[int, dict[str, Any]]:
                    with watched(connection, bar):
                        return extracts.write(connection, name, sources, path), {}

                stages.run(name, keys[name], write, total=100, unit="%")
    files.remove(stages.path("charted"))  # gigabytes that nothing reads any more
    fresh = {done.name for done in stages.done}
    for name in extracts.NAMES[1:]:
        found = stages.kept(name, keys[name])
        if found and name not in fresh:
            stages.done.append(found)
    del keys["charted"]
    return keys


class _Steps:
    """The stages after the extracts, each from the files of those before it."""

    def __init__(
        self,
        stages: Stages,
        connection: duckdb.DuckDBPyConnection,
        settings: Settings,
        key: str,
        out: Path,
        salt: str,
    ) -> None:
        self._stages = stages
        self._settings = settings
        self._options = settings.options
        self._out = out
        self._salt = salt
        fixes = sorted(self._options.fixes)
        self._windows_key = key_of(key, fixes)
        self._key = key_of(key, fixes, self._options.ties)
        self._extracts_key = key
        batch = max(50, settings.memory * STAYS_PER_GIGABYTE // GIGABYTE)
        self._extracts = Extracts(stages.folder, connection, batch=batch)

    def cohort(self) -> dict[str, Any]:
        """Both passes and the final table; returns what was counted on the way."""
        found = self._stages.run("candidates", self._extracts_key, self._candidates)
        candidates = pd.read_parquet(found.path)
        first = self._windows("first_windows", self._windows_key, candidates, second=False)
        kept = self._stages.run("stays", self._key, self._exclude(first), total=first.rows, unit=" rows")
        stays = candidates[candidates["icustay_id"].isin(pd.read_parquet(kept.path)["icustayid"])]
        stays = stays.reset_index(drop=True)
        second = self._windows("second_windows", self._key, stays, second=True)
        path = self._out / "cohort.parquet"
        if self._stages.kept("cohort", self._key, path) is None:
            files.remove(self._out / "questions")  # so that none lie beside a cohort that they were not made from
            files.remove(self._out / CSV)
        done = self._stages.run("cohort", self._key, self._finish(second), path=path, total=second.rows, unit=" rows")
        if self._settings.csv and not (self._out / CSV).is_file():
            with files.replacing(self._out / CSV) as temporary:
                pd.read_parquet(path).to_csv(temporary, index=False)
        return {
            "lost before the first pass": found.notes,
            "candidates": found.rows,
            "excluded": kept.notes["excluded"],
            "kept although rare": kept.notes["rare"],
            "stays": done.notes["stays"],
            "rows": done.rows,
        }

    def _candidates(self, path: Path, bar: tqdm[Any]) -> tuple[int, dict[str, Any]]:
        stays, lost = cohort.candidates(self._extracts)
        save(stays, path)
        return len(stays), lost

    def _windows(self, name: str, key: str, stays: pd.DataFrame, *, second: bool) -> Done:
        def write(path: Path, bar: tqdm[Any]) -> tuple[int, dict[str, Any]]:
            table = cohort.window_table(self._extracts, stays, self._options, second=second, report=bar.update)
            save(table, path)
            return len(table), {}

        return self._stages.run(name, key, write, total=len(stays), unit=" stays")

    def _exclude(self, first: Done):
        def write(path: Path, bar: tqdm[Any]) -> tuple[int, dict[str, Any]]:
            windows = pd.read_parquet(first.path)
            columns, rare = imputation.frequent(windows)
            windows = imputation.impute(windows, columns, ties=self._options.ties, progress=bar.update)
            kept, lost = exclusions.retained(scores.finish(windows, second=False))
            save(kept, path)
            return len(kept), {"excluded": lost, "rare": rare}

        return write

    def _finish(self, second: Done):
        def write(path: Path, bar: tqdm[Any]) -> tuple[int, dict[str, Any]]:
            windows = pd.read_parquet(second.path)
            windows = imputation.impute(
                windows, imputation.SECOND_PASS, ties=self._options.ties, progress=bar.update
            )
            table = final.final_table(scores.finish(windows, second=True))
            save(table, path)
            return len(table), {"stays": int(table["traj"].nunique())}

        return write

    def questions(self) -> dict[str, Any]:
        """Both question files; returns what was counted on the way."""
        table = pd.read_parquet(self._out / "cohort.parquet")
        if self._options.ties == "introsort":
            table = final.reread(table)
        table, left_out = timeline.finite_stays(table)
        demog = self._extracts.whole("demog").set_index("icustay_id")
        patients = {stay: timeline.pseudonym(self._salt, subject) for stay, subject in demog["subject_id"].items()}
        died = (demog["morta_hosp"].fillna(0) == 1).to_dict()
        asked = {
            "measurement": (self._settings.measurement_stays, lambda names, count, bar: measurement.questions(
                table, names, patients, count=count, salt=self._salt, progress=bar.update)),
            "mortality": (self._settings.mortality_stays, lambda names, count, bar: mortality.questions(
                table, names, patients, died, count=count, salt=self._salt, progress=bar.update)),
        }  # fmt: skip
        counts: dict[str, Any] = {"stays with a missing or infinite value, not asked about": left_out}
        for task, (count, make) in asked.items():

            def write(path: Path, bar: tqdm[Any], task: str = task, count: int = count, make=make):
                made: list[Question] = make(reference.question_names(task), count, bar)
                write_questions(path, made)
                return len(made), {"patients": len({question.patient for question in made})}

            path = self._out / "questions" / f"{task}.parquet"
            key = key_of(self._key, count, self._salt)
            done = self._stages.run(task, key, write, path=path, unit=" stays")
            counts[f"{task} questions"] = {"questions": done.rows, **done.notes}
        return counts


def _summary(out: Path, counts: Mapping[str, Any], stages: list[Done]) -> str:
    before = counts["lost before the first pass"]
    total = before["ICU stays"]
    lines = ["cohort           mimic3"]
    if before["patients"] <= tables.DEMO_PATIENTS:
        lines.append(f"source           {before['patients']} patients: the public demo, or as small; too few for results")
    lines += [f"ICU stays        {total:,}"]
    lines += [f"  - {number:,} {name}" for name, number in before.items() if name not in ("ICU stays", "patients")]
    lines += [f"first pass       {counts['candidates']:,} stays"]
    lines += [f"  - {number:,} {name}" for name, number in counts["excluded"].items()]
    lines += [f"cohort           {counts['stays']:,} stays, {counts['rows']:,} rows: {out / 'cohort.parquet'}"]
    if counts["kept although rare"]:
        lines.append(f"kept although at least 70 % are missing: {', '.join(counts['kept although rare'])}")
    lines += [f"{name}: {value}" for name, value in counts.items() if name.startswith("stays with")]
    for task in ("measurement", "mortality"):
        made = counts[f"{task} questions"]
        path = out / "questions" / f"{task}.parquet"
        lines.append(f"{task + ' questions':<22} {made['questions']:,} about {made['patients']:,} patients: {path}")
    lines += ["", f"{'stage':<16} {'rows':>12} {'seconds':>9}"]
    lines += [f"{done.name:<16} {done.rows:>12,} {done.seconds:>9.2f}" for done in stages]
    return "\n".join(lines)
