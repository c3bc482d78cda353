"""The class for features of the synthetic registry, and short functions that create them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from shared.cohorts.synthetic.latents import Law, Nominal, Number, Ordinal

UNIT_TEXT = {"kg/m2": "kg/m^2", "∙103/uL": "10^3/uL", "103/uL": "10^3/uL"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Feature:
    """One column of the registry.

    kind: "number", "category" or "moment" (a date column and a time column, which the reader joins).
    outcomes: all possible values: numbers in ascending order, or labels in the order of their codes; empty for a moment.
    law: the distribution over `outcomes` given the latent state; None for a derived feature and for a moment.
    base: the name of the feature that has the law: itself, or the feature from which it is derived; "" for a moment.
    of_base: `[outcomes of the base]` index into `outcomes`: the outcome that belongs to each outcome of the base.
    missing: the probability that a cell is blank, independent of everything else.
    delay: for a moment, the shortest and the longest time after time zero, in minutes.
    cuts, results: for a derived feature, see `derived`.
    """

    name: str
    title: str
    kind: str
    outcomes: tuple[float, ...] | tuple[str, ...] = ()
    unit: str = ""
    decimals: int = 0
    law: Law | None = None
    base: str = ""
    of_base: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    missing: float = 0.0
    domain: str = ""
    section: str = ""
    delay: tuple[int, int] = (0, 0)
    cuts: tuple[float, ...] = ()
    results: tuple[int, ...] | tuple[str, ...] = ()

    @property
    def display(self) -> str:
        """The display name that the reader gives it: the title and the unit, or for a moment the title and "datetime"."""
        if self.kind == "moment":
            return f"{self.title} datetime"
        return f"{self.title} ({UNIT_TEXT.get(self.unit, self.unit)})" if self.unit else self.title

    def text(self, value: float | str) -> str:
        """The text of a value in a record. Numbers have `decimals` decimals."""
        return value if isinstance(value, str) else f"{value:.{self.decimals}f}"


def number(
    name: str,
    title: str,
    unit: str,
    decimals: int,
    low: float,
    high: float,
    centre: float,
    spread: float,
    *,
    log: bool = False,
    missing: float = 0.05,
    **effects: Sequence[float],
) -> Feature:
    """A number with a rounded normal distribution; see `latents.Number` for `low` to `effects`.

    With `log=True` it is lognormal, and effects are natural logarithms of factors.
    """
    law = Number(decimals=decimals, low=low, high=high, centre=centre, spread=spread, effects=effects, log=log)
    outcomes = tuple(law.grid().tolist())
    return Feature(
        name=name, title=title, kind="number", outcomes=outcomes, unit=unit, decimals=decimals, law=law, base=name,
        of_base=np.arange(len(outcomes)), missing=missing,
    )  # fmt: skip


def ordinal(
    name: str,
    title: str,
    labels: str,
    *,
    shares: Sequence[float] = (),
    missing: float = 0.05,
    **effects: Sequence[float],
) -> Feature:
    """A category with ordered labels, separated by "|", from the lowest score to the highest.

    `shares` are the overall frequencies of the labels; see `latents.Ordinal`.
    """
    return _category(
        name, title, Ordinal(labels=_split(labels), effects=effects, shares=tuple(shares) or None), missing
    )


def nominal(
    name: str, title: str, labels: str, *, missing: float = 0.05, **weights: Sequence[Sequence[float]]
) -> Feature:
    """A category with unordered labels, separated by "|". `weights` gives, for each latent, one row of weights per level."""
    return _category(name, title, Nominal(labels=_split(labels), weights=weights), missing)


def derived(
    name: str, title: str, base: str, cuts: Sequence[float], results: str | Sequence[int], *, missing: float = 0.05
) -> Feature:
    """A feature derived from the number `base`: it is `results[k]` if k of the `cuts` are at or below that number.

    Results that are labels are given as one text, separated by "|".
    """
    listed = _split(results) if isinstance(results, str) else tuple(results)
    kind = "category" if isinstance(results, str) else "number"
    return Feature(
        name=name, title=title, kind=kind, base=base, cuts=tuple(cuts), results=listed, missing=missing,
        outcomes=listed if isinstance(results, str) else tuple(sorted(map(float, set(results)))),
    )  # fmt: skip


def moment(name: str, title: str, delay: tuple[int, int], *, missing: float = 0.05) -> Feature:
    """A moment: a date and a time column, uniform between `delay[0]` and `delay[1]` minutes after time zero."""
    return Feature(name=name, title=title, kind="moment", delay=delay, missing=missing)


def placed(sections: Sequence[tuple[str, str, Sequence[Feature]]]) -> dict[str, Feature]:
    """The features by name, with domain and section filled in, and `of_base` of derived features.

    `sections` are (domain, section, features). Raises ValueError if a name occurs twice.
    """
    by_name: dict[str, Feature] = {}
    for domain, section, members in sections:
        for feature in members:
            if feature.name in by_name:
                raise ValueError(f"feature {feature.name} occurs twice")
            by_name[feature.name] = dataclasses.replace(feature, domain=domain, section=section)
    for name, feature in by_name.items():
        if feature.cuts:
            result_of_base = np.searchsorted(feature.cuts, by_name[feature.base].outcomes, side="right")
            order = [feature.outcomes.index(result) for result in feature.results]
            by_name[name] = dataclasses.replace(feature, of_base=np.array(order)[result_of_base])
    return by_name


def _split(labels: str) -> tuple[str, ...]:
    return tuple(labels.split("|"))


def _category(name: str, title: str, law: Ordinal | Nominal, missing: float) -> Feature:
    return Feature(
        name=name, title=title, kind="category", outcomes=law.labels, law=law, base=name,
        of_base=np.arange(len(law.labels)), missing=missing,
    )  # fmt: skip
