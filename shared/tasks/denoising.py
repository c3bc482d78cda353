"""Denoising questions: one value of a patient's record is masked; which of the options is it? (Spec: registry, c.)

Every random choice of a question is keyed by (seed, patient, feature, draw), so it comes out the same whatever the
order, the number of workers or the other questions asked for.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

import numpy as np

from shared.errors import InputError
from shared.questions import LETTERS, Question
from shared.randomness import generator
from shared.registry.features import Feature
from shared.registry.leakage import hidden_with, most_informative
from shared.registry.store import Registry
from shared.tasks.choices import OptionLaw, option_laws

TASK = "denoising"
MASK = "[MASK]"

# Shown first, and under another name: what a hospital is comes before its patient.
FIRST_SECTIONS = {"[Derived variable/Hospital factor]": "[Baseline Characteristics/Hospital Information]"}


class Oracle(Protocol):
    """Knows the law that a registry was drawn from."""

    def posterior(self, shown: Mapping[str, str], victim: str, choices: Sequence[str]) -> np.ndarray:
        """P(victim = choice | shown), up to a constant: `[choices]` float64."""
        ...


def shown_section(section: str) -> str:
    """The header under which a feature's section is shown."""
    return FIRST_SECTIONS.get(section, section)


def render(
    features: Sequence[Feature],
    texts: Mapping[str, str],
    *,
    masked: Collection[str] = (),
    sections: Sequence[str] | None = None,
) -> str:
    """A record as text: for each section its header and a line `name: value` for each feature shown.

    Shown are the features in `texts`, and those in `masked`, whose value reads [MASK]. Sections come in the order of
    `sections` (headers as shown), then in the order of the features, with the hospital's first.
    """
    blocks: dict[str, list[str]] = {header: [] for header in (*(sections or ()), *FIRST_SECTIONS.values())}
    for feature in features:
        value = MASK if feature.name in masked else texts.get(feature.name)
        if value is not None:
            header = FIRST_SECTIONS.get(feature.section, feature.section)
            blocks.setdefault(header, []).append(f"{feature.display_name}: {value}")
    return "\n\n".join("\n".join((header, *lines)) for header, lines in blocks.items() if lines)


