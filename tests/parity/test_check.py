"""The measures, by hand, and that not-a-number and what is missing never pass."""

from __future__ import annotations

import numpy as np
import pytest

from parity.check import (
    Check,
    Measured,
    largest_angle,
    largest_difference,
    largest_distance,
    largest_relative,
    largest_step_error,
    unequal,
)

MEASURES = (largest_difference, largest_relative, largest_distance, largest_angle)
TWO = {"a": np.array([1.0, 2.0]), "b": np.array([[3.0, 4.0]])}


def test_measures_by_hand():
    found = {"a": np.array([1.0, 2.5]), "b": np.array([[3.0, 5.0]])}
    assert largest_difference(found, TWO) == (1.0, "b[0, 1]", "absolute")
    assert largest_difference(found, TWO, unit="nats").unit == "nats"
    assert largest_relative(found, TWO) == (0.25, "a[1]", "relative")
    assert largest_relative(found, TWO, sizes={"a": 5.0}) == (0.25, "b[0, 1]", "relative")
    assert largest_distance(found, TWO) == (pytest.approx(0.5 / np.sqrt(5)), "a", "relative L2")
    value, name, unit = largest_angle({"a": np.array([0.0, 1.0])}, {"a": np.array([1.0, 1.0])})
    assert (value, name, unit) == (pytest.approx(1 - np.sqrt(0.5)), "a", "1 - cosine")
    assert unequal({"a": 1, "b": np.ones(2)}, {"a": 1, "b": np.zeros(2), "c": 3}) == (2.0, "b", "not equal")


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_equal_is_at_distance_0(measure):
    value, *_ = measure(TWO, TWO)
    assert value == 0
    assert measure({"a": np.zeros(3)}, {"a": np.zeros(3)})[0] == 0


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(
    "found",
    [
        {"a": np.array([1.0, np.nan]), "b": TWO["b"]},
        {"a": TWO["a"]},
        {**TWO, "c": np.ones(1)},
        {"a": TWO["a"], "b": TWO["b"][0]},
    ],
    ids=["nan", "missing", "too much", "another shape"],
)
def test_what_cannot_be_compared_does_not_pass(measure, found):
    assert not Check.of("scoring", "x", "f", "y", measure(found, TWO), np.inf).passed


def test_a_difference_from_nothing_is_infinite():
    value, name, _ = largest_distance({"a": np.ones(2)}, {"a": np.zeros(2)})
    assert value == np.inf and name == "a"


def test_excess_orders_checks():
    checks = [
        Check.of("scoring", "x", "f", "y", Measured(value, "", "nats"), bound)
        for value, bound in ((0, 0), (1, 2), (3, 1), (1, 0))
    ]
    assert [check.excess for check in checks] == [0, 0.5, 3, np.inf]
    assert [check.passed for check in checks] == [True, True, False, False]
    assert Check.of("scoring", "x", "f", "y", Measured(np.nan, "", "nats"), 1.0).excess == np.inf


def test_movement_is_measured_in_learning_rates():
    start = {"a": np.ones(2), "b": np.zeros(2)}
    expected = {"a": np.array([1.1, 0.9]), "b": np.zeros(2)}
    assert largest_step_error(expected, expected, start, 0.1) == (0, "a", "learning rates")
    assert largest_step_error(start, expected, start, 0.1) == (pytest.approx(1), "a", "learning rates")
    value, name, _ = largest_step_error(expected | {"b": np.full(2, 0.3)}, expected, start, 0.1)
    assert (value, name) == (pytest.approx(3), "b")
