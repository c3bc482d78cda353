"""Options that tell nothing: given what is offered, each option is the right one equally often.

A label's frequency alone answers a question about a rare finding (`no`), and a ladder around a label is most often centred
where the values are. A policy that is rewarded for answers finds both before it reads a case. Here the law of the options
and the choice of what is asked make the label uniform among the options: for numbers by construction, for categories by
asking for frequent values less often (`OptionLaw.accept`).

Distractors come from the values of the patients asked about, training or held-out: a label and a distractor are then drawn
alike, whatever sampling did to the training patients' frequencies. Held-out values that training patients do not have
are neither asked for nor offered.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from shared.registry.features import as_number, to_units, units_text, value_text
from shared.registry.statistics import training_numbers
from shared.registry.store import Registry
from shared.tasks.choices import OptionLaw

PAPER_DIFFICULTY = 2.0  # at this, options spread over the whole distribution
COLLISIONS = 0.5  # share of phases at which two options may coincide before the law is given up for `WindowLaw`
PHASES = 64


@dataclasses.dataclass(frozen=True)
class WindowLaw:
    """Values that are about as frequent as the label: a window of N neighbours in the order of frequency, drawn uniformly.

    With at most N values all are offered. `weights` are shares of patients, the most frequent first.
    """

    weights: Mapping[str, float]
    num_choices: int

    def can_ask(self, label: str) -> bool:
        """Another value than these would be known by that."""
        return label in self.weights and len(self.weights) >= 2

    def _windows(self, label: str) -> range:
        """Where windows with the label begin."""
        rank = list(self.weights).index(label)
        last = len(self.weights) - self.num_choices
        return range(max(0, rank - self.num_choices + 1), min(rank, max(last, 0)) + 1)

    def draw(self, label: str, rng: np.random.Generator) -> list[str]:
        """The label and its distractors, in the order of frequency."""
        start = int(rng.choice(np.array(self._windows(label))))
        return list(self.weights)[start : start + self.num_choices]

    def frequency(self, text: str) -> float:
        """The value's share of patients."""
        return self.weights.get(text, 0.0)

    def accept(self, label: str, choices: Sequence[str]) -> float:
        """How often a question with these options is asked of a patient whose value is `label`."""
        joint = {text: self.frequency(text) / len(self._windows(text)) for text in choices}
        return min(joint.values()) / joint[label]


@dataclasses.dataclass(frozen=True, eq=False)
class QuantileLaw:
    """Values at equal steps of probability; the label's place among them is uniform.

    `values` `[patients]` are sorted, in units of the last decimal shown. The label's place p in their distribution is
    uniform (drawn within the share of its value); with p its rung is uniform whatever the other options are. `blocks`
    divides the distribution: 1 spreads the options over all of it, 2 over half, and so on.
    """

    decimals: int
    values: np.ndarray
    num_choices: int
    blocks: int

    def can_ask(self, label: str) -> bool:
        """Numbers among `values`, as all other options are: another would be known by that."""
        return not math.isnan(as_number(label)) and self.frequency(label) > 0

    def draw(self, label: str, rng: np.random.Generator) -> list[str]:
        """The label and its distractors in ascending order; empty where two would be the same."""
        units = to_units(float(label), self.decimals)
        low, high = np.searchsorted(self.values, units, "left"), np.searchsorted(self.values, units, "right")
        place = min(low + rng.random() * (high - low), len(self.values) - 1e-6) / len(self.values)
        block, phase = divmod(place * self.blocks * self.num_choices, self.num_choices)
        rung, phase = int(phase), phase % 1
        options = self.at(int(block), phase)
        options[rung] = units
        return [units_text(option, self.decimals) for option in options] if len(set(options)) == len(options) else []

    def at(self, block: int, phase: float) -> list[int]:
        """The values at the N rungs of a block, for a phase in [0, 1)."""
        rungs = block * self.num_choices + np.arange(self.num_choices) + phase
        places = np.minimum(
            (rungs / (self.blocks * self.num_choices) * len(self.values)).astype(int), len(self.values) - 1
        )
        return [int(value) for value in self.values[places]]

    def frequency(self, text: str) -> float:
        """The value's share of patients."""
        units = to_units(float(text), self.decimals)
        low, high = np.searchsorted(self.values, units, "left"), np.searchsorted(self.values, units, "right")
        return float(high - low) / len(self.values)

    def accept(self, label: str, choices: Sequence[str]) -> float:
        """Always: the label's rung is uniform."""
        return 1.0

    def collisions(self) -> float:
        """The share of option sets with two equal options."""
        phases = (np.arange(PHASES) + 0.5) / PHASES
        sets = [self.at(block, phase) for block in range(self.blocks) for phase in phases]
        return float(np.mean([len(set(options)) < len(options) for options in sets]))


def option_laws(registry: Registry, split: str, *, num_choices: int, difficulty: float) -> dict[str, OptionLaw]:
    """The law of every feature that can be asked for about the patients of a split."""
    table = registry.split(split)
    laws: dict[str, OptionLaw] = {}
    for feature in registry.features:
        statistics = registry.statistics.get(feature.name)
        if statistics is None:
            continue
        if statistics.finite:
            texts = Counter(value_text(feature, value) for value in table[feature.name].dropna())
            counts = {text: texts[text] for text in statistics.vocab if texts[text]}
            laws[feature.name] = category_law(counts, num_choices=num_choices)
            continue
        known = training_numbers(registry.train, feature.name)
        numbers = training_numbers(table, feature.name)
        inside = numbers[(numbers >= known.min()) & (numbers <= known.max())] if len(known) else known
        if len(inside):
            units = [to_units(number, feature.decimals) for number in inside]
            laws[feature.name] = number_law(units, feature.decimals, num_choices=num_choices, difficulty=difficulty)
    return laws


def number_law(units: Sequence[int], decimals: int, *, num_choices: int, difficulty: float) -> QuantileLaw | WindowLaw:
    """The law of a number from its values in units; values that pile up are treated as categories."""
    law = QuantileLaw(decimals, np.sort(np.array(units, dtype=np.int64)), num_choices,
                      max(1, round(PAPER_DIFFICULTY / difficulty)))  # fmt: skip
    while law.blocks > 1 and law.collisions() > COLLISIONS:
        law = dataclasses.replace(law, blocks=law.blocks // 2)
    if law.collisions() <= COLLISIONS:
        return law
    found, counts = np.unique(law.values, return_counts=True)
    texts = {units_text(int(unit), decimals): int(count) for unit, count in zip(found, counts, strict=True)}
    return category_law(texts, num_choices=num_choices)


def category_law(counts: Mapping[str, int], *, num_choices: int) -> WindowLaw:
    """The law of a category from how many patients have each value."""
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return WindowLaw({text: count / total for text, count in ranked}, num_choices)
