"""The lists of items that define the cohort. Their source and meaning: docs/mimic3.md."""

from __future__ import annotations

import functools
from importlib import resources

import pandas as pd


@functools.cache
def table(name: str) -> pd.DataFrame:
    """The table `data/NAME.tsv`. All cells are texts; an empty cell is ""."""
    path = resources.files(__package__) / "data" / f"{name}.tsv"
    with resources.as_file(path) as file:
        return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)


def items() -> pd.DataFrame:
    """The items of all extracts: extract, itemid, grp, and factor, the tonicity factor of a fluid (missing for others)."""
    listed = table("extract_items")
    factor = listed["group"].str.extract(r"^tonicity_factor=(.+)$")[0]
    return pd.DataFrame(
        {
            "extract": listed["extract"],
            "itemid": listed["itemid"].astype("int64"),
            "grp": listed["group"],
            "factor": pd.to_numeric(factor),
        }
    )


def feature_names() -> list[str]:
    """The names of the 65 columns of a charted time, in order."""
    return table("feature_columns")["feature"].tolist()


def hold_hours() -> dict[str, float]:
    """How long a measurement stays valid, in hours, for each of the 65 columns."""
    columns = table("feature_columns")
    return dict(zip(columns["feature"], columns["hold_hours"].astype(float), strict=True))


def item_columns(source: str) -> pd.Series:
    """The position among the 65 columns of each item of `source` ("vitals" or "labs"); the index are item ids."""
    listed = table("itemid_to_feature")
    listed = listed[listed["table"] == source]
    position = {name: index for index, name in enumerate(feature_names())}
    return pd.Series(listed["feature"].map(position).to_numpy(), index=listed["itemid"].astype("int64").to_numpy())


def question_names(task: str) -> dict[str, str]:
    """The display name of each column of the final table, for the task "measurement" or "mortality"."""
    names = table(f"question_names_{task}")
    return dict(zip(names["csv_column"], names["display_name"], strict=True))
