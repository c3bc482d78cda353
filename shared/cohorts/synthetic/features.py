"""What a feature of the synthetic registry is, and the short constructors that its table is written with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from shared.cohorts.synthetic.latents import Law, Nominal, Number, Ordinal

UNIT_TEXT = {"kg/m2": "kg/m^2", "∙103/uL": "10^3/uL", "103/uL": "10^3/uL"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Feature:
    """One column of the registry.

    kind: "number", "category" or "moment" (a date and a time column, combined by the reader).
    outcomes: every value that can occur: ascending numbers, or labels in the order of their codes; empty for a moment.
    law: distribution over `outcomes` given the latent state; None for a derived feature and for a moment.
    base: name of the feature with the law: itself, or the parent of a derived feature; "" for a moment.
    of_base: `[outcomes of the base]` index into `outcomes`: which outcome each value of the base gives.
    missing: probability of a blank cell, independent of everything else.
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
        """Name as the reader shows it: the title with its unit, or for a moment the title plus "datetime"."""
        if self.kind == "moment":
            return f"{self.title} datetime"
        return f"{self.title} ({UNIT_TEXT.get(self.unit, self.unit)})" if self.unit else self.title

    def text(self, value: float | str) -> str:
        """A value as a record shows it: numbers with the fixed number of decimals of the feature."""
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
    """A rounded normal quantity; `log=True`: lognormal, its effects are natural logarithms of factors."""
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
    """Ordered labels, separated by "|" from the lowest score to the highest; `shares`: their overall frequencies."""
    return _category(
        name, title, Ordinal(labels=_split(labels), effects=effects, shares=tuple(shares) or None), missing
    )


def nominal(
    name: str, title: str, labels: str, *, missing: float = 0.05, **weights: Sequence[Sequence[float]]
) -> Feature:
    """Unordered labels, separated by "|"; for each latent one row of weights per level."""
    return _category(name, title, Nominal(labels=_split(labels), weights=weights), missing)


def derived(
    name: str, title: str, base: str, cuts: Sequence[float], results: str | Sequence[int], *, missing: float = 0.05
) -> Feature:
    """A function of one number: `results[k]` where k cuts are at or below the value; labels are separated by "|"."""
    found = _split(results) if isinstance(results, str) else tuple(results)
    kind = "category" if isinstance(results, str) else "number"
    return Feature(
        name=name, title=title, kind=kind, base=base, cuts=tuple(cuts), results=found, missing=missing,
        outcomes=found if isinstance(results, str) else tuple(sorted(map(float, set(results)))),
    )  # fmt: skip


def moment(name: str, title: str, delay: tuple[int, int], *, missing: float = 0.05) -> Feature:
    """A date and a time column; uniform between `delay[0]` and `delay[1]` minutes after time zero, for everybody."""
    return Feature(name=name, title=title, kind="moment", delay=delay, missing=missing)


def placed(sections: Sequence[tuple[str, str, Sequence[Feature]]]) -> dict[str, Feature]:
    """Features by name, with their section filled in and derived ones tied to their base.

    Raises ValueError if a name occurs twice.
    """
    found: dict[str, Feature] = {}
    for domain, section, members in sections:
        for feature in members:
            if feature.name in found:
                raise ValueError(f"feature {feature.name} occurs twice")
            found[feature.name] = dataclasses.replace(feature, domain=domain, section=section)
    for name, feature in found.items():
        if feature.cuts:
            which = np.searchsorted(feature.cuts, found[feature.base].outcomes, side="right")
            order = [feature.outcomes.index(result) for result in feature.results]
            found[name] = dataclasses.replace(feature, of_base=np.array(order)[which])
    return found


def _split(labels: str) -> tuple[str, ...]:
    return tuple(labels.split("|"))


def _category(name: str, title: str, law: Ordinal | Nominal, missing: float) -> Feature:
    return Feature(
        name=name, title=title, kind="category", outcomes=law.labels, law=law, base=name,
        of_base=np.arange(len(law.labels)), missing=missing,
    )  # fmt: skip
