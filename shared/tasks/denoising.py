"""Denoising questions: one value of a patient's record is masked; which of the options is it? (Spec: registry, c.)

Every random choice of a question is keyed by (seed, patient, feature, draw), so it comes out the same whatever the
order, the number of workers or the other questions asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from shared.errors import InputError
from shared.questions.record import LETTERS, MASK, Question
from shared.randomness import generator
from shared.registry.features import Feature
from shared.registry.leakage import hidden_with, most_informative
from shared.registry.patients import pseudonym
from shared.registry.store import Registry
from shared.tasks import balanced, choices
from shared.tasks.choices import OptionLaw
from shared.tasks.rules import QuestionRules
from shared.tasks.task import Task

NAME = "denoising"

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


def section_ranks(features: Sequence[Feature]) -> dict[str, int]:
    """The place of each visible feature's section in the order in which `render` shows sections."""
    visible = [feature for feature in features if feature.visible]
    order = list(dict.fromkeys((*FIRST_SECTIONS.values(), *(shown_section(feature.section) for feature in visible))))
    return {feature.name: order.index(shown_section(feature.section)) for feature in visible}


def later_features(features: Sequence[Feature]) -> dict[str, frozenset[str]]:
    """The features of later sections, for each visible feature: `causal` does not show them with it."""
    ranks = section_ranks(features)
    return {name: frozenset(other for other in ranks if ranks[other] > rank) for name, rank in ranks.items()}


def render(
    features: Sequence[Feature],
    texts: Mapping[str, str],
    *,
    masked: Collection[str] = (),
    sections: Sequence[str] | None = None,
) -> str:
    """A record as text: for each section its header and a line `name: value` for each feature shown.

    Shown are the features in `texts`, and those in `masked`, whose value reads [MASK]. Sections come in the order of
    `sections` (headers as shown), then in the order of the features, with the hospital's first. Features of a registry
    without sections stand below each other without a header.
    """
    blocks: dict[str, list[str]] = {header: [] for header in (*(sections or ()), *FIRST_SECTIONS.values())}
    for feature in features:
        value = MASK if feature.name in masked else texts.get(feature.name)
        if value is not None:
            header = FIRST_SECTIONS.get(feature.section, feature.section)
            blocks.setdefault(header, []).append(f"{feature.display_name}: {value}")
    return "\n\n".join("\n".join((header, *lines) if header else lines) for header, lines in blocks.items() if lines)


