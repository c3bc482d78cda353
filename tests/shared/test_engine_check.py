"""The check of an engine before an evaluation, with engines and learners that know their log-probabilities by heart."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from shared import grpo
from shared.backend import Completion, Sampling
from shared.errors import SyncError
from shared.evaluation.answers import Answer
from shared.evaluation.engine_check import TOKENS, Forced, check_by_file, check_by_learner
from shared.runs import evaluations
from shared.storage import files
from tests.support.tiny import run_config

PROMPTS = [np.full(length, 5, np.int32) for length in (3, 9, 30, 1, 4, 4, 12)]


def law(prompt: np.ndarray, length: int) -> np.ndarray:
    """What every token's log-probability is."""
    return np.linspace(-1, -2, length, dtype=np.float32) - len(prompt) / 100


class Engine:
    """Answers 7 7 7 ..., off by `wrong` nats for the prompts of one length."""

    def __init__(self, wrong: float = 0.0, length: int = 30) -> None:
        self.wrong, self.length = wrong, length
        self.asked: list[Any] = []

    def generate(self, prompts: Any, sampling: Sampling, uniforms: Any) -> list[list[Completion]]:
        self.asked.append((list(prompts), sampling, uniforms))
        count = sampling.max_new_tokens
        return [
            [Completion(np.full(count, 7, np.int32), law(p, count) + self.wrong * (len(p) == self.length), False)]
            for p in prompts
        ]


class Scoring(Engine):
    """Says of the letters what the law says, off by `letters` nats; `turned` letters are told for one another."""

    def __init__(self, letters: float = 0.0, turned: int = 0) -> None:
        super().__init__()
        self.letters, self.turned = letters, turned

    def next_token_logprobs(self, texts: Any, tokens: Any) -> np.ndarray:
        self.texts = texts
        stated = np.float32([[letter_law(text, token) for token in tokens] for text in texts])
        return np.roll(stated, self.turned, axis=1) + np.float32(self.letters)


def letter_law(text: np.ndarray, token: int) -> float:
    return -len(text) / 100 - token / 10


class Backend:
    """One process of several, whose others see no fault."""

    name, process = "toy", 0

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.flags: list[bool] = []

    def any_process(self, flag: bool) -> bool:
        self.flags.append(flag)
        return flag

    def plain_logprobs(self, engine: Any, model: Any, prompts: Any, completions: Any) -> list[np.ndarray]:
        assert model == "folder"
        if len(completions[0].tokens) == 1:
            return [np.float32([letter_law(p, each.tokens[0])]) for p, each in zip(prompts, completions, strict=True)]
        return [law(prompt, len(each.tokens)) for prompt, each in zip(prompts, completions, strict=True)]


class Learner:
    """Knows the law, and scores whole batches."""

    def logprobs(self, batch: grpo.GroupBatch, which: str) -> np.ndarray:
        assert which == "policy" and batch.tokens.shape[0] >= 4
        found = np.zeros(batch.tokens.shape, np.float32)
        layout = batch.layout
        for row, groups in enumerate(batch.groups):
            prompt = batch.tokens[row][: layout.prompt][groups[: layout.prompt] == 0]
            for sample in range(layout.group):
                start = layout.prompt + sample * layout.completion
                length = int((groups[start : start + layout.completion] == 0).sum())
                found[row, start : start + length] = law(prompt, length)
        return np.where(batch.completion_mask > 0, found, 0)


def config(**sections: Any) -> Any:
    return run_config(**({"grpo": {"group_size": 2, "questions_per_step": 2, "mask_truncated": True}} | sections))


def test_a_right_engine_passes_and_what_was_seen_is_told():
    engine = Engine()
    found = check_by_file(config(), Backend(), engine, PROMPTS, "folder")
    assert found == {"engine": "toy Engine", "tokens": 4 * 12, "gap": 0, "bound": 1e-3}
    [(asked, sampling, uniforms)] = engine.asked
    assert [len(prompt) for prompt in asked] == [1, 4, 9, 30]  # the shortest, the longest, and two between
    assert sampling == Sampling(group_size=1, temperature=0.0, max_new_tokens=12) and uniforms is None


@pytest.mark.parametrize("options", [{}, {"learner": {"group_layout": False, "compute_dtype": "float32"}}])
def test_a_learner_scores_what_training_would_not_count(options):
    """Cut answers too, whatever `mask_truncated` says; rows are laid out as in training or one for each completion."""
    assert check_by_learner(config(**options), Backend(), Engine(), PROMPTS, Learner())["gap"] == 0
    with pytest.raises(SyncError):
        check_by_learner(config(**options), Backend(), Engine(wrong=0.01), PROMPTS, Learner())


