"""The latent state of a synthetic patient, and the laws: distributions of a feature given that state.

A state is a combination of five latent variables. An array over states has one axis for each latent, in the order of
`LATENTS`. A law that depends on only two latents has length 1 on the other axes, so arrays broadcast.
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
    """The sum of the effects of all latents in `effects`: `[4|1, 6|1, 5|1, 3|1, 2|1]` (1 for a latent without effects)."""
    total = np.zeros((1,) * len(SHAPE))
    for latent, values in effects.items():
        total = total + along(latent, values)
    return total


def along(latent: str, values: Sequence[float]) -> np.ndarray:
    """`values`, one for each level, as an array along the axis of `latent`; the other axes have length 1."""
    axis = list(LATENTS).index(latent)
    return np.asarray(values, dtype=np.float64).reshape([SHAPE[axis] if i == axis else 1 for i in range(len(SHAPE))])


@functools.cache
def prior() -> np.ndarray:
    """The probability of each state: `[4, 6, 5, 3, 2]`, one axis for each latent.

    It is a chain: chronic disease depends on frailty, host response and source on chronic disease, and severity on all four.
    """
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
    """A normal distribution (lognormal with `log`), rounded to `decimals` and truncated to [low, high].

    `centre` is the mean (the median with `log`), and `spread` the standard deviation within a state (of the logarithm with
    `log`). Effects are added to the mean (to the logarithm with `log`). The probability of a rounded value is exact: the
    difference of the distribution function over its rounding interval, normalised over the range.
    """

    decimals: int
    low: float
    high: float
    centre: float
    spread: float
    effects: Effects
    log: bool = False

    def grid(self) -> np.ndarray:
        """All possible values in ascending order: `[values]`. Each is the float64 nearest to its decimal text."""
        scale = 10**self.decimals
        return np.arange(round(self.low * scale), round(self.high * scale) + 1) / scale

    def table(self) -> np.ndarray:
        """The probability of each value of the grid: `[*latents, values]`; sums to 1 over the last axis."""
        grid, half = self.grid(), 0.5 / 10**self.decimals
        edges = np.append(grid - half, grid[-1] + half)
        middle = np.log(self.centre) if self.log else self.centre
        if self.log:
            edges = np.log(np.maximum(edges, 1e-9))
        mass = np.diff(ndtr((edges - middle - additive(self.effects)[..., None]) / self.spread), axis=-1)
        return mass / mass.sum(axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ordinal:
    """Ordered labels: a normal score with variance 1 and the sum of effects as mean; each label is an interval of scores.

    `cuts` are the limits of the intervals. If they are not given, they are chosen so that label k has the overall frequency
    `shares[k]` (all equal if these are not given).
    """

    labels: tuple[str, ...]
    effects: Effects
    cuts: tuple[float, ...] | None = None
    shares: tuple[float, ...] | None = None

    def table(self) -> np.ndarray:
        """`[*latents, labels]` probability of each label; sums to 1 over the last axis."""
        cuts = self._cuts_for_shares() if self.cuts is None else self.cuts
        below = ndtr(np.asarray(cuts) - additive(self.effects)[..., None])
        ends = (*below.shape[:-1], 1)
        return np.diff(np.concatenate([np.zeros(ends), below, np.ones(ends)], axis=-1), axis=-1)

    def _cuts_for_shares(self) -> list[float]:
        shift = np.broadcast_to(additive(self.effects), SHAPE)
        shares = self.shares or (1.0,) * len(self.labels)
        targets = np.cumsum(shares)[:-1] / np.sum(shares)
        return [brentq(lambda cut, t=t: float((prior() * ndtr(cut - shift)).sum()) - t, -30, 30) for t in targets]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nominal:
    """Unordered labels. Each latent has weights `[levels, labels]`; their products, normalised, are the probabilities."""

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
