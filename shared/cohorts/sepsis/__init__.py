"""The sepsis registry: reads its raw workbooks (spec: registry, a.1).

It differs from the original on purpose: distributions and mutual information come from training patients only; three columns
on source control are not erased; values keep their types, so categories such as `None` remain; notes in the codebook are
skipped; misspelt column names are matched only if the match is certain, and are an error otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.cohorts.sepsis import reader
from shared.cohorts.sepsis.cleaning import ABSENT_MEANS_NO, CENTER, Column, clean
from shared.registry.build import RawColumn, RawRegistry, build
from shared.registry.store import Registry

REFERENCE_TIME = "tzdt"

# Categories with an order, from low to high. They count as numbers in the mutual information.
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


def digests(source: Path) -> dict[str, str]:
    """The checksum of each raw file in `source`, by file name. Raises InputError that lists every missing file."""
    return reader.digests(source)


def read(source: Path, *, cohort: str = "sepsis", paper: bool = False) -> RawRegistry:
    """Read the raw files in `source`. With `paper`, values are those of the original. Raises InputError that names the fault."""
    raw = reader.read(source)
    ids, columns, sites = clean(raw, paper=paper)
    for column in columns if paper else []:
        column.values = [None if value == "" else value for value in column.values]
    names = {column.name for column in columns}
    roles = {"site": CENTER, "time": REFERENCE_TIME, "sex": "sex", "age": "age"}
    return RawRegistry(
        cohort=cohort,
        ids=ids,
        columns=[*(_raw_column(column) for column in columns), _sites(sites)],
        ordered=ORDERED,
        reference=REFERENCE_TIME,
        roles={role: name for role, name in roles.items() if name in names or name == CENTER},
        digests=raw.digests,
        notes=[*raw.data.notes, *raw.metadata.notes],
    )


def prepare(source: Path, *, cohort: str = "sepsis", **options: Any) -> Registry:
    """Read and prepare the registry in `source`. `options` are the arguments of `registry.build.build`."""
    return build(read(source, cohort=cohort), **options)


def _sites(values: Sequence[Any]) -> RawColumn:
    coded = tuple(dict.fromkeys(str(value) for value in values if value is not None))
    texts = [None if value is None else str(value) for value in values]
    return RawColumn(CENTER, "Center", "", "", texts, coded, visible=False)


def _raw_column(column: Column) -> RawColumn:
    coded: tuple[str, ...] | None = None
    if column.coding is not None:
        shown = {"Yes": "yes", "No": "no"} | ({"None": "no"} if column.name in ABSENT_MEANS_NO else {})
        coded = tuple(dict.fromkeys(shown.get(label, label) for label in column.coding.values()))
    return RawColumn(column.name, column.display_name, column.section, column.unit, column.values, coded)