class Denoising:
    """Makes the questions of one split; `ask` is a pure function of its arguments and of what is given here.

    `balance`: each option is the right one equally often, given the options (`shared.tasks.balanced`). `rules` are fields of
    `QuestionRules`.
    """

    def __init__(
        self,
        registry: Registry,
        split: str,
        *,
        seed: int,
        oracle: Oracle | None = None,
        balance: bool = True,
        **rules: Any,
    ) -> None:
        self.rules = QuestionRules(**rules)
        self.balance = balance
        self.registry = registry
        self.seed = seed
        self.oracle = oracle
        self.records = registry.shown(split)
        self._by_name = {feature.name: feature for feature in registry.features}
        self._section = section_ranks(registry.features)
        if self.rules.causal and len(set(self._section.values())) < 2:
            raise InputError("causal = True: this registry's features stand in one section, so nothing comes later")
        sizes: dict[str, Any] = {"num_choices": self.rules.num_choices, "difficulty": self.rules.difficulty}
        self._training = choices.option_laws(registry, **sizes)
        natural: dict[str, OptionLaw] = {**self._training}
        self._laws = balanced.option_laws(registry, split, **sizes) if balance else natural
        self._hidden = {
            name: hidden_with(
                name,
                self.rules.mi_cutoff,
                leakage=registry.leakage,
                features=registry.features,
                statistics=registry.statistics,
                relations=registry.relations,
            )
            for name in self._laws
        }
        if self.rules.core_features or self.rules.core_kind != "any":
            self._reduce_to(self._core(self.rules.core_features, self.rules.core_kind))
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

    def possible(self, patient: str) -> list[str]:
        """The features that can be asked for about a patient."""
        return self._victims[patient]

    def victim(self, patient: str, draw: int) -> str:
        """The feature that a patient's question number `draw` (0, 1, ...) asks for.

        Each of a patient's possible features is asked for once before any comes again.
        """
        return self.victims(patient, draw, 1)[0]

    def victims(self, patient: str, draw: int, count: int) -> list[str]:
        """The features masked together in a patient's record number `draw`, none of which gives another away."""
        possible = self._victims[patient]
        turn, place = divmod(draw * count, len(possible))
        order = [possible[i] for i in generator(self.seed, patient, "victims", turn).permutation(len(possible))]
        chosen: list[str] = []
        for name in order[place:] + order[:place]:
            if len(chosen) < count and not any(name in self._hidden[c] or c in self._hidden[name] for c in chosen):
                chosen.append(name)
        return chosen

    def ask(self, patient: str, feature: str, draw: int, *, masked: Sequence[str] = ()) -> Question | None:
        """The question about `feature` of `patient`; `draw` tells apart several questions about the same value.

        `masked` are other features masked in the same record. None where this draw gives no question. Raises InputError
        where the patient has no value that can be asked for.
        """
        if feature not in self._victims.get(patient, ()):
            raise InputError(f"{feature}: this patient has no value of it that can be asked for")
        texts = self.records[patient]
        label, law = texts[feature], self._laws[feature]
        rng = generator(self.seed, patient, feature, draw)
        drawn = law.draw(label, rng)
        options = [drawn[i] for i in rng.permutation(len(drawn))]
        if not options or (self.balance and rng.random() >= law.accept(label, options)):
            return None
        if self.rules.option_order == "sorted":
            options.sort(key=self._by_name[feature].rank)
        shown = self._shown(texts, feature, masked, rng)
        target = self._by_name[feature]
        header = shown_section(target.section)
        accuracy, best = self._bayes(shown, feature, options)
        pseudonym = self.pseudonym(patient)
        where = f" in section {header}" if header else ""
        return Question(
            id=f"{self.registry.cohort}-{NAME}-{pseudonym}-{feature}-{draw}",
            cohort=self.registry.cohort,
            task=NAME,
            feature=feature,
            section=header,
            patient=pseudonym,
            context=render(self.registry.features, shown, masked=(feature, *masked)),
            question=f"Q1. What would be the masked value of '{target.display_name}'{where}?",
            choices=tuple(options),
            answer=LETTERS[options.index(label)],
            majority=LETTERS[int(np.argmax([self._training[feature].frequency(text) for text in options]))],
            bayes_accuracy=accuracy,
            bayes_answer=best,
        )

    def pseudonym(self, patient: str) -> str:
        """What a patient is called in questions."""
        return pseudonym(self._salt, patient)

    def _shown(
        self, texts: Mapping[str, str], victim: str, masked: Sequence[str], rng: np.random.Generator
    ) -> dict[str, str]:
        hidden = self._hidden[victim].union(masked, *(self._hidden[name] for name in masked))
        names = [name for name in texts if name != victim and name not in hidden]
        if self.rules.causal:
            names = [name for name in names if self._section[name] <= self._section[victim]]
        keep = self.rules.context_features - 1 - len(masked)
        if self.rules.context_features and keep < len(names):
            names = [names[i] for i in np.sort(rng.choice(len(names), max(keep, 0), replace=False))]
        return {name: texts[name] for name in names}

    def _bayes(self, shown: Mapping[str, str], victim: str, options: list[str]) -> tuple[float | None, str | None]:
        if self.oracle is None:
            return None, None
        posterior = np.asarray(self.oracle.posterior(shown, victim, options), dtype=np.float64)
        if self.balance:  # each option is the right one equally often, so values' own frequencies do not count
            posterior = posterior / np.asarray(self.oracle.posterior({}, victim, options), dtype=np.float64)
        else:
            law = self._training[victim]
            posterior = posterior * np.exp([law.option_log_likelihood(text, options) for text in options])
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
    oracle: Oracle | None = None,
    all_victims: bool = False,
    progress: Callable[[int], object] | None = None,
    **rules: Any,
) -> list[Question]:
    """Up to `count` questions about the patients of `split`, made by `balance` and `rules` (see `Denoising`).

    In each round one record of every patient is asked about; a round's order of patients is keyed by (seed, round), and
    the draw is the round's number. With `all_victims`, every value of one patient after the other instead. No two
    questions read the same; it ends early where rounds bring nothing new. `progress(1)` is called for each question.
    Raises InputError where no question is possible at all.
    """
    maker = Denoising(registry, split, seed=seed, oracle=oracle, **rules)
    patients = maker.patients()
    if not patients:
        raise InputError(f"no question is possible about the {split} patients: no value has a known distribution")
    made: list[Question] = []
    seen: set[bytes] = set()
    for question in _every(maker, patients) if all_victims else _rounds(maker, patients):
        if len(made) == count:
            break
        message = "\n".join((question.context, question.question, *question.choices))
        digest = hashlib.blake2b(message.encode(), digest_size=16).digest()
        if digest not in seen:
            seen.add(digest)
            made.append(question)
            if progress:
                progress(1)
    return made


def _every(maker: Denoising, patients: Sequence[str]) -> Iterator[Question]:
    for place in generator(maker.seed, "round", 0).permutation(len(patients)):
        for feature in maker.possible(patients[place]):
            question = maker.ask(patients[place], feature, 0)
            if question is not None:
                yield question


def _rounds(maker: Denoising, patients: Sequence[str]) -> Iterator[Question]:
    """Questions round by round, until so many rounds in a row as a patient has values bring no text that is new."""
    seen: set[tuple[str, ...]] = set()
    patience = max(len(maker.possible(patient)) for patient in patients)
    draw, idle = 0, 0
    while idle < patience:
        before = len(seen)
        for place in generator(maker.seed, "round", draw).permutation(len(patients)):
            patient = patients[place]
            together = maker.victims(patient, draw, maker.rules.masked)
            for feature in together:
                question = maker.ask(patient, feature, draw, masked=[name for name in together if name != feature])
                if question is not None:
                    seen.add((question.patient, question.feature, *question.choices))
                    yield question
        idle = idle + 1 if len(seen) == before else 0
        draw += 1


class _Denoising(Task):
    """See the top of this file."""

    def questions(
        self,
        registry: Registry,
        split: str,
        count: int,
        options: Mapping[str, Any],
        *,
        seed: int,
        progress: Callable[[int], object] | None = None,
    ) -> list[Question]:
        """See `questions`."""
        return questions(registry, split, count, seed=seed, progress=progress, **options)


TASK = _Denoising()
