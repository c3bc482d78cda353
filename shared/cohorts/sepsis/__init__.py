"""The sepsis registry: raw workbooks to a prepared registry (spec: registry, a.1).

What differs from the original on purpose: distributions and mutual information come from training patients only;
three source-control columns are not erased; values keep their types, so categories such as `None` survive; the
codebook parser skips notes; misspelt column names are paired only where that is certain, and are an error otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from shared.cohorts.sepsis.cleaning import ABSENT_MEANS_NO, Column, clean
from shared.cohorts.sepsis.reader import read
from shared.registry.build import RawColumn, build
from shared.registry.store import Registry

REFERENCE_TIME = "tzdt"

# Categories with an order count as numbers in the mutual information.
ORDERED = {
    "age_charlson": ("<50", "50-59", "60-69", "70-79", "≥80"),
    "hoslengthbficu": ("<14", "≥ 14 < 28", "≥ 28"),
    "hspt_bd": ("<500", "501~1000", "1001~1500", ">1500"),
    "hos_rrs_grade": ("Not applicable", "Grade 1", "Grade 2", "Grade 3"),
    "hos_rrs_time": ("Not applicable", "<8 hours/day", "8~16 hours/day", "16~24 hours/day", "24 hours/day"),
    "ecog_initial": ("0", "1", "2", "3", "4"),
    "ecog_final": ("0", "1", "2", "3", "4", "5"),
    "cfscore": ("1", "2", "3", "4", "5", "6", "7", "8", "9"),
    "clinfrailtyscore": ("1", "2", "3", "4", "5", "6", "7", "8", "9"),
}


def prepare(
    source: Path,
    *,
    valid_patients: int,
    seed: int,
    salt: str,
    mi_cutoff: float = 0.5,
    cohort: str = "sepsis",
    progress: Callable[[str], None] | None = None,
) -> Registry:
    """Read the raw files in `source` and return the prepared registry, `valid_patients` of it held out.

    `progress` is called with a few words at each stage. Raises InputError naming the file or the column that is wrong.
    """
    if progress:
        progress("reading the raw files")
    raw = read(source)
    ids, columns = clean(raw)
    return build(
        cohort,
        ids,
        [_raw_column(column) for column in columns],
        valid_patients=valid_patients,
        seed=seed,
        mi_cutoff=mi_cutoff,
        ordered=ORDERED,
        reference=REFERENCE_TIME,
        provenance={"source": raw.digests, "salt": salt},
        progress=progress,
    )


def _raw_column(column: Column) -> RawColumn:
    coded: tuple[str, ...] | None = None
    if column.coding is not None:
        shown = {"Yes": "yes", "No": "no"} | ({"None": "no"} if column.name in ABSENT_MEANS_NO else {})
        coded = tuple(dict.fromkeys(shown.get(label, label) for label in column.coding.values()))
    return RawColumn(column.name, column.display_name, column.section, column.unit, column.values, coded)
