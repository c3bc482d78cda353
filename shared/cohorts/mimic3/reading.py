"""Reads the extracts for one batch of stays at a time, so that the memory needed does not depend on the number of stays."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pandas as pd

from shared.cohorts.mimic3 import csv_numbers
from shared.cohorts.mimic3.charting import AFTER, BEFORE


class Extracts:
    """The extracts, as Parquet files in `folder`. `batch` is the number of stays in a batch.

    With `as_csv`, numbers have the rounding errors of the original, which read its extracts from CSV files.
    """

    def __init__(
        self, folder: Path, connection: duckdb.DuckDBPyConnection, *, batch: int, as_csv: bool = False
    ) -> None:
        self._folder = folder
        self._connection = connection
        self._batch = batch
        self._as_csv = as_csv

    def whole(self, name: str) -> pd.DataFrame:
        """A whole extract, in the order of its file."""
        return self._read(pd.read_parquet(self._folder / f"{name}.parquet"))

    def batches(self, stays: pd.DataFrame) -> Iterator[pd.DataFrame]:
        """`stays` (in ascending order of icustay_id) in batches, each with an index from 0; one empty batch if there are none."""
        for start in range(0, max(1, len(stays)), self._batch):
            yield stays.iloc[start : start + self._batch].reset_index(drop=True)

    def of_stays(self, name: str, stays: pd.DataFrame) -> pd.DataFrame:
        """The rows of an extract that belong to `stays`, in its order. The column `stay` is the position in `stays`."""
        file = f"read_parquet({self._path(name)}, file_row_number = true)"
        return self._run(
            stays,
            f"SELECT s.stay, e.* EXCLUDE (icustay_id, file_row_number) FROM {file} AS e JOIN batch AS s "
            f"USING (icustay_id) WHERE {_range(stays)} ORDER BY e.file_row_number",
        )

    def charted(self, stays: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """The measurements around the onset of infection, as three tables: bedside, laboratory and ventilation.

        Columns: stay and time, then itemid and valuenum, or mechvent and extubated. If several rows belong to the same cell,
        the last one counts.
        """
        bedside = self._around(stays, "ce", "charttime", "itemid, valuenum")
        noted = self._around(stays, "labs_ce", "charttime", "itemid, valuenum, 0 AS source")
        reported = self._around(stays, "labs_le", "timestp", "itemid, valuenum, 1 AS source")
        flags = self._around(stays, "mechvent", "charttime", "mechvent, extubated")
        return (
            self._run(stays, f"{bedside} ORDER BY stay, time, itemid, valuenum NULLS LAST"),
            self._run(stays, f"{noted} UNION ALL {reported} ORDER BY stay, time, source, itemid, valuenum"),
            self._run(stays, f"{flags} ORDER BY stay, time"),
        )

    def _around(self, stays: pd.DataFrame, name: str, time: str, columns: str) -> str:
        return (
            f"SELECT s.stay, e.{time} AS time, {columns} FROM read_parquet({self._path(name)}) AS e JOIN batch AS s "
            f"USING (icustay_id) WHERE {_range(stays)} AND e.{time} BETWEEN s.onset - {BEFORE} AND s.onset + {AFTER}"
        )

    def _run(self, stays: pd.DataFrame, query: str) -> pd.DataFrame:
        batch = pd.DataFrame({"icustay_id": stays["icustay_id"], "onset": stays["onset"], "stay": range(len(stays))})
        self._connection.register("batch", batch)
        try:
            return self._read(self._connection.execute(query).df())
        finally:
            self._connection.unregister("batch")

    def _read(self, table: pd.DataFrame) -> pd.DataFrame:
        return csv_numbers.reread(table, csv_numbers.early) if self._as_csv else table

    def _path(self, name: str) -> str:
        return "'" + str(self._folder / f"{name}.parquet").replace("'", "''") + "'"


def _range(stays: pd.DataFrame) -> str:
    # With this condition DuckDB can skip whole blocks of a file.
    if stays.empty:
        return "false"
    return f"e.icustay_id BETWEEN {stays['icustay_id'].iloc[0]} AND {stays['icustay_id'].iloc[-1]}"