@pytest.mark.parametrize(
    ("wrong", "dtype", "refused"),
    [(9e-4, "float32", False), (1.1e-3, "float32", True), (0.09, "bfloat16", False), (0.11, "bfloat16", True),
     (-0.11, "bfloat16", True), (math.nan, "bfloat16", True)],
)  # fmt: skip
def test_one_answer_beyond_the_bound_of_its_number_format_is_refused(wrong, dtype, refused):
    backend, options = Backend(), config(learner={"compute_dtype": dtype})
    if not refused:
        assert check_by_file(options, backend, Engine(wrong), PROMPTS, "folder")["gap"] == pytest.approx(
            abs(wrong), 1e-3
        )
        return
    with pytest.raises(SyncError) as caught:
        check_by_file(options, backend, Engine(wrong), PROMPTS, "folder")
    assert "toy Engine" in str(caught.value) and "\n" not in str(caught.value)
    assert backend.flags == [True]


def test_every_process_has_a_prompt_and_a_fault_that_another_one_saw_ends_this_one():
    engine, backend = Engine(), Backend(processes=6)
    check_by_file(config(), backend, engine, PROMPTS, "folder")
    assert len(engine.asked[0][0]) == 6
    backend.any_process = lambda flag: True
    with pytest.raises(SyncError):
        check_by_file(config(), backend, engine, PROMPTS, "folder")


def test_where_the_learner_scores_at_the_temperature_of_sampling_the_check_is_drawn_at_it():
    engine = Engine()
    options = config(grpo={"score_temperature": "sampling"}, rollout={"max_new_tokens": 500})
    check_by_file(options, Backend(), engine, PROMPTS[:2], "folder")
    [(asked, sampling, uniforms)] = engine.asked
    assert sampling.temperature == options.rollout.temperature and sampling.max_new_tokens == TOKENS
    assert uniforms.shape == (2, 1, TOKENS) and len(asked) == 2


FORCED = Forced(np.int32([90, 91]), np.arange(20, 25, dtype=np.int32), stop=(7,))


def test_of_a_forced_choice_every_letter_is_compared_behind_reasoning_and_phrase():
    engine = Scoring()
    found = check_by_file(config(), Backend(), engine, PROMPTS, "folder", FORCED)
    assert found == {
        "engine": "toy Scoring", "tokens": 48, "gap": 0, "letters": 5, "letters_gap": pytest.approx(0, abs=1e-6), "bound": 1e-3,
    }  # fmt: skip
    # The last token of a completion ends it, and the phrase follows.
    assert [text.tolist() for text in engine.texts] == [[5] * n + [7] * 11 + [90, 91] for n in (1, 4, 9, 30, 1)]


@pytest.mark.parametrize("wrong", [{"letters": 0.01}, {"turned": 1}, {"letters": math.nan}])
def test_letters_that_another_model_would_choose_are_refused(wrong):
    backend = Backend()
    check_by_file(config(), backend, Scoring(**wrong), PROMPTS, "folder")  # only a forced choice asks for them
    with pytest.raises(SyncError, match="nats a token that may come next, more than 0.001"):
        check_by_file(config(), backend, Scoring(**wrong), PROMPTS, "folder", FORCED)


def test_no_prompts_are_no_fault():
    assert check_by_file(config(), Backend(), Engine(wrong=9), [], "folder")["tokens"] == 0


def answers(letter: str) -> list[Answer]:
    return [
        Answer(
            question_id="q",
            patient="p",
            feature="f",
            section="s",
            predicted=letter,
            correct=True,
            truncated=False,
            tokens=3,
        )
    ]


def test_evaluations_of_an_engine_that_failed_are_removed_and_others_stay(tmp_path):
    right, wrong = {"engine": "torch HfEngine", "gap": 0.0}, {"engine": "torch VllmEngine", "gap": 0.0}
    evaluations.write(tmp_path, "before", answers("A"), [{"id": 1}], wrong)
    evaluations.write(tmp_path, "after", answers("B"), [{"id": 2}], right)
    with (
        pytest.raises(SyncError, match="apart"),
        evaluations.dropped_with("torch VllmEngine", tmp_path, first=True),
    ):
        raise SyncError("apart")
    assert not evaluations.is_done(tmp_path, "before") and evaluations.is_done(tmp_path, "after")
    assert not evaluations.answers_file(tmp_path, "before").exists()
    assert files.read_json(tmp_path / "evaluation" / "examples.json") == [{"id": 2, "when": "after"}]
    assert files.read_json(tmp_path / "evaluation" / "engines.json") == {"after": right}
    for engine, first, error in [("torch HfEngine", False, SyncError), ("torch HfEngine", True, ValueError)]:
        with pytest.raises(error), evaluations.dropped_with(engine, tmp_path, first=first):
            raise error("other")
        assert evaluations.is_done(tmp_path, "after")


def test_answers_of_an_engine_that_nobody_checked_do_not_count(tmp_path):
    evaluations.write(tmp_path, "before", answers("A"), [], {"engine": "torch HfEngine"})
    assert evaluations.is_done(tmp_path, "before")
    (tmp_path / "evaluation" / "engines.json").unlink()
    assert not evaluations.is_done(tmp_path, "before")
