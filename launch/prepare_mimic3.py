"""The flags of `creason prepare` that are for MIMIC-III alone."""

from __future__ import annotations

from pathlib import Path

from absl import flags

from shared.cohorts.mimic3 import fixes, registry
from shared.cohorts.mimic3.neighbours import TIES
from shared.cohorts.mimic3.options import Mimic3Config
from shared.errors import InputError
from shared.registry import store
from shared.registry.store import TIMELINE

FLAGS = flags.FLAGS
COHORT = "mimic3"
FIELDS = ("fix", "ties", "stays", "memory_limit", "threads", "cache")  # of Mimic3Config


def define_flags() -> None:
    """Define the flags that only this cohort has."""
    default = Mimic3Config()
    flags.DEFINE_string("fix", default.fix, f"Corrections of the original: all, or names of {', '.join(fixes.FIXES)}.")
    flags.DEFINE_enum(
        "ties",
        default.ties,
        TIES,
        "Of equally near rows: stable takes the lowest; introsort takes the row that the original took, with its rounding.",
    )
    flags.DEFINE_integer("stays", default.stays, "ICU stays asked about at most, of both splits together.")
    flags.DEFINE_string("memory_limit", default.memory_limit, "Memory to stay below; more than that goes to disk.")
    flags.DEFINE_integer("threads", default.threads, "Threads that read the files; 0: one for each processor.")
    flags.DEFINE_string(
        "cache", default.cache, "Folder of intermediate files, which preparations may share; empty: in --out."
    )
    flags.DEFINE_bool(
        "csv", False, f"Also write the final table as the original's {registry.CSV}, beside the registry."
    )


def config() -> Mimic3Config:
    """What the flags say. Raises InputError for a value that cannot be."""
    return Mimic3Config(**{name: getattr(FLAGS, name) for name in FIELDS})


def check_csv(cohort: str) -> None:
    """Refuse --csv for another cohort. Raises InputError."""
    if FLAGS["csv"].present and cohort != COHORT:
        raise InputError(f"--csv: goes with --cohort={COHORT} only; leave it out")


def write_csv(folder: Path) -> None:
    """With --csv, the final table of the registry in `folder` as a CSV file beside its other files."""
    if FLAGS.csv:
        registry.write_csv(store.read_parquet(folder / TIMELINE), folder / registry.CSV)
