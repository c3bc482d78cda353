"""Which box a run rewards and reports: by preset, in every step, and after a stop."""

from __future__ import annotations

import json

import numpy as np
import pytest

from shared.backend import Completion
from shared.config import RunConfig, grpo_preset, validate
from shared.errors import InputError
from shared.questions.prompts import encode, opens_reasoning
from shared.report.words import readings_in_words
from shared.runs import run
from shared.runs.workdir import claim
from shared.training.rollouts import Sampled
from tests.support.exam import exam, exam_tokenizer


def config_of(preset: str, **fields) -> RunConfig:
    return validate({"name": "run", "grpo": grpo_preset(preset) | fields, "rollout": {"max_new_tokens": 40}})


def test_the_papers_presets_keep_its_rule_and_modern_takes_the_last_box():
    rules = {name: config_of(name).grpo.answer_rule for name in ("paper", "paper_fixed", "modern")}
    assert rules == {"paper": "strict_first", "paper_fixed": "strict_first", "modern": "lenient_last"}
    assert "changed in: answer_rule" in run.config_line(config_of("modern", answer_rule="strict_first"))
    with pytest.raises(InputError, match="grpo.answer_rule = 'last': must be one of strict_first, lenient_last"):
        config_of("modern", answer_rule="last")


@pytest.mark.parametrize(
    ("rule", "prompt", "right"),
    [("strict_first", "q", "A"), ("lenient_last", "q", "B"), ("lenient_last", "q<think>\n", "")],
)
def test_a_step_is_rewarded_by_the_rule(tmp_path, rule, prompt, right):
    tokenizer = exam_tokenizer(tmp_path)
    written = encode(tokenizer, r"\boxed{A} no \boxed{\text{B}}")

    class Engine:
        def generate(self, prompts, sampling, numbers):
            one = Completion(written, np.zeros(len(written), np.float32), truncated=False)
            return [[one] * sampling.group_size for _ in prompts]

    questions = exam(2)
    assert [question.answer for question in questions] == ["A", "B"]
    prompts = [encode(tokenizer, prompt) for _ in questions]
    config = config_of("paper", answer_rule=rule, reward_format=0.5, group_size=2)
    found = Sampled(config, Engine(), tokenizer, questions, prompts).sample(questions, 0, 0)
    assert found.terms["answer"].tolist() == [[float(question.answer == right)] * 2 for question in questions]
    assert found.terms["format"].tolist() == [[0.5 * (right != "")] * 2] * 2


def test_where_a_prompt_ends_inside_the_reasoning(tmp_path):
    tokenizer = exam_tokenizer(tmp_path)
    inside = [
        opens_reasoning(tokenizer, encode(tokenizer, text))
        for text in (
            "x<think>\n",
            "x<think>\n\n</think>\n\nLet's",
            "</think><think>Okay",
            "plain",
            "<think>" + "far " * 99,
        )
    ]
    assert inside == [True, False, True, False, False]


def test_a_run_keeps_the_rule_that_it_was_begun_with(tmp_path):
    """One of an earlier version was rewarded by the paper's rule, whatever its preset: it says none, and goes on so."""
    claim(config_of("modern"), tmp_path)
    held = json.loads((tmp_path / "config.json").read_text())
    assert held["grpo"].pop("answer_rule") == "lenient_last"
    with pytest.raises(InputError, match=r"holds a run with another config \(it differs in grpo.answer_rule\)"):
        claim(config_of("modern", answer_rule="strict_first"), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(held))
    with pytest.raises(InputError, match=r"holds a run with another config \(it differs in grpo.answer_rule\)"):
        claim(config_of("modern"), tmp_path)
    claim(config_of("modern", answer_rule="strict_first"), tmp_path)


def test_both_readings_in_words():
    found = {"strict": {"accuracy": 0.25}, "lenient": {"accuracy": 0.5}, "differ": 1}
    assert readings_in_words(found) == (
        "first box, read strictly: 25.0%; last box, read leniently: 50.0%; the two read another letter in 1 question"
    )
