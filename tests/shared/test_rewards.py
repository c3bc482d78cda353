from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.config import GrpoConfig
from shared.errors import InputError
from shared.questions.boxes import answer_letter
from shared.questions.record import LETTERS, Question
from shared.tasks import rewards
from shared.tasks.catalogue import TASKS
from tests.support.golden_registry import cases


def ask(answer: str = "B") -> Question:
    return Question(
        id="q", cohort="synthetic", task="denoising", feature="lactate", section="labs", patient="p", context="c",
        question="?", choices=("1", "2", "3", "4", "5"), answer=answer, majority="A",
    )  # fmt: skip


def score(
    text: str, config: GrpoConfig | None = None, *, tokens: int = 10, truncated: bool = False
) -> dict[str, float]:
    return rewards.score(
        ask(), text, tokens=tokens, truncated=truncated, config=config or GrpoConfig(), max_new_tokens=100
    )


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("reward_cases.jsonl.gz"))
def test_golden_reward(case):
    assert float(answer_letter(case["completion"]) == case["label"]) == case["reward"]
    if case["label"] and case["label"] in LETTERS:
        terms = rewards.score(
            ask(case["label"]), case["completion"], tokens=1, truncated=False, config=GrpoConfig(), max_new_tokens=100
        )
        assert rewards.total(terms) == case["reward"]


@pytest.mark.parametrize(
    ("text", "rule", "terms"),
    [
        (r"\boxed{A}, or rather \boxed{B}", "strict_first", (0, 0.5)),
        (r"\boxed{A}, or rather \boxed{B}", "lenient_last", (1, 0.5)),
        (r"\boxed{\text{B}}", "strict_first", (0, 0)),
        (r"\boxed{\text{B}}", "lenient_last", (1, 0.5)),
        (r"\boxed{B}</think>", "strict_first", (1, 0.5)),
        (r"\boxed{B}</think>", "lenient_last", (0, 0)),
        (r"<think>\boxed{B}", "lenient_last", (0, 0)),
        (r"\boxed{C}", "lenient_last", (0, 0.5)),
    ],
)
def test_the_rule_decides_the_answer_and_the_format_alike(text, rule, terms):
    found = score(text, GrpoConfig(answer_rule=rule, reward_format=0.5))
    assert (found["answer"], found["format"]) == terms


def test_a_letter_beyond_the_options_is_a_format_by_the_papers_rule_alone():
    question = dataclasses.replace(ask("A"), choices=("1", "2"))
    options = {"tokens": 1, "truncated": False, "max_new_tokens": 100}
    for rule, wanted in (("strict_first", 0.5), ("lenient_last", 0.0)):
        config = GrpoConfig(answer_rule=rule, reward_format=0.5)
        assert rewards.score(question, r"\boxed{C}", config=config, **options)["format"] == wanted


def test_a_text_that_begins_inside_the_reasoning_answers_behind_it():
    options = {"tokens": 1, "truncated": False, "max_new_tokens": 100, "thinking": True}
    for rule, cut_off in (("strict_first", 1.0), ("lenient_last", 0.0)):
        config = GrpoConfig(answer_rule=rule)
        assert rewards.score(ask(), r"\boxed{B}", config=config, **options)["answer"] == cut_off
        assert rewards.score(ask(), r"x</think>\boxed{B}", config=config, **options)["answer"] == 1.0


def test_terms_are_weighted_and_kept_apart():
    config = GrpoConfig(reward_answer=2.0, reward_format=0.5, reward_length=0.25, overlong_soft=60)
    right = score(r"\boxed{B}", config)
    assert right == {"answer": 2.0, "format": 0.5, "length": 0.25, "overlong": 0.0}
    assert rewards.total(right) == 2.75
    assert score(r"\boxed{A}", config) == {"answer": 0.0, "format": 0.5, "length": 0.25, "overlong": 0.0}
    assert score("B", config, tokens=100, truncated=True) == {
        "answer": 0.0,
        "format": 0.0,
        "length": 0.0,
        "overlong": -1.0,
    }


def test_the_papers_reward_is_the_answer_alone():
    assert rewards.total(score(r"\boxed{B}", tokens=100, truncated=True)) == 1.0
    assert rewards.total(score(r"\boxed{C}")) == 0.0


def one_number(question, completion, *, tokens, **info):
    return tokens / 4


def own_terms(question, completion, *, truncated, thinking, rule, **info):
    return {"brief": 0.2 * (not truncated), "answer": float(thinking) + (rule == "lenient_last")}


def no_number(question, completion, **info):
    return {"answer": 1.0, "brief": float("nan")}


def a_term_that_is_taken(question, completion, **info):
    return {"answer": 1.0, "length": 0.5}


def rewarded_by(monkeypatch, function):
    line = dataclasses.replace(TASKS["denoising"], reward=f"{__name__}:{function.__name__}")
    monkeypatch.setitem(TASKS, "denoising", line)


def test_a_function_of_its_own_scores_a_tasks_completions(monkeypatch):
    config = GrpoConfig(reward_answer=2.0, reward_length=0.25, answer_rule="lenient_last")
    rewarded_by(monkeypatch, one_number)
    assert score("x", config) == {"answer": 5.0, "length": 0.25, "overlong": 0.0}
    rewarded_by(monkeypatch, own_terms)
    assert score("x", config) == {"brief": 0.2, "answer": 2.0, "length": 0.25, "overlong": 0.0}
    assert score("x", config, truncated=True)["brief"] == 0.0
    asked = {"tokens": 1, "truncated": False, "config": config, "max_new_tokens": 100, "thinking": True}
    assert rewards.score(ask(), "x", **asked)["answer"] == 4.0


def test_a_term_with_the_name_of_another_is_refused(monkeypatch):
    """It would be overwritten."""
    rewarded_by(monkeypatch, a_term_that_is_taken)
    with pytest.raises(InputError, match="its reward has a term 'length', which is made here; rename it"):
        score("x", GrpoConfig())


def test_a_reward_that_is_no_finite_number_is_refused(monkeypatch):
    rewarded_by(monkeypatch, no_number)
    with pytest.raises(
        InputError, match="task 'denoising': its reward gives nan for brief; it must be a finite number"
    ):
        score("x")


@pytest.mark.parametrize(
    ("tokens", "penalty"), [(1, 0.0), (60, 0.0), (70, -0.25), (80, -0.5), (100, -1.0), (120, -1.0)]
)
def test_overlong_penalty_is_linear(tokens, penalty):
    assert rewards.overlong_penalty(tokens, 60, 100) == penalty


@given(tokens=st.integers(0, 5_000))
def test_overlong_penalty_is_off_at_zero(tokens):
    assert rewards.overlong_penalty(tokens, 0, 2_000) == 0.0
