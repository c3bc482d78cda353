"""The item lists that the cohort is made with; their source and meaning: docs/mimic3.md."""

from __future__ import annotations

import functools
from importlib import resources

import pandas as pd


@functools.cache
def table(name: str) -> pd.DataFrame:
    """`data/NAME.tsv` with every cell as text, empty cells as ""."""
    path = resources.files(__package__) / "data" / f"{name}.tsv"
    with resources.as_file(path) as file:
        return pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)


def items() -> pd.DataFrame:
    """Items of each extract: extract, itemid, grp, and for fluids the tonicity factor (else missing)."""
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
    """The 65 columns of a charted time, in order."""
    return table("feature_columns")["feature"].tolist()


def hold_hours() -> dict[str, float]:
    """How long a measurement stands for the times after it, for each of the 65 columns."""
    columns = table("feature_columns")
    return dict(zip(columns["feature"], columns["hold_hours"].astype(float), strict=True))


def item_columns(source: str) -> pd.Series:
    """Position among the 65 columns for each item of "vitals" or "labs"."""
    listed = table("itemid_to_feature")
    listed = listed[listed["table"] == source]
    position = {name: index for index, name in enumerate(feature_names())}
    return pd.Series(listed["feature"].map(position).to_numpy(), index=listed["itemid"].astype("int64").to_numpy())


def question_names(task: str) -> dict[str, str]:
    """Display name of each column of the final table, for "measurement" or "mortality"."""
    names = table(f"question_names_{task}")
    return dict(zip(names["csv_column"], names["display_name"], strict=True))
