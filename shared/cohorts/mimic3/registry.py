"""MIMIC-III's CSV files to the sepsis cohort's registry: the patients, and the four-hour windows of their stays (spec: mimic3).

Intermediate files stay in a cache, each with a digest of what it was made from: what has not changed is not made again, so a
reading that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
from tqdm import tqdm

from shared.cohorts.mimic3 import cohort as cohorts
from shared.cohorts.mimic3 import exclusions, extracts, final, fixes, imputation, reference, scores, tables
from shared.cohorts.mimic3.cohort import Options
from shared.cohorts.mimic3.options import GIGABYTE, RULES, Mimic3Config
from shared.cohorts.mimic3.reading import Extracts
from shared.cohorts.mimic3.stages import Done, Stages, Written, key_of, save, watched
from shared.cohorts.mimic3.tables import Table
from shared.errors import InputError
from shared.registry.build import RawColumn, RawRegistry
from shared.storage import files

CACHE = "cache"
CSV = "sepsis_final_data_RAW_withTimes.csv"
DIED = "m:died_in_hosp"  # the one column of the timeline that the original's final table does not have
LISTS = ("extract_items", "antibiotic_gsn", "elixhauser_icd9")
DATABASE_SHARE = 0.5  # of the memory limit, while extracts are made
READING_SHARE = 0.2  # while they are read back
STAYS_PER_GIGABYTE = 150  # worked on at once, so that their charted times take a fraction of the limit
DAYS_A_YEAR = 365.25
DEFAULTS = Mimic3Config()


def digests(source: Path, *, cache: Path | None = None, progress: bool = False) -> dict[str, str]:
    """Digest of each raw file, by its name; `cache` keeps them with size and time of change. Raises InputError naming what is
    missing."""
    found = tables.find(source)
    if cache is None:
        return tables.digests(found, None, progress=progress)
    cache.mkdir(parents=True, exist_ok=True, mode=files.OWNER_ONLY_FOLDER)
    return tables.digests(found, cache / "digests.json", progress=progress)


def read(
    source: Path,
    *,
    cohort: str = "mimic3",
    options: Mimic3Config = DEFAULTS,
    cache: Path = Path(CACHE),
    progress: bool = False,
    make_stages: type[Stages] = Stages,
) -> RawRegistry:
    """Read the raw files in `source`. Each patient is a row; the final table is the registry's timeline.

    `make_stages` lets a benchmark watch the stages. Raises InputError naming the file, the line and the column that is wrong.
    """
    sources = tables.find(source)
    for path in cache.glob(".*.partial"):  # of a reading that was killed
        files.remove(path)
    stages = make_stages(cache, progress=progress)
    known = digests(source, cache=cache, progress=progress)
    rules = Options(ties=options.ties, fixes=fixes.parse(options.fix))
    key = _make_extracts(stages, sources, known, options)
    memory = int(options.memory_bytes * READING_SHARE)
    with extracts.connected({}, cache, memory=memory, threads=options.processors) as connection:
        batch = max(50, options.memory_bytes * STAYS_PER_GIGABYTE // GIGABYTE)
        reader = Extracts(stages.folder, connection, batch=batch, as_csv=rules.as_csv)
        table, counts = _make_cohort(stages, reader, rules, key)
        demog = reader.whole("demog")
    if table.empty:
        taken = {**counts["before"], **counts["excluded"]}
        total, _ = taken.pop("ICU stays"), taken.pop("patients")
        reasons = "; ".join(f"{number:,} {name}" for name, number in taken.items() if number)
        raise InputError(f"{source}: of its {total:,} ICU stays none is left ({reasons})")
    counts["not finite"] = final.finite_stays(table)[1]
    timeline = _timeline(table, demog)
    patients = timeline.groupby(level=0, sort=False)[["o:gender", "o:age"]].first()
    return RawRegistry(
        cohort=cohort,
        ids=patients.index.tolist(),
        columns=[
            RawColumn("sex", "Gender", "", "", np.where(patients["o:gender"] != 0, "Female", "Male").tolist(),
                      kind="category", visible=False),
            RawColumn("age", "Age", "", "years", (patients["o:age"] / DAYS_A_YEAR).to_numpy(), visible=False),
        ],
        roles={"sex": "sex", "age": "age"},
        digests=known,
        notes=[*(note for found in sources.values() for note in found.notes), *_counted(counts)],
        timeline=timeline,
        reading={
            "counts": counts,
            "stages": {done.name: {"rows": done.rows, "seconds": done.seconds} for done in stages.done},
            "versions": {"duckdb": duckdb.__version__},
        },
    )  # fmt: skip


def write_csv(timeline: pd.DataFrame, path: Path) -> None:
    """Write the final table as the original's CSV file, readable by its owner only; replaces `path` atomically."""
    with files.replacing(path) as temporary:
        timeline[list(final.COLUMNS)].to_csv(temporary, index=False)


