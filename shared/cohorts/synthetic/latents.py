"""The latent state of a synthetic patient, and the laws that make a table of probabilities from it.

A state is a combination of five latents. Arrays over states have one axis for each latent, in the order of `LATENTS`,
so that a law which depends on two latents has length 1 on the other axes and broadcasts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

LATENTS: dict[str, tuple[str, ...]] = {
    "severity": ("low", "moderate", "severe", "shock"),
    "source": ("lung", "abdomen", "biliary", "urinary", "soft tissue", "catheter"),
    "chronic": ("none", "cardiometabolic", "kidney", "liver", "cancer"),
    "frailty": ("robust", "prefrail", "frail"),
    "host": ("hyperinflammatory", "immunosuppressed"),
}
SHAPE = tuple(len(levels) for levels in LATENTS.values())

Effects = Mapping[str, Sequence[float]]


def additive(effects: Effects) -> np.ndarray:
    """Sum of one effect per level of each latent named: `[4|1, 6|1, 5|1, 3|1, 2|1]`."""
    total = np.zeros((1,) * len(SHAPE))
    for latent, values in effects.items():
        total = total + along(latent, values)
    return total


def along(latent: str, values: Sequence[float]) -> np.ndarray:
    """`values` (one per level) laid along the axis of `latent`, length 1 elsewhere."""
    axis = list(LATENTS).index(latent)
    return np.asarray(values, dtype=np.float64).reshape([SHAPE[axis] if i == axis else 1 for i in range(len(SHAPE))])


@functools.cache
def prior() -> np.ndarray:
    """`[4, 6, 5, 3, 2]` probability of each state: frailty -> chronic -> host -> source -> severity."""
    frailty = np.array([0.33, 0.34, 0.33])
    chronic_given_frailty = np.array(
        [[0.34, 0.17, 0.13, 0.19, 0.17], [0.17, 0.25, 0.18, 0.18, 0.22], [0.13, 0.30, 0.24, 0.13, 0.20]]
    )
    host_given_chronic = np.array([[0.68, 0.32], [0.62, 0.38], [0.50, 0.50], [0.45, 0.55], [0.28, 0.72]])
    source_given_chronic = np.array(
        [
            [0.22, 0.18, 0.16, 0.18, 0.18, 0.08],
            [0.22, 0.13, 0.14, 0.19, 0.22, 0.10],
            [0.17, 0.12, 0.10, 0.22, 0.13, 0.26],
            [0.13, 0.32, 0.23, 0.10, 0.12, 0.10],
            [0.20, 0.17, 0.18, 0.12, 0.10, 0.23],
        ]
    )
    severity = Ordinal(
        labels=LATENTS["severity"],
        cuts=(-0.8, 0.0, 0.8),
        effects={
            "source": (0.15, 0.3, -0.1, -0.4, 0.0, 0.05),
            "chronic": (-0.45, -0.05, 0.1, 0.3, 0.15),
            "frailty": (-0.3, 0.0, 0.3),
            "host": (0.1, -0.1),
        },
    ).table()
    rest = np.einsum("f,fc,ch,co->ocfh", frailty, chronic_given_frailty, host_given_chronic, source_given_chronic)
    joint = np.moveaxis(severity, -1, 0)[:, 0] * rest
    return joint / joint.sum()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Number:
    """A normal (or, with `log`, lognormal) quantity, rounded to `decimals` and truncated to [low, high].

    `centre` is the mean (median if `log`), `spread` the standard deviation within a state (of the logarithm if `log`);
    effects add to the mean (to the logarithm if `log`). The law is exact on the grid: differences of the distribution
    function over the rounding bins, renormalised over the range.
    """

    decimals: int
    low: float
    high: float
    centre: float
    spread: float
    effects: Effects
    log: bool = False

    def grid(self) -> np.ndarray:
        """`[values]` every value that can occur, ascending; each is the double nearest to its decimal text."""
        scale = 10**self.decimals
        return np.arange(round(self.low * scale), round(self.high * scale) + 1) / scale

    def table(self) -> np.ndarray:
        """`[*latents, values]` probability of each grid value; sums to 1 over the last axis."""
        grid, half = self.grid(), 0.5 / 10**self.decimals
        edges = np.append(grid - half, grid[-1] + half)
        middle = np.log(self.centre) if self.log else self.centre
        if self.log:
            edges = np.log(np.maximum(edges, 1e-9))
        mass = np.diff(ndtr((edges - middle - additive(self.effects)[..., None]) / self.spread), axis=-1)
        return mass / mass.sum(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordinal:
    """Ordered labels: a unit-variance normal score, shifted by the effects, cut into intervals.

    Without `cuts`, the cuts are placed so that label k has the overall frequency `shares[k]` (equal if not given).
    """

    labels: tuple[str, ...]
    effects: Effects
    cuts: tuple[float, ...] | None = None
    shares: tuple[float, ...] | None = None

    def table(self) -> np.ndarray:
        """`[*latents, labels]` probability of each label; sums to 1 over the last axis."""
        cuts = self._placed() if self.cuts is None else self.cuts
        below = ndtr(np.asarray(cuts) - additive(self.effects)[..., None])
        ends = (*below.shape[:-1], 1)
        return np.diff(np.concatenate([np.zeros(ends), below, np.ones(ends)], axis=-1), axis=-1)

    def _placed(self) -> list[float]:
        shift = np.broadcast_to(additive(self.effects), SHAPE)
        shares = self.shares or (1.0,) * len(self.labels)
        targets = np.cumsum(shares)[:-1] / np.sum(shares)
        return [brentq(lambda cut, t=t: float((prior() * ndtr(cut - shift)).sum()) - t, -30, 30) for t in targets]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nominal:
    """Unordered labels: for each latent a table of weights `[levels, labels]`; weights multiply and are normalised."""

    labels: tuple[str, ...]
    weights: Mapping[str, Sequence[Sequence[float]]]

    def table(self) -> np.ndarray:
        """`[*latents, labels]` probability of each label; sums to 1 over the last axis."""
        parts = []
        for column in range(len(self.labels)):
            logs = {latent: np.log([row[column] for row in rows]).tolist() for latent, rows in self.weights.items()}
            parts.append(additive(logs))
        mass = np.exp(np.stack(parts, axis=-1))
        return mass / mass.sum(axis=-1, keepdims=True)


Law = Number | Ordinal | Nominal
