"""The nearest-neighbour step against its definition, and the order of ties against NumPy's own portable sort."""

import os
import subprocess
import sys

import numpy as np
import pytest

from shared.cohorts.mimic3 import introsort, neighbours

PORTABLE = "X86_V3 X86_V4 AVX512_ICL AVX512_SPR AVX2 AVX512_SKX ASIMD SVE VSX VX"


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


def test_the_order_is_that_of_numpys_portable_sort():
    """NumPy itself, with every vectorised sort switched off, which only a fresh process can do."""
    program = (
        "import sys, numpy as np\n"
        "from shared.cohorts.mimic3 import introsort\n"
        "random = np.random.default_rng(5)\n"
        "for size in (16, 17, 18, 33, 34, 500, 1481, 5000):\n"
        "    for levels in (2, 9, 300):\n"
        "        keys = random.integers(0, levels, size).astype(np.float32)\n"
        "        same = (np.argsort(keys) == introsort.order_of(keys, np.unique(keys))).all()\n"
        "        print('same' if same else f'differs: {size} {levels}')\n"
    )
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": PORTABLE}
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True,
                            text=True, timeout=120, check=True)  # fmt: skip
    assert result.stdout.split("\n")[:-1] == ["same"] * 24


@pytest.mark.parametrize("size", [2, 3, 16, 33, 500])
@pytest.mark.parametrize("levels", [2, 9, 300])
def test_where_quicksort_gives_up_the_order_is_that_of_numpys_heapsort(size, levels):
    keys = np.random.default_rng(size).integers(0, levels, size).astype(np.float32)
    order = np.arange(size)
    introsort._heapsort(keys, order, 0, size - 1)
    np.testing.assert_array_equal(order, np.argsort(keys, kind="heapsort"))
