"""The fifteen extracts: each is one SQL file over the CSV files, and one Parquet file in the end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path

import duckdb

from shared.cohorts.mimic3 import reference, tables
from shared.cohorts.mimic3.tables import Table
from shared.storage import files

# CHARTEVENTS is read once, into `charted`; the four extracts made from it read that.
NAMES = (
    "charted", "culture", "microbio", "abx", "demog", "ce", "labs_ce", "labs_le", "uo", "preadm_uo", "fluid_mv",
    "fluid_cv", "preadm_fluid", "vaso_mv", "vaso_cv", "mechvent",
)  # fmt: skip
FROM_CHARTED = ("culture", "ce", "labs_ce", "mechvent")
SOURCES = {
    "charted": ("chartevents",),
    "microbio": ("microbiologyevents",),
    "abx": ("prescriptions",),
    "demog": ("icustays", "admissions", "patients", "diagnoses_icd"),
    "labs_le": ("labevents", "icustays"),
    "uo": ("outputevents",),
    "preadm_uo": ("outputevents", "icustays"),
    "fluid_mv": ("inputevents_mv",),
    "fluid_cv": ("inputevents_cv",),
    "preadm_fluid": ("inputevents_mv", "inputevents_cv", "icustays", "d_items"),
    "vaso_mv": ("inputevents_mv",),
    "vaso_cv": ("inputevents_cv",),
} | dict.fromkeys(FROM_CHARTED, ("chartevents",))
KNOWN_TEXTS = (  # every text that a rule of `ce` or `mechvent` names
    "", "None", "Ventilator", "Cannula", "Nasal Cannula", "Face Tent", "Aerosol-Cool", "Trach Mask", "Hi Flow Neb",
    "Non-Rebreather", "Venti Mask", "Medium Conc Mask", "Other/Remarks", "Extubated", "Self Extubation",
)  # fmt: skip
# Seconds in days as Postgres divides them: a decimal with 12 places, 16 below 900 million seconds, and then a double.
POSTGRES_DAYS = (
    "CREATE MACRO places(s) AS CASE WHEN s < 900000000 THEN 16 ELSE 12 END",
    "CREATE MACRO one(s) AS CAST(CASE WHEN s < 900000000 THEN 10000000000000000 ELSE 1000000000000 END AS HUGEINT)",
    "CREATE MACRO scaled(s) AS (CAST(s AS HUGEINT) * one(s) * 2 // 86400 + 1) // 2",
    "CREATE MACRO days(s) AS CASE WHEN s < 0 THEN s / 86400 ELSE CAST(scaled(s) || 'e-' || places(s) AS DOUBLE) END",
)


@contextlib.contextmanager
def connected(
    sources: Mapping[str, Table], folder: Path, *, memory: int, threads: int
) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB with a view for each table and the item lists, spilling into `folder` beyond `memory` bytes."""
    spill = folder / "spill"
    spill.mkdir(parents=True, exist_ok=True, mode=files.OWNER_ONLY_FOLDER)
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory // 2**20}MiB",
        "threads": threads,
        "temp_directory": str(spill),
    }
    connection = duckdb.connect(":memory:", config=settings)
    try:
        connection.execute("CREATE MACRO seconds(x) AS CAST(epoch(x) AS BIGINT)")
        connection.execute(
            # Postgres makes a decimal of a double's first 15 digits, and rounds it half away from zero.
            "CREATE MACRO decimal3(x) AS CAST(round(CAST(printf('%.15g', x) AS DECIMAL(38, 17)), 3) AS DOUBLE)"
        )
        for macro in POSTGRES_DAYS:
            connection.execute(macro)
        tables.make_views(connection, sources)
        lists = {
            "items": reference.items(),
            "antibiotic_gsn": reference.table("antibiotic_gsn"),
            "elixhauser": reference.table("elixhauser_icd9"),
        }
        for name, listed in lists.items():
            connection.register("listed", listed)
            connection.execute(f"CREATE TABLE {name} AS FROM listed")
            connection.unregister("listed")
        connection.execute("CREATE TABLE known_texts AS SELECT unnest(?) AS text", [list(KNOWN_TEXTS)])
        yield connection
    finally:
        connection.close()
        files.remove(spill)


def query(name: str) -> str:
    """The SQL of an extract, from `sql/NAME.sql`."""
    return (resources.files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def write(connection: duckdb.DuckDBPyConnection, name: str, sources: Mapping[str, Table], path: Path) -> int:
    """Write an extract to `path` (Parquet, sorted as its query says); returns its rows.

    The extracts made from CHARTEVENTS read `charted.parquet` beside `path`. Raises InputError for a cell, a row or a
    file that cannot be read.
    """
    if name in FROM_CHARTED:
        connection.execute(f"CREATE OR REPLACE VIEW charted AS FROM '{_sql(path.with_name('charted.parquet'))}'")
    ordered = "false" if name == "charted" else "true"
    options = f"FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880, PRESERVE_ORDER {ordered}"
    with files.replacing(path) as temporary, tables.reading(sources):
        written = connection.execute(f"COPY ({query(name)}) TO '{_sql(temporary)}' ({options})").fetchall()
    return int(written[0][0])


def _sql(path: Path) -> str:
    return str(path).replace("'", "''")


def missing(done: Callable[[str], bool]) -> list[str]:
    """Extracts that are still to be written, in order; `charted` only where one that reads it is among them."""
    left = [name for name in NAMES if name != "charted" and not done(name)]
    if set(left) & set(FROM_CHARTED) and not done("charted"):
        left.insert(0, "charted")
    return left
