"""Imputation by the nearest neighbour (k = 1) among the rows of a chunk, in raw units, as in the original's library.

The distance of two rows is the mean squared difference over the columns that both have. Equal distances are common, and the
last bit can decide which row is nearest, so the arithmetic is reproduced exactly: if a row shares a column with every other
row, squares are rounded to float32 and added in NumPy's order; otherwise they are added in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from shared.cohorts.mimic3 import introsort

CHUNK = 9_999  # rows that are compared with one another
NEAREST = np.float32(1e-6)  # smaller distances are set to this
OWN = np.finfo(np.float32).max  # the distance of a row to itself: larger than all others, smaller than infinity
LANES = 8  # NumPy adds the numbers of a row in eight interleaved sums
TIES = ("stable", "introsort")


def impute(
    table: np.ndarray, *, ties: str, chunk: int = CHUNK, progress: Callable[[int], object] | None = None
) -> np.ndarray:
    """Fill each missing cell (NaN) of `table` `[rows, columns]` from the nearest row that has a value there.

    Returns `[rows, columns]` float64. Rows are compared within consecutive chunks of `chunk` rows. A cell becomes 0 if no
    comparable row has a value there. Of equally near rows, `ties` takes the first one ("stable"), or the first one in the order
    of NumPy's portable argsort ("introsort"). `progress(n)` is called after every n rows. (Spec: mimic3, 8.3.)
    """
    filled = np.empty_like(table)
    for start in range(0, len(table), chunk):
        rows = slice(start, start + chunk)
        filled[rows] = _impute_chunk(np.ascontiguousarray(table[rows]), ties, progress)
    return filled


def _impute_chunk(table: np.ndarray, ties: str, progress: Callable[[int], object] | None) -> np.ndarray:
    chunk = _Chunk.of(table)
    filled = np.where(chunk.known, table, 0.0)
    for row in range(len(table)):
        missing = np.flatnonzero(~chunk.known[row])
        if len(missing):
            distances = chunk.distances(row)
            sources = _nearest(distances, chunk, missing, ties)
            usable = np.isfinite(distances[sources]) & chunk.known[sources, missing]
            weights = (1 / distances[sources[usable]]).astype(np.float64)
            # The library computes the weighted mean of this one value, which may differ from it in the last bit.
            filled[row, missing[usable]] = table[sources[usable], missing[usable]] * weights / weights
        if progress:
            progress(1)
    return filled


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """The rows of a chunk, stored by column, so that one row can be compared with all others in long vectors.

    table: `[rows, columns]` float64; known: `[rows, columns]` bool, whether a cell is present; values: `[columns, rows]`
    float64, 0 where missing; weights: `[columns, rows]` float64, 1 where present, else 0; unknown: `[columns, rows]` float32,
    infinity where missing, else 0; partial: `[columns]` bool, whether the column has missing cells.
    """

    table: np.ndarray
    known: np.ndarray
    values: np.ndarray
    weights: np.ndarray
    unknown: np.ndarray
    partial: np.ndarray

    @classmethod
    def of(cls, table: np.ndarray) -> _Chunk:
        known = ~np.isnan(table)
        by_column = np.ascontiguousarray(known.T)
        return cls(
            table=table,
            known=known,
            values=np.ascontiguousarray(np.where(known, table, 0.0).T),
            weights=by_column.astype(np.float64),
            unknown=np.where(by_column, np.float32(0), np.float32(np.inf)),
            partial=np.asarray(~by_column.all(axis=1)),
        )

    def distances(self, row: int) -> np.ndarray:
        """The distance of `row` to all rows: `[rows]` float32, at least `NEAREST`.

        It is infinite if the two rows share no column, and `OWN` for the row itself.
        """
        columns = np.flatnonzero(self.known[row])
        shared = self.weights[columns].sum(axis=0)
        comparable = shared > 0
        kind = np.float32 if comparable.all() else np.float64
        total = self._squares(row, columns, kind)
        result = np.full(len(total), np.float32(np.inf))
        np.divide(total, shared, out=result, where=comparable, casting="same_kind")
        np.maximum(result, NEAREST, out=result)
        result[row] = OWN
        return result

    def _squares(self, row: int, columns: np.ndarray, kind: type) -> np.ndarray:
        """Sums of squared differences to `row`: `[rows]`, rounded and added as NumPy's `d2.astype(kind).sum(axis=1)` does."""
        width, rows = self.values.shape
        interleaved = width - width % LANES
        lanes: np.ndarray = np.zeros((LANES, rows), kind)
        square: np.ndarray = np.empty(rows, kind)
        difference = np.empty(rows)
        total: np.ndarray | None = None
        for column in columns:
            np.subtract(self.values[column], self.table[row, column], out=difference)
            np.multiply(difference, difference, out=difference)
            if self.partial[column]:
                np.multiply(difference, self.weights[column], out=difference)
            square[:] = difference
            if column < interleaved:
                lanes[column % LANES] += square
            else:
                total = _added(lanes) if total is None else total
                total += square
        return _added(lanes) if total is None else total


def _added(lanes: np.ndarray) -> np.ndarray:
    pairs = lanes[0::2] + lanes[1::2]
    return (pairs[0] + pairs[1]) + (pairs[2] + pairs[3])


def _nearest(distances: np.ndarray, chunk: _Chunk, missing: np.ndarray, ties: str) -> np.ndarray:
    """The nearest row with a value, for each column in `missing`: `[len(missing)]`; an arbitrary row if none has a value."""
    nearest = np.empty(len(missing), np.int64)
    tied: list[tuple[int, np.ndarray]] = []
    for place, column in enumerate(missing):
        to_known = distances + chunk.unknown[column]
        nearest[place] = np.argmin(to_known)  # the first of equally near rows
        if ties == "introsort":
            equal = np.flatnonzero(to_known == to_known[nearest[place]])
            if len(equal) > 1:
                tied.append((place, equal))
    if tied:
        wanted = np.unique(distances[[equal[0] for _, equal in tied]])
        rank = np.empty(len(distances), np.int64)
        order = introsort.order_of(distances, wanted)
        rank[order] = np.arange(len(order))
        for place, equal in tied:
            nearest[place] = equal[np.argmin(rank[equal])]
    return nearest