def _timeline(table: pd.DataFrame, demog: pd.DataFrame) -> pd.DataFrame:
    """The final table with the patient of each row as its index, and whether they died in the hospital in that stay."""
    stays = demog.set_index("icustay_id")
    which = table["m:icustayid"].astype("int64")
    patients = which.map(stays["subject_id"]).astype("int64").astype(str)
    died = which.map(stays["morta_hosp"] == 1).astype(float)
    return table.assign(**{DIED: died}).set_index(pd.Index(patients, dtype=object, name="patient"))


def _make_extracts(
    stages: Stages, sources: Mapping[str, Table], known: Mapping[str, str], options: Mimic3Config
) -> str:
    """Makes the extracts that are not there yet; returns a key of all of them."""
    lists = [reference.table(name).to_csv() for name in LISTS]

    def key(name: str) -> str:
        read = {table: known[sources[table].path.name] for table in extracts.SOURCES[name]}
        return key_of(RULES, lists, extracts.query("charted"), extracts.query(name), read)

    keys = {name: key(name) for name in extracts.NAMES}
    missing = extracts.missing(lambda name: stages.kept(name, keys[name]) is not None)
    if missing:
        memory = int(options.memory_bytes * DATABASE_SHARE)
        with extracts.connected(sources, stages.folder, memory=memory, threads=options.processors) as connection:
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


def _make_cohort(stages: Stages, reader: Extracts, options: Options, key: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Both passes; returns the final table and what was counted on the way."""
    corrections = sorted(options.fixes)
    key_with_ties = key_of(key, corrections, options.ties)

    def find(path: Path, bar: tqdm[Any]) -> Written:
        stays, lost = cohorts.candidates(reader)
        save(stays, path)
        return len(stays), lost

    def windows(name: str, key: str, stays: pd.DataFrame, *, second: bool) -> Done:
        def write(path: Path, bar: tqdm[Any]) -> Written:
            table = cohorts.window_table(reader, stays, options, second=second, report=bar.update)
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
    first = windows("first_windows", key_of(key, corrections), candidates, second=False)
    kept = stages.run("stays", key_with_ties, exclude, total=first.rows, unit=" rows")
    remaining = candidates["icustay_id"].isin(pd.read_parquet(kept.path)["icustayid"])
    second = windows("second_windows", key_with_ties, candidates[remaining].reset_index(drop=True), second=True)
    done = stages.run("cohort", key_with_ties, finish, total=second.rows, unit=" rows")
    return pd.read_parquet(done.path), {
        "before": found.notes,
        "candidates": found.rows,
        "excluded": kept.notes["excluded"],
        "rare": kept.notes["rare"],
        "stays": done.notes["stays"],
        "rows": done.rows,
    }


def _counted(counts: Mapping[str, Any]) -> list[str]:
    """How many stays each rule took, a line each."""
    before = dict(counts["before"])
    patients, total = before.pop("patients"), before.pop("ICU stays")
    lines = [f"{total:,} ICU stays of {patients:,} patients"]
    if patients <= tables.DEMO_PATIENTS:
        lines.insert(0, f"{patients} patients only, as in the public demo: too few for results")
    lines += [f"left out, {name}: {number:,}" for name, number in before.items()]
    lines.append(f"first pass: {counts['candidates']:,} stays")
    lines += [f"left out, {name}: {number:,}" for name, number in counts["excluded"].items()]
    lines.append(f"final table: {counts['stays']:,} stays, {counts['rows']:,} rows")
    if counts.get("not finite"):
        lines.append(f"not asked about, with a missing or infinite value: {counts['not finite']:,}")
    if counts["rare"]:
        lines.append(f"kept although 70 % or more are missing: {', '.join(counts['rare'])}")
    return lines
