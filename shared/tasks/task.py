"""What a task is: it makes questions, words them, and scores what a policy writes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from shared.questions import letters
from shared.questions.record import Question
from shared.registry.leakage import hidden_with
from shared.registry.store import Registry


class Task(Protocol):
    """What a task's file offers as `TASK`. A new task inherits from this, writes `questions`, and leaves the rest where it suits.

    What is known of a task before its file is loaded stands in its line of `shared.tasks.catalogue`.
    """

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
        """Up to `count` questions about the patients of `split` ("train" or "valid").

        `options`: what the config's section `data` says of the options in the task's line; `balance` is True or False for this
        split. The first questions must not depend on `count`. `progress(1)` is called for each question. Raises InputError
        where no question is possible.
        """
        ...

    def message(self, question: Question) -> str:
        """The user's message of a question's prompt."""
        return letters.message(question)

    def reward(self, question: Question, completion: str, **info: Any) -> float | Mapping[str, float]:
        """What a completion is worth: one number, or terms by name; see `shared.tasks.rewards`."""
        return letters.reward(question, completion, **info)

    def columns(self, registry: Registry, feature: str, mi_cutoff: float) -> list[str]:
        """The registry's columns that a table's model may read to answer for `feature`; asked where `table_answers` is True.

        All that are visible, but for those that give the feature away by more than `mi_cutoff` nats.
        """
        hidden = hidden_with(
            feature,
            mi_cutoff,
            leakage=registry.leakage,
            features=registry.features,
            statistics=registry.statistics,
            relations=registry.relations,
        )
        visible = [other.name for other in registry.features if other.visible and other.name != feature]
        return [name for name in visible if name not in hidden]

    def words(self, registry: Registry) -> Collection[str]:
        """Texts in its records that are no patient's own, beside those of `shared.preparation.vocabulary.registry_words`."""
        return ()
