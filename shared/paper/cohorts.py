"""Prepares the cohorts as the original did, for `--compat=paper`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shared.cohorts import hospitalized, sepsis, stroke
from shared.cohorts.sepsis import cleaning, reader
from shared.errors import InputError
from shared.paper import artefacts
from shared.paper.denoising import Material
from shared.paper.draws import SEED
from shared.paper.records import ID, Place, Style
from shared.paper.values import Choices
from shared.registry.build import RawRegistry
from shared.registry.features import Feature
from shared.registry.statistics import FEW_VALUES, free_text_name
from shared.registry.store import Registry

STYLES: dict[str, Style] = {"sepsis": "sections", "synthetic": "sections", "stroke": "lines", "hospitalized": "days"}
MIN_CLASS = 3  # patients that each value of a stroke category needs, for the category to be in the matrix
INDEX = "index"  # the original's table of the hospitalised cohort has a column of row numbers by mistake, which affects draws


@dataclasses.dataclass(frozen=True)
class PaperCohort:
    """A cohort as the original prepared it.

    `tables` are its tables after reading CSV, by split. `choices` are the distributions over all patients, by column. `flags` are
    the AKI flags by patient, for the hospitalised cohort only. `raw` is the same registry in the form of this project, for its
    features and their mutual information.
    """

    style: Style
    raw: RawRegistry
    tables: Mapping[str, pd.DataFrame]
    choices: Mapping[str, Choices]
    flags: Mapping[Any, list[float]]


def load(cohort: str, source: Path, *, valid_patients: int) -> PaperCohort:
    """Read a cohort as the original did. Raises InputError for an unknown cohort, and if there are too few patients."""
    if cohort not in STYLES:
        raise InputError(f"cohort = {cohort!r}: compat = 'paper' knows {', '.join(STYLES)}")
    if cohort == "hospitalized":
        return _hospitalized(source, valid_patients)
    if cohort == "stroke":
        ids, columns, _ = stroke.read_columns(source, paper=True)
        values = {column.name: artefacts.blanks(column.values) for column in columns}
        skipped = {column.name for column in columns if column.dated or column.free_text}
        return _cohort(
            STYLES[cohort], stroke.read(source, paper=True), ids, values, skipped.__contains__, valid_patients
        )
    ids, cleaned, _ = cleaning.clean(reader.read(source), paper=True)
    values = {column.name: column.values for column in cleaned}
    raw = sepsis.read(source, cohort=cohort, paper=True)
    return _cohort(STYLES[cohort], raw, ids, values, free_text_name, valid_patients)


def _cohort(
    style: Style,
    raw: RawRegistry,
    ids: list[str],
    values: Mapping[str, list[Any]],
    skipped: Callable[[str], bool],
    valid_patients: int,
) -> PaperCohort:
    _enough(len(ids), valid_patients)
    train, valid = artefacts.tables(ids, values, valid_patients=valid_patients)
    choices = {}
    for name, column in values.items():
        series = artefacts.typed(column)
        if skipped(name) and artefacts.text_count(series) > FEW_VALUES:
            continue
        distribution = artefacts.distribution(series)
        if distribution is not None:
            choices[name] = distribution
    return PaperCohort(style, raw, {"train": train, "valid": valid}, choices, {})


def _hospitalized(source: Path, valid_patients: int) -> PaperCohort:
    raw = hospitalized.read(source)  # read first, since it raises InputError for cells that are not numbers
    frame, flags = hospitalized.paper_frame(source)
    _enough(len(frame), valid_patients)
    choices = {name: artefacts.aki_distribution(frame[name]) for name in frame.columns}
    ids = frame[ID].tolist()
    numbered = frame.reset_index(drop=True).rename_axis(INDEX).reset_index()
    order = np.random.RandomState(SEED).permutation(len(numbered))
    parts = {"valid": order[:valid_patients], "train": order[valid_patients:]}
    return PaperCohort(
        style=STYLES["hospitalized"],
        raw=raw,
        tables={name: artefacts.through_csv(numbered.iloc[rows]) for name, rows in parts.items()},
        choices={str(name): distribution for name, distribution in choices.items()},
        flags=dict(zip(ids, flags.to_numpy(dtype=np.float64).tolist(), strict=True)),
    )


def _enough(patients: int, valid_patients: int) -> None:
    if patients <= valid_patients:
        raise InputError(f"{patients} patients are too few for valid_patients = {valid_patients}: "
                         f"lower it to at most {max(patients - 1, 0)}")  # fmt: skip


def material(
    cohort: PaperCohort, registry: Registry, *, mi_cutoff: float, num_choices: int, difficulty: float
) -> Material:
    """What the original made questions from, but with the mutual information that this project computed."""
    left_out = {feature.name for feature in registry.features if not _in_matrix(cohort.style, feature, registry)}
    names = [name for name in registry.leakage.columns if name not in left_out]
    matrix = registry.leakage.loc[names, names]
    return Material(
        style=cohort.style,
        places={
            feature.name: Place(feature.display_name, feature.section)
            for feature in registry.features
            if feature.visible
        },
        choices=cohort.choices,
        hidden={name: frozenset(matrix.index[matrix[name] > mi_cutoff]) for name in names},
        num_choices=num_choices,
        difficulty=difficulty,
    )


def _in_matrix(style: Style, feature: Feature, registry: Registry) -> bool:
    """Whether the original had this column in its matrix of mutual information.

    Free texts, and numbers mixed with texts, are not in it. In the stroke registry, dates are not in it, nor categories with a
    value that fewer than `MIN_CLASS` patients have.
    """
    if feature.name not in registry.leakage.columns or registry.leakage[feature.name].isna().all():
        return False
    column = pd.concat([registry.train[feature.name], registry.valid[feature.name]])
    if style == "lines" and feature.kind == "datetime":
        return False
    if feature.kind == "number":
        return column.dtype == "float64"
    return style != "lines" or feature.kind != "category" or column.value_counts().min() >= MIN_CLASS
