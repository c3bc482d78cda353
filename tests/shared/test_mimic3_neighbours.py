"""The nearest-neighbour step against its definition, and the order of ties against NumPy's own portable sort."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from shared.cohorts.mimic3 import introsort, neighbours

FOUND = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])  # beyond what NumPy was built for


def defined(table, ties):
    """The definition, cell by cell: float32 squares added by NumPy, argsort over the whole row."""
    known = ~np.isnan(table)
    filled = np.where(known, table, 0.0)
    every_row = (known.astype(int) @ known.T.astype(int) > 0).all(axis=1)
    for row in range(len(table)):
        shared = known[row] & known
        squares = np.where(shared, (np.where(known, table, 0) - np.where(known[row], table[row], 0)) ** 2, 0)
        count = shared.sum(axis=1)
        total = squares.astype(np.float32 if every_row[row] else np.float64).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            distance = np.where(count > 0, total / count, np.inf).astype(np.float32)
        distance = np.maximum(distance, np.float32(1e-6))
        distance[row] = np.finfo(np.float32).max
        order = np.argsort(distance, kind="stable")
        if ties == "introsort":
            order = introsort.order_of(distance, np.unique(distance))
        for column in np.flatnonzero(~known[row]):
            candidates = [other for other in order if known[other, column] and np.isfinite(distance[other])]
            if candidates:
                weight = np.float64(np.float32(1) / distance[candidates[0]])
                filled[row, column] = table[candidates[0], column] * weight / weight
    return filled


def drawn(rows, columns, missing, seed, decimals=0):
    random = np.random.default_rng(seed)
    table = random.normal(100, 3, (rows, columns)).round(decimals)
    table[random.random(table.shape) < missing] = np.nan
    return table


@pytest.mark.parametrize("ties", neighbours.TIES)
@pytest.mark.parametrize("columns", [3, 8, 13, 36])
@pytest.mark.parametrize("missing", [0.2, 0.9])
def test_every_cell_is_as_defined(ties, columns, missing):
    table = drawn(60, columns, missing, seed=columns)
    table[:, 1] = np.nan  # known by nobody
    table[7] = np.nan  # knows nothing
    np.testing.assert_array_equal(neighbours.impute(table, ties=ties), defined(table, ties))


def test_ties_matter_and_the_two_rules_differ():
    table = drawn(200, 4, 0.6, seed=1)
    results = [neighbours.impute(table, ties=ties) for ties in neighbours.TIES]
    assert (results[0] != results[1]).any()


def test_stable_takes_the_lowest_row():
    table = np.array([[1.0, np.nan], [1.0, 10.0], [1.0, 20.0]])
    assert neighbours.impute(table, ties="stable")[0, 1] == 10


def test_chunks_do_not_see_one_another_and_progress_counts_every_row():
    table = drawn(50, 6, 0.3, seed=2)
    seen = []
    whole = neighbours.impute(table, ties="stable", chunk=20, progress=seen.append)
    parts = [neighbours.impute(table[start : start + 20], ties="stable") for start in (0, 20, 40)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    assert sum(seen) == 50


def test_what_is_known_stays_and_nothing_is_left_missing():
    table = drawn(80, 10, 0.5, seed=3, decimals=4)
    before = table.copy()
    filled = neighbours.impute(table, ties="stable")
    np.testing.assert_array_equal(table, before)
    known = ~np.isnan(table)
    np.testing.assert_array_equal(filled[known], table[known])
    assert np.isfinite(filled).all()


def test_no_rows():
    assert neighbours.impute(np.empty((0, 3)), ties="stable").shape == (0, 3)


@pytest.mark.parametrize("size", [1, 2, 15, 16, 17, 18, 100, 777, 3000])
@pytest.mark.parametrize("levels", [1, 2, 7, 50, 100_000])
def test_order_sorts_and_can_be_asked_for_in_part(size, levels):
    keys = np.random.default_rng(size).integers(0, levels, size).astype(np.float32)
    whole = introsort.order_of(keys, np.unique(keys))
    np.testing.assert_array_equal(np.sort(whole), np.arange(size))
    assert (np.diff(keys[whole]) >= 0).all()
    some = np.unique(keys)[::3]
    np.testing.assert_array_equal(introsort.order_of(keys, some), whole[np.isin(keys[whole], some)])


def defeating(size):
    """Keys on which this quicksort goes as deep as it can (McIlroy's adversary), halved so that they come in pairs."""
    values, state = [size] * size, {"next": 0, "candidate": 0}

    def less(one, other):
        if values[one] == values[other] == size:
            values[one if one == state["candidate"] else other] = state["next"]
            state["next"] += 1
        if values[one] == size:
            state["candidate"] = one
        elif values[other] == size:
            state["candidate"] = other
        return values[one] < values[other]

    order, left, right = list(range(size)), 0, size - 1
    while right - left > 15:  # always on with the longer part, which is the right one here
        middle = left + ((right - left) >> 1)
        for low, high in ((left, middle), (middle, right), (left, middle)):
            if less(order[high], order[low]):
                order[low], order[high] = order[high], order[low]
        pivot, i, j = order[middle], left, right - 1
        order[middle], order[j] = order[j], order[middle]
        while True:
            i = next(k for k in range(i + 1, size) if not less(order[k], pivot))
            j = next(k for k in range(j - 1, -1, -1) if not less(pivot, order[k]))
            if i >= j:
                break
            order[i], order[j] = order[j], order[i]
        order[i], order[right - 1] = order[right - 1], order[i]
        left = i + 1
    return np.array(values, np.float32) // 2


def test_the_order_is_that_of_numpys_portable_sort(monkeypatch):
    """NumPy itself, with every vectorised sort switched off, which only a fresh process can do."""
    random = np.random.default_rng(5)
    keys = [random.integers(0, levels, size).astype(np.float32)
            for size in (16, 17, 18, 33, 34, 500, 1481, 5000) for levels in (2, 9, 300)]  # fmt: skip
    keys += [defeating(300), defeating(1000)]
    program = (
        "import json, sys, numpy as np\n"
        "print(json.dumps([np.argsort(np.array(k, np.float32)).tolist() for k in json.load(sys.stdin)]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        input=json.dumps([array.tolist() for array in keys]),
        env=os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(FOUND)},
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    heaped, heapsort = [], introsort._heapsort
    monkeypatch.setattr(introsort, "_heapsort", lambda *given: (heaped.append(1), heapsort(*given)))
    for array, expected in zip(keys, json.loads(result.stdout), strict=True):
        np.testing.assert_array_equal(introsort.order_of(array, np.unique(array)), expected)
    assert len(heaped) >= 2  # the last two do run out of depth
