"""The exact posterior of a masked value given all shown values, as a sum over the latent states.

The shown values of a base feature, and of the features derived from it, restrict the outcomes of the base feature: they are a
mask over its outcomes. Given the state, base features are independent. So the likelihood of a state is a product: for each base
feature, the sum of the probabilities that the mask allows. Blank cells and moments do not depend on the state and are ignored.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from shared.cohorts.synthetic.features import Feature
from shared.cohorts.synthetic.latents import SHAPE, prior
from shared.cohorts.synthetic.variables import FEATURES
from shared.errors import InputError

ON_GRID = 1e-6  # steps of the grid: a text within this distance of a grid value is that value
BLANKS = ("", "nan")


@functools.cache
def table(name: str) -> np.ndarray:
    """The law of the base feature `name`: `[*latents, outcomes]`, read-only; a latent that does not matter has length 1.

    Raises InputError for a derived feature and for a moment.
    """
    law = FEATURES[name].law
    if law is None:
        raise InputError(f"{name} has no law of its own: it is derived or a moment")
    probabilities = law.table()
    probabilities.setflags(write=False)
    return probabilities


def outcome_mask(feature: Feature, text: str) -> np.ndarray:
    """Which outcomes of the base give `feature` the value `text`: `[outcomes of the base]` bool, all False for none."""
    return feature.of_base == _outcome(feature, text)


def _outcome(feature: Feature, text: str) -> int:
    """Index of `text` among the outcomes of `feature`, or -1."""
    if feature.kind == "category":
        return _labels(feature.name).get(text.strip().lower(), -1)
    try:
        value = float(text)
    except ValueError:
        return -1
    if not np.isfinite(value):
        return -1
    first, scale = float(feature.outcomes[0]), 10**feature.decimals
    position = (value - first) * scale
    index = round(position)
    if abs(position - index) > ON_GRID or not 0 <= index < len(feature.outcomes):
        return -1
    return index


@functools.cache
def _labels(name: str) -> dict[str, int]:
    return {str(label).lower(): index for index, label in enumerate(FEATURES[name].outcomes)}


class Oracle:
    """Computes probabilities from the distribution of the synthetic registry. It holds no data of patients."""

    def __init__(self) -> None:
        self._log_prior = np.log(prior())
        self._log_evidence: dict[tuple[str, str], np.ndarray] = {}

    def knows(self, feature: str) -> bool:
        """Whether `feature` is a column with a known law, so that `posterior` accepts it."""
        return feature in FEATURES and bool(FEATURES[feature].base)

    def posterior(self, shown: Mapping[str, str], victim: str, choices: Sequence[str]) -> np.ndarray:
        """The probability of each choice as the masked value, given all shown values: `[choices]` float64.

        The probabilities are not normalised over the choices. A choice that is not a possible value has 0. If the choices
        were made by a rule that does not depend on which of them is true, then each probability divided by their sum is the
        probability that this choice is right.

        `shown` maps column names to the texts in the record. Blank texts, moments, columns without a law, and the victim
        (the masked column) itself are ignored. Raises InputError for a victim without a law, and for a record that is
        impossible in this registry.
        """
        if not self.knows(victim):
            raise InputError(f"{victim}: the synthetic registry has no law for this column")
        law = self.law(shown, FEATURES[victim].base, without=victim)
        feature = FEATURES[victim]
        return np.array([law[outcome_mask(feature, choice)].sum() for choice in choices])

    def law(self, shown: Mapping[str, str], base: str, without: str = "") -> np.ndarray:
        """The posterior of each outcome of the base feature `base`: `[outcomes]`, sum 1. Column `without` is ignored.

        Raises InputError for a record that is impossible in this registry.
        """
        evidence: dict[str, list[str]] = {}
        for name, text in shown.items():
            if name != without and self.knows(name) and text.lower() not in BLANKS:
                evidence.setdefault(FEATURES[name].base, []).append(name)
        log_weight = self._log_prior.copy()
        for other, names in evidence.items():
            log_weight += self._log_likelihood(shown, other, names)
        highest = log_weight.max()
        if not np.isfinite(highest):
            raise InputError("this record has probability 0 under the synthetic registry: was it drawn from another?")
        weight = np.exp(log_weight - highest)

        probabilities = table(base)
        axes = tuple(axis for axis, size in enumerate(probabilities.shape[:-1]) if size == 1)
        weight = weight.sum(axis=axes, keepdims=True).ravel() / weight.sum()
        rows = probabilities.reshape(weight.size, -1)
        if base in evidence:  # shown features with the same base restrict the values of the victim within each state
            rows = rows * self._mask(shown, evidence[base])
            total = rows.sum(axis=-1)
            weight = np.divide(weight, total, out=np.zeros_like(weight), where=total > 0)
        return weight @ rows

    def _log_likelihood(self, shown: Mapping[str, str], base: str, names: list[str]) -> np.ndarray:
        """The log-probability of the shown values of one base feature, `names`, in each state: `[*latents]`."""
        if len(names) > 1:
            return _log(table(base) @ self._mask(shown, names))
        key = (names[0], shown[names[0]])
        if key not in self._log_evidence:
            self._log_evidence[key] = _log(table(base) @ outcome_mask(FEATURES[key[0]], key[1]))
        return self._log_evidence[key]

    def _mask(self, shown: Mapping[str, str], names: list[str]) -> np.ndarray:
        return np.logical_and.reduce([outcome_mask(FEATURES[name], shown[name]) for name in names])


def _log(probability: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # an impossible state is -inf
        return np.log(probability)


def states_table(name: str) -> np.ndarray:
    """The law of any feature except a moment: `[states, outcomes]`, for all latent states in C order; for tests and plots."""
    feature = FEATURES[name]
    base = table(feature.base)
    full = np.broadcast_to(base, SHAPE + base.shape[-1:]).reshape(-1, base.shape[-1])
    return np.stack([full[:, feature.of_base == index].sum(axis=-1) for index in range(len(feature.outcomes))], axis=-1)
