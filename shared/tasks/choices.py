"""Answer options: which values stand beside the true one, and how much the options themselves give away.

The original's rules (spec: registry, b) with what made answers visible without reading the case mended (quirks 5 to 11
and 39): all options are written alike and differ, there are exactly N of them wherever N exist, none lies outside the
range of the training values, missing values are no option. One rule is changed so that the law of the options is
exactly known: the step of a ladder of numbers is drawn by the mixture's weights, not by how well a component explains
the label, so the options tell nothing beyond `option_log_likelihood`. Steps too long for the range are never drawn.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from shared.registry.features import Feature, as_number, to_units, units_text
from shared.registry.statistics import ValueStatistics, training_numbers
from shared.registry.store import Registry

HEAPS = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5))


class OptionLaw(Protocol):
    """How the options of one feature are drawn around its true value, the label. Values are texts as shown."""

    def can_ask(self, label: str) -> bool:
        """Whether a question with this true value is possible."""
        ...

    def draw(self, label: str, rng: np.random.Generator) -> list[str]:
        """The label and its distractors, in no meaningful order; empty where this draw gives no question."""
        ...

    def frequency(self, text: str) -> float:
        """How frequent a value is among training patients, up to a constant."""
        ...

    def accept(self, label: str, choices: Sequence[str]) -> float:
        """How often a question with these options is asked of a patient whose value is `label`: 0 to 1."""
        ...


class NaturalLaw(OptionLaw, Protocol):
    """A law under which values are asked for as often as they come, so that the options may tell something."""

    def option_log_likelihood(self, label: str, choices: Sequence[str]) -> float:
        """log P(these options | the true value is `label`), up to a constant that all of `choices` share.

        The best answer for a reader with posterior p is the option that maximises log p + this.
        """
        ...


@dataclasses.dataclass(frozen=True)
class CategoryLaw:
    """All values where there are at most `num_choices`; else distractors drawn without replacement by their weights."""

    weights: Mapping[str, float]
    num_choices: int

    def can_ask(self, label: str) -> bool:
        """A value that no training patient has would be known by that."""
        return label in self.weights and len(self.weights) >= 2

    def draw(self, label: str, rng: np.random.Generator) -> list[str]:
        """See OptionLaw."""
        others = [text for text in self.weights if text != label]
        if len(others) >= self.num_choices:
            # The order in which exponential clocks of these rates ring is a draw without replacement by weight.
            rings = rng.standard_exponential(len(others)) / np.array([self.weights[text] for text in others])
            others = [others[i] for i in np.argsort(rings)[: self.num_choices - 1]]
        return [label, *others]

    def option_log_likelihood(self, label: str, choices: Sequence[str]) -> float:
        """Sum over all orders in which the distractors may have been drawn; 0 where all values are shown anyway."""
        if len(self.weights) <= self.num_choices:
            return 0.0
        others = [self.weights[text] for text in choices if text != label]
        total = 0.0
        for order in itertools.permutations(others):
            rest, chance = 1.0 - self.weights[label], 1.0
            for weight in order:
                chance *= weight / rest
                rest -= weight
            total += chance
        return math.log(total)

    def frequency(self, text: str) -> float:
        """The value's share of training patients."""
        return self.weights.get(text, 0.0)

    def accept(self, label: str, choices: Sequence[str]) -> float:
        """Always."""
        return 1.0