class Denoising:
    """Makes the questions of one split; `ask` is a pure function of its arguments and of what is given here."""

    def __init__(
        self,
        registry: Registry,
        split: str,
        *,
        seed: int,
        num_choices: int = 5,
        difficulty: float = 2.0,
        mi_cutoff: float = 0.5,
        core_features: int = 0,
        core_kind: str = "any",
        context_features: int = 0,
        option_order: str = "shuffled",
        oracle: Oracle | None = None,
    ) -> None:
        if not 2 <= num_choices <= len(LETTERS):
            raise InputError(f"num_choices = {num_choices}: must be 2 to {len(LETTERS)}")
        self.registry = registry
        self.seed = seed
        self.context_features = context_features
        self.option_order = option_order
        self.oracle = oracle
        self.records = registry.shown(split)
        self._by_name = {feature.name: feature for feature in registry.features}
        self._laws = option_laws(registry, num_choices=num_choices, difficulty=difficulty)
        self._hidden = {
            name: hidden_with(
                name,
                mi_cutoff,
                leakage=registry.leakage,
                features=registry.features,
                statistics=registry.statistics,
            )
            for name in self._laws
        }
        if core_features or core_kind != "any":
            self._reduce_to(self._core(core_features, core_kind))
        self._victims = {patient: self._possible(texts) for patient, texts in self.records.items()}
        self._salt = str(registry.provenance.get("salt", ""))

    def _core(self, count: int, kind: str) -> set[str]:
        names = [name for name in self._laws if kind in ("any", self._by_name[name].kind)]
        if not names:
            raise InputError(f"core_kind = {kind!r}: the registry has no such feature that can be asked for")
        leakage = self.registry.leakage
        return set(most_informative(names, count or len(names), leakage=leakage, hidden=self._hidden))

    def _reduce_to(self, core: set[str]) -> None:
        self._laws = {name: law for name, law in self._laws.items() if name in core}
        self.records = {
            patient: {name: text for name, text in texts.items() if name in core}
            for patient, texts in self.records.items()
        }

    def _possible(self, texts: Mapping[str, str]) -> list[str]:
        return [name for name, law in self._laws.items() if name in texts and law.can_ask(texts[name])]

    def law(self, feature: str) -> OptionLaw:
        """The law of a feature's options."""
        return self._laws[feature]

    def patients(self) -> list[str]:
        """Patients about whom a question is possible, in the table's order."""
        return [patient for patient, victims in self._victims.items() if victims]

    def victim(self, patient: str, draw: int) -> str:
        """The feature that a patient's question number `draw` (0, 1, ...) asks for.

        Each of a patient's possible features is asked for once before any comes again.
        """
        victims = self._victims[patient]
        turn, place = divmod(draw, len(victims))
        return victims[int(generator(self.seed, patient, "victims", turn).permutation(len(victims))[place])]

    def ask(self, patient: str, feature: str, draw: int) -> Question:
        """The question about `feature` of `patient`; `draw` tells apart several questions about the same value.

        Raises InputError where the patient has no value that can be asked for.
        """
        if feature not in self._victims.get(patient, ()):
            raise InputError(f"{feature}: this patient has no value of it that can be asked for")
        texts = self.records[patient]
        label, law = texts[feature], self._laws[feature]
        rng = generator(self.seed, patient, feature, draw)
        options = law.draw(label, rng)
        choices = [options[i] for i in rng.permutation(len(options))]
        if self.option_order == "sorted":
            choices.sort(key=self._by_name[feature].rank)
        shown = self._shown(texts, feature, rng)
        target = self._by_name[feature]
        header = shown_section(target.section)
        accuracy, best = self._bayes(shown, feature, choices)
        pseudonym = hashlib.blake2b((self._salt + patient).encode(), digest_size=8).hexdigest()
        return Question(
            id=f"{self.registry.cohort}-{TASK}-{pseudonym}-{feature}-{draw}",
            cohort=self.registry.cohort,
            task=TASK,
            feature=feature,
            section=header,
            patient=pseudonym,
            context=render(self.registry.features, shown, masked=(feature,)),
            question=f"Q1. What would be the masked value of '{target.display_name}' in section {header}?",
            choices=tuple(choices),
            answer=LETTERS[choices.index(label)],
            majority=LETTERS[int(np.argmax([law.frequency(text) for text in choices]))],
            bayes_accuracy=accuracy,
            bayes_answer=best,
        )

    def _shown(self, texts: Mapping[str, str], victim: str, rng: np.random.Generator) -> dict[str, str]:
        hidden = self._hidden[victim]
        names = [name for name in texts if name != victim and name not in hidden]
        keep = self.context_features - 1
        if 0 <= keep < len(names):
            names = [names[i] for i in np.sort(rng.choice(len(names), keep, replace=False))]
        return {name: texts[name] for name in names}

    def _bayes(self, shown: Mapping[str, str], victim: str, choices: list[str]) -> tuple[float | None, str | None]:
        if self.oracle is None:
            return None, None
        law = self._laws[victim]
        likelihood = [math.exp(law.option_log_likelihood(text, choices)) for text in choices]
        posterior = np.asarray(self.oracle.posterior(shown, victim, choices), dtype=np.float64) * likelihood
        total = posterior.sum()
        if not total > 0:
            raise ValueError(f"the oracle gives no option of {victim} a probability above 0")
        best = int(np.argmax(posterior))
        return float(posterior[best] / total), LETTERS[best]


def questions(
    registry: Registry,
    split: str,
    count: int,
    *,
    seed: int,
    num_choices: int = 5,
    difficulty: float = 2.0,
    mi_cutoff: float = 0.5,
    core_features: int = 0,
    core_kind: str = "any",
    context_features: int = 0,
    option_order: str = "shuffled",
    oracle: Oracle | None = None,
    progress: Callable[[int], object] | None = None,
) -> list[Question]:
    """Up to `count` questions about the patients of `split`: in each round one about every patient.

    A round's order of patients is keyed by (seed, round); the draw is the round's number. No two questions read the
    same; it ends early where a whole round brings nothing new. `progress(1)` is called for each question. Raises
    InputError where no question is possible at all.
    """
    maker = Denoising(
        registry,
        split,
        seed=seed,
        num_choices=num_choices,
        difficulty=difficulty,
        mi_cutoff=mi_cutoff,
        core_features=core_features,
        core_kind=core_kind,
        context_features=context_features,
        option_order=option_order,
        oracle=oracle,
    )
    patients = maker.patients()
    if not patients:
        raise InputError(f"no question is possible about the {split} patients: no value has a known distribution")
    made: list[Question] = []
    seen: set[bytes] = set()
    draw, before = 0, -1
    while len(made) > before:
        before = len(made)
        for position in generator(seed, "round", draw).permutation(len(patients)):
            if len(made) == count:
                return made
            patient = patients[position]
            question = maker.ask(patient, maker.victim(patient, draw), draw)
            message = "\n".join((question.context, question.question, *question.choices))
            digest = hashlib.blake2b(message.encode(), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                made.append(question)
                if progress:
                    progress(1)
        draw += 1
    return made
