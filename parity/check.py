"""One comparison with its bound, and the measures of distance that comparisons use."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

Arrays = Mapping[str, Any]  # named arrays or numbers
NATS = "nats"  # of log-probabilities


class Measured(NamedTuple):
    """A distance, where it is largest (a name, with the element's place in brackets), and what the distance is counted in."""

    value: float
    worst: str
    unit: str


@dataclasses.dataclass(frozen=True)
class Check:
    """`value`, in `unit`, is how far a backend is from `against`, `worst` is where: a parameter, a token, a step, a metric.

    `rung` is the name of its rung on the ladder (`parity.runner.LADDER`), `check` says what of it is compared.
    """

    rung: str
    check: str
    family: str
    against: str
    value: float
    bound: float
    unit: str
    worst: str

    @property
    def passed(self) -> bool:
        """Within the bound; not-a-number is not."""
        return bool(self.value <= self.bound)

    @property
    def excess(self) -> float:
        """The value in units of the bound, to order checks by; a bound of 0 makes anything above it infinite."""
        if self.value == 0:
            return 0.0
        if not self.bound or np.isnan(self.value):
            return float("inf")
        return self.value / self.bound

    def row(self) -> dict[str, Any]:
        """As `parity.json` holds it."""
        return {**dataclasses.asdict(self), "passed": self.passed}

    @classmethod
    def of(cls, rung: str, check: str, family: str, against: str, measured: Measured, bound: float) -> Check:
        """A check from what one of the measures below found."""
        return cls(rung, check, family, against, float(measured.value), bound, measured.unit, measured.worst)


def largest_difference(found: Arrays, expected: Arrays, *, unit: str = "absolute") -> Measured:
    """The largest absolute difference of an element, in the `unit` of the arrays, and where it is."""
    return _worst((_largest(name, np.abs(a - b)) for name, a, b in _pairs(found, expected)), unit)


def largest_relative(found: Arrays, expected: Arrays, *, sizes: Mapping[str, float] | None = None) -> Measured:
    """The largest difference of an element relative to what is expected, or to the name's entry in `sizes`, if larger.

    A sum whose terms cancel has a size of its own: that of its terms.
    """
    sizes = sizes or {}
    return _worst(
        (
            _largest(name, _ratio(np.abs(a - b), np.maximum(np.abs(b), sizes.get(name, 0.0))))
            for name, a, b in _pairs(found, expected)
        ),
        "relative",
    )


def largest_distance(found: Arrays, expected: Arrays) -> Measured:
    """The largest L2 distance of an array relative to the norm of what is expected, and the array's name."""
    return _worst(
        ((float(_ratio(np.linalg.norm(a - b), np.linalg.norm(b))), name) for name, a, b in _pairs(found, expected)),
        "relative L2",
    )


def largest_angle(found: Arrays, expected: Arrays) -> Measured:
    """The largest 1 - cosine of two arrays, and the array's name; two arrays of zeros are at angle 0."""

    def angle(a: np.ndarray, b: np.ndarray) -> float:
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        if not lengths:
            return 0.0 if np.array_equal(a, b) else 1.0
        # From the difference of the directions: 1 - cosine itself would be lost in rounding.
        return float(np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2) / 2)

    return _worst(((angle(a, b), name) for name, a, b in _pairs(found, expected)), "1 - cosine")


def largest_step_error(found: Arrays, expected: Arrays, start: Arrays, rate: float) -> Measured:
    """The largest root mean square error of an array's movement from `start`, in units of the learning rate.

    An array that does not move where Adam's first step moves it is at distance 1.
    """
    moved = {name: np.asarray(expected[name], np.float64) - np.asarray(start[name], np.float64) for name in start}
    made = {name: np.asarray(found[name], np.float64) - np.asarray(start[name], np.float64) for name in found}
    return _worst(
        ((float(np.sqrt(np.mean((a - b) ** 2)) / rate), name) for name, a, b in _pairs(made, moved)), "learning rates"
    )


def unequal(found: Mapping[str, Any], expected: Mapping[str, Any]) -> Measured:
    """How many things of these names are not exactly equal, and the first of them."""
    different = [name for name in expected if name not in found or not _equal(found[name], expected[name])]
    different += [name for name in found if name not in expected]
    return Measured(float(len(different)), different[0] if different else "", "not equal")


def _equal(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))


def _pairs(found: Arrays, expected: Arrays) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Both sides in float64. What only one side has counts as not-a-number."""
    for name in [*expected, *(name for name in found if name not in expected)]:
        if name not in found or name not in expected or np.shape(found[name]) != np.shape(expected[name]):
            yield name, np.array(np.nan), np.array(np.nan)
            continue
        yield name, np.asarray(found[name], np.float64), np.asarray(expected[name], np.float64)


def _ratio(difference: Any, size: Any) -> Any:
    """0 where there is no difference, infinite where there is one from nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(difference == 0, 0.0, difference / size)


def _largest(name: str, values: np.ndarray) -> tuple[float, str]:
    if not values.ndim:
        return float(values), name
    if not values.size:
        return 0.0, name
    place = np.unravel_index(int(np.argmax(np.where(np.isnan(values), np.inf, values))), values.shape)
    return float(values[place]), f"{name}[{', '.join(map(str, place))}]"


def _worst(found: Iterator[tuple[float, str]], unit: str) -> Measured:
    return Measured(*max(found, key=lambda pair: (np.isnan(pair[0]), pair[0]), default=(0.0, "")), unit)