@dataclasses.dataclass(frozen=True)
class LadderLaw:
    """Numbers at equal steps; the label's rung is uniform among those that keep all rungs within the training range.

    Values are counted in units of the last decimal shown, so every rung is exactly what is written. `steps` (in units)
    are drawn with `step_weights`, whatever the label is. Every label in the range has a rung for every step.
    """

    decimals: int
    low: int
    high: int
    steps: tuple[int, ...]
    step_weights: tuple[float, ...]
    num_choices: int
    statistics: ValueStatistics

    def can_ask(self, label: str) -> bool:
        """Numbers within the training range: one beyond it would be known by that."""
        number = as_number(label)
        return not math.isnan(number) and self.low <= to_units(number, self.decimals) <= self.high

    def rungs(self, label: int, step: int) -> range:
        """How many options may lie below the label."""
        last = self.num_choices - 1
        return range(max(0, last - (self.high - label) // step), min(last, (label - self.low) // step) + 1)

    def draw(self, label: str, rng: np.random.Generator) -> list[str]:
        """See OptionLaw."""
        centre = to_units(float(label), self.decimals)
        step = self.steps[int(rng.choice(len(self.steps), p=self.step_weights))]
        below = int(rng.choice(np.array(self.rungs(centre, step))))
        ladder = [centre + (i - below) * step for i in range(self.num_choices)]
        return [units_text(units, self.decimals) for units in ladder]

    def option_log_likelihood(self, label: str, choices: Sequence[str]) -> float:
        """Minus the log of the number of rungs that the label could have stood on; the step tells nothing."""
        units = sorted(to_units(float(text), self.decimals) for text in choices)
        return -math.log(len(self.rungs(to_units(float(label), self.decimals), units[1] - units[0])))

    def frequency(self, text: str) -> float:
        """The mixture's density."""
        return self.statistics.density(float(text))

    def accept(self, label: str, choices: Sequence[str]) -> float:
        """Always."""
        return 1.0


def option_laws(registry: Registry, *, num_choices: int, difficulty: float) -> dict[str, NaturalLaw]:
    """The law of every feature that can be asked for; steps of numbers are `difficulty` standard deviations."""
    laws: dict[str, NaturalLaw] = {}
    for feature in registry.features:
        statistics = registry.statistics.get(feature.name)
        if statistics is None:
            continue
        if statistics.finite:
            weights = dict(zip(statistics.vocab, statistics.weights.tolist(), strict=True))
            laws[feature.name] = CategoryLaw(weights, num_choices)
        else:
            numbers = training_numbers(registry.train, feature.name)
            if len(numbers):  # else only held-out patients have it, and statistics describe these too
                laws[feature.name] = _number_law(feature, statistics, numbers, num_choices, difficulty)
    return laws


def _number_law(
    feature: Feature, statistics: ValueStatistics, numbers: np.ndarray, num_choices: int, difficulty: float
) -> NaturalLaw:
    units = [to_units(number, feature.decimals) for number in numbers]
    low, high = min(units), max(units)
    scaled = difficulty * statistics.stds * 10**feature.decimals
    steps = ladder_steps(scaled, statistics.mixture, heap(units), (high - low) // num_choices)
    if not steps:
        counts = Counter(units_text(value, feature.decimals) for value in units)
        return CategoryLaw({text: count / len(units) for text, count in counts.items()}, num_choices)
    return LadderLaw(feature.decimals, low, high, tuple(steps), tuple(steps.values()), num_choices, statistics)


def ladder_steps(wanted: np.ndarray, weights: np.ndarray, grain: int, longest: int) -> dict[int, float]:
    """The possible steps, multiples of `grain` units, and their probabilities.

    `wanted` `[components]` is the step of each mixture component in units; one that rounds to nothing takes the next
    larger. Steps above `longest` would leave some label without a rung (a range of N steps always has one) and are
    never drawn; if that leaves none, the longest possible is. No step at all: an empty result.
    """
    rounded = [round(float(step) / grain) * grain for step in wanted]
    larger = [step for step in rounded if step > 0]
    steps: dict[int, float] = {}
    for step, weight in zip(rounded, weights.tolist(), strict=True):
        if step == 0 and larger:
            step = min(larger)
        if 0 < step <= longest and weight > 0:
            steps[step] = steps.get(step, 0.0) + weight
    if not steps and longest >= grain:
        steps = {longest // grain * grain: 1.0}
    total = sum(steps.values())
    return {step: weight / total for step, weight in steps.items()}


def heap(units: Sequence[int]) -> int:
    """The coarsest round number that most values are multiples of, in units: 10 where volumes are noted in tens.

    Steps are multiples of it, so that a round label does not stand out among its distractors. "Most" is half way
    between what chance gives and all.
    """
    values = np.array([value for value in units if value != 0], dtype=np.int64)
    found = [grain for grain in HEAPS if len(values) and (values % grain == 0).mean() >= (1 + 1 / grain) / 2]
    return max(found, default=1)
