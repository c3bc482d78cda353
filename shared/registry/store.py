"""A prepared registry in memory and on disk: training and validation tables, statistics, and what reveals what.

The files are Parquet and JSON, never pickle.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow

from shared.errors import InputError
from shared.registry import features as feature_files
from shared.registry import relations as relation_files
from shared.registry import statistics as statistics_files
from shared.registry.features import Feature, value_text
from shared.registry.statistics import ValueStatistics
from shared.storage import files

PATIENT = "patient"  # name of the index
TIMELINE = "timeline.parquet"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Registry:
    """A prepared registry: everything that questions are made from.

    `train` and `valid` have one row for each patient (index: patient id, str) and one column for each feature, in the order of
    `features`: float64 for numbers, str or None for texts (and for numbers mixed with texts), datetime64 for datetimes.
    `statistics`, `leakage` and `relations` come from the training patients alone, unless the registry was made with
    `fit="all"`. `leakage` is the mutual information in nats (column = target, row = feature, NaN where it is not defined).
    `relations` lists dates, pairs and sums of features that reveal another one. `provenance` says how the registry was made:
    digests of the raw files, options, versions, salt. `timeline`, if the cohort has one, is what changes over time: many rows for
    each patient of both splits (index: patient id), in ascending time.
    """

    cohort: str
    features: list[Feature]
    train: pd.DataFrame
    valid: pd.DataFrame
    statistics: Mapping[str, ValueStatistics]
    leakage: pd.DataFrame
    provenance: Mapping[str, Any]
    relations: pd.DataFrame = dataclasses.field(default_factory=relation_files.nothing)
    timeline: pd.DataFrame | None = None

    def split(self, name: str) -> pd.DataFrame:
        """The table of the split `train` or `valid`. Raises InputError for any other name."""
        if name not in ("train", "valid"):
            raise InputError(f"split {name!r}: must be train or valid")
        return self.train if name == "train" else self.valid

    def feature(self, name: str) -> Feature:
        """The feature called `name`. Raises StopIteration if there is none."""
        return next(feature for feature in self.features if feature.name == name)

    def shown(self, split: str) -> dict[str, dict[str, str]]:
        """What can be shown of each patient of a split: the text of each visible value that is not missing.

        The result is keyed by patient id, then by feature name, in the order of `features`.
        """
        table = self.split(split)
        shown: dict[str, dict[str, str]] = {str(patient): {} for patient in table.index}
        for feature in (feature for feature in self.features if feature.visible):
            column = table[feature.name]
            for patient, value, present in zip(table.index, column.tolist(), column.notna().tolist(), strict=True):
                if present:
                    shown[str(patient)][feature.name] = value_text(feature, value)
        return shown


def save(registry: Registry, folder: Path) -> None:
    """Write a prepared registry to `folder`, readable by its owner only. An existing folder is replaced completely."""
    with files.replacing(folder) as temporary:
        temporary.mkdir(mode=files.OWNER_ONLY_FOLDER)
        registry.train.rename_axis(PATIENT).to_parquet(temporary / "train.parquet")
        registry.valid.rename_axis(PATIENT).to_parquet(temporary / "valid.parquet")
        statistics_files.to_table(registry.statistics).to_parquet(temporary / "statistics.parquet", index=False)
        registry.leakage.to_parquet(temporary / "leakage.parquet")
        registry.relations.to_parquet(temporary / "relations.parquet", index=False)
        if registry.timeline is not None:
            registry.timeline.rename_axis(PATIENT).to_parquet(temporary / TIMELINE)
        files.write_json(temporary / "features.json", feature_files.to_json(registry.features))
        files.write_json(temporary / "provenance.json", {**registry.provenance, "cohort": registry.cohort})
        for path in temporary.iterdir():
            os.chmod(path, files.OWNER_ONLY_FILE)


def load(folder: Path) -> Registry:
    """Read the prepared registry in `folder`. Raises InputError if one of its files is missing, damaged or of another kind."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no prepared registry there; make one with `creason prepare`")
    provenance = files.read_json(folder / "provenance.json")
    if not isinstance(provenance, dict) or "cohort" not in provenance:
        raise InputError(f"{folder / 'provenance.json'}: not a provenance record, it names no cohort")
    features = feature_files.from_json(files.read_json(folder / "features.json"), str(folder / "features.json"))
    tables = {name: _read_table(folder / f"{name}.parquet", features) for name in ("train", "valid")}
    statistics_path = folder / "statistics.parquet"
    return Registry(
        cohort=str(provenance["cohort"]),
        features=features,
        train=tables["train"],
        valid=tables["valid"],
        statistics=statistics_files.from_table(read_parquet(statistics_path), str(statistics_path)),
        leakage=read_parquet(folder / "leakage.parquet"),
        provenance=provenance,
        relations=_read_relations(folder / "relations.parquet"),
        timeline=read_parquet(folder / TIMELINE) if (folder / TIMELINE).is_file() else None,
    )


def read_parquet(path: Path) -> pd.DataFrame:
    """Read a Parquet file. Raises InputError if it is missing or damaged."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; prepare the registry again") from None
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a readable Parquet file ({reason}); prepare the registry again") from None


def _read_relations(path: Path) -> pd.DataFrame:
    table = read_parquet(path)
    if list(table.columns) != list(relation_files.COLUMNS):
        raise InputError(f"{path}: not a table of relations; prepare the registry again")
    return table


def _read_table(path: Path, features: list[Feature]) -> pd.DataFrame:
    table = read_parquet(path)
    names = [feature.name for feature in features]
    if list(table.columns) != names:
        raise InputError(f"{path}: its columns are not the features of features.json; prepare the registry again")
    table.index = table.index.astype(str)
    for feature in features:
        if feature.kind != "datetime" and table[feature.name].dtype != "float64":
            column = table[feature.name].astype(object)
            table[feature.name] = column.where(column.notna(), None)
    return table
