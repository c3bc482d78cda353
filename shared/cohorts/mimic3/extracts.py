"""The extracts from the CSV files: each is made by one SQL query, and written as one Parquet file."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib import resources
from pathlib import Path

import duckdb

from shared.cohorts.mimic3 import reference, tables
from shared.cohorts.mimic3.tables import Table
from shared.storage import files

# CHARTEVENTS is very large, so it is read once, into `charted`. Four extracts are made from that.
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
KNOWN_TEXTS = (  # all texts that the queries `ce` and `mechvent` compare with
    "", "None", "Ventilator", "Cannula", "Nasal Cannula", "Face Tent", "Aerosol-Cool", "Trach Mask", "Hi Flow Neb",
    "Non-Rebreather", "Venti Mask", "Medium Conc Mask", "Other/Remarks", "Extubated", "Self Extubation",
)  # fmt: skip
# Converts seconds to days as Postgres does: a decimal number with 12 places (16 below 900 million seconds), then a double.
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
    """A DuckDB connection with a view for each table, and the item lists as tables.

    If a query needs more than `memory` bytes, DuckDB uses files below `folder`, which are removed at the end.
    """
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
            # Postgres makes a decimal from the first 15 digits of a double, and rounds halves away from zero.
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
    """The SQL query of an extract, from `sql/NAME.sql`."""
    return (resources.files(__package__) / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def write(connection: duckdb.DuckDBPyConnection, name: str, sources: Mapping[str, Table], path: Path) -> int:
    """Write an extract to `path` as Parquet, in the order of its query. Returns the number of rows.

    The extracts from CHARTEVENTS read `charted.parquet` in the folder of `path`. Raises InputError if a file, a row or a cell
    cannot be read.
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
    """The extracts that must still be written, in order. `charted` is among them only if another extract needs it."""
    not_done = [name for name in NAMES if name != "charted" and not done(name)]
    if set(not_done) & set(FROM_CHARTED) and not done("charted"):
        not_done.insert(0, "charted")
    return not_done
