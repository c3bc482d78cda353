"""Prompts: the original's, and the token ids that fit the limit."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from shared.errors import InputError
from shared.questions.prompts import PREFILL, SYSTEM_PROMPT, PromptStyle, chat_text, encode
from shared.questions.record import Question
from shared.tasks.prompts import prompt_tokens, user_message
from tests.support.golden_registry import cases, read

PLAIN = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</>{% endfor %}"
OPENING = PLAIN + "{% if add_generation_prompt %}<assistant>{% endif %}"
NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] != 'system' %}<{{ m['role'] }}>{{ m['content'] }}</>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
REFUSES_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + OPENING
)
UPPER_SYSTEM = (
    "{% for m in messages %}<{{ m['content'] | upper if m['role'] == 'system' else m['content'] }}>{% endfor %}"
)
# The original told models that open their own reasoning by these two paths (spec: registry, section c).
OPENED = ("Qwen/QwQ-32B", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B")
STYLE = {"style": PromptStyle(), "rows": None}


def tokenizer(template: str, name: str = "") -> PreTrainedTokenizerFast:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, chat_template=template, name_or_path=name)


def question(context: str = "age: [MASK]", name: str = "q") -> Question:
    return Question(
        id=name,
        cohort="synthetic",
        task="denoising",
        feature="age",
        section="[Baseline]",
        patient="p",
        context=context,
        question="Q1. Which?",
        choices=("yes", "no", "3"),
        answer="A",
        majority="B",
    )


@pytest.fixture(scope="module")
def golden_templates():
    return read("chat_templates.json.gz")


@pytest.mark.golden
@pytest.mark.parametrize("case", cases("chat_cases.jsonl.gz"))
def test_original_prompt(case, golden_templates):
    """The original's prompts, but for its two faults with templates and reasoning models (spec: registry, g 29)."""
    made = tokenizer(golden_templates[case["template"]])
    message, system, prefill = (
        case["user_message"],
        case["sys_prompt"] or "",
        "" if case["name_or_path"] in OPENED else PREFILL,
    )
    text = chat_text(made, message, system=system, prefill=prefill)
    expected = case["prompt"]
    if case["error"]:  # it stopped at a template that refuses a system role; here the user's turn says it
        turns = [{"role": "user", "content": f"{system}\n{message}"}, {"role": "assistant", "content": PREFILL}]
        whole = str(
            made.apply_chat_template(turns if prefill else turns[:1], tokenize=False, add_generation_prompt=not prefill)
        )
        expected = whole[: whole.rindex(PREFILL) + len(PREFILL)] if prefill else whole
    elif not prefill and expected.endswith(PREFILL):  # it forgot that this model opens its own reasoning
        expected = expected.removesuffix(PREFILL)
    assert text == expected


class TestText:
    """Templates of every temper."""

    def test_message_lists_the_options(self):
        assert user_message(question()) == "age: [MASK]\nQ1. Which?\nA. yes\nB. no\nC. 3"

    def test_ends_inside_the_assistants_turn(self):
        assert chat_text(tokenizer(OPENING), "hello") == (
            f"<system>{SYSTEM_PROMPT}</><user>hello</><assistant>{PREFILL}"
        )
        assert chat_text(tokenizer(OPENING), "hello", system="") == f"<user>hello</><assistant>{PREFILL}"

    def test_a_message_that_is_the_prefill_is_not_cut(self):
        assert chat_text(tokenizer(OPENING), PREFILL, system="") == f"<user>{PREFILL}</><assistant>{PREFILL}"

    @pytest.mark.parametrize("template", [NO_SYSTEM, REFUSES_SYSTEM])
    def test_a_system_prompt_that_a_template_loses_goes_to_the_user(self, template):
        made = tokenizer(template)
        assert chat_text(made, "hello") == f"<user>{SYSTEM_PROMPT}\nhello</><assistant>{PREFILL}"
        assert chat_text(made, "hello", prefill="") == f"<user>{SYSTEM_PROMPT}\nhello</><assistant>"

    def test_a_system_prompt_that_a_template_changes_goes_to_the_user(self):
        assert chat_text(tokenizer(UPPER_SYSTEM), "hello") == f"<{SYSTEM_PROMPT}\nhello><{PREFILL}"

    def test_a_template_that_is_of_no_use_is_an_input_error(self):
        refuses = tokenizer("{{ raise_exception('only images') }}")
        with pytest.raises(InputError, match="refuses a user's message: only images"):
            chat_text(refuses, "hello")
        drops = tokenizer(
            "{% for m in messages %}{% if m['role'] != 'assistant' %}{{ m['content'] }}{% endif %}{% endfor %}"
        )
        with pytest.raises(InputError, match="drops what the assistant's turn begins with"):
            chat_text(drops, "hello")


class TestTokens:
    """What fits `max_tokens`, and what becomes of the rest."""

    def test_are_those_of_the_text(self):
        made = tokenizer(OPENING)
        kept, [tokens], too_long = prompt_tokens(
            made, [question()], **STYLE, max_tokens=10_000, overlong="truncate_left"
        )
        assert tokens.dtype == np.int32
        assert made.decode(tokens) == chat_text(made, user_message(question()))
        assert (kept, too_long) == ([question()], 0)

    def test_no_special_token_is_added_twice(self):
        made = tokenizer("<bos>" + OPENING)
        made.add_special_tokens({"bos_token": "<bos>"})
        assert encode(made, "<bos>a").tolist() == [made.bos_token_id, *encode(made, "a").tolist()]

    def lengths(self, *contexts: str) -> tuple[PreTrainedTokenizerFast, list[Question], list[int]]:
        made = tokenizer(OPENING)
        questions = [question(context, f"q{index}") for index, context in enumerate(contexts)]
        return made, questions, [len(encode(made, chat_text(made, user_message(q)))) for q in questions]

    def test_a_long_prompt_keeps_its_end(self):
        made, questions, (short, long) = self.lengths("a", "b" * 40)
        kept, prompts, too_long = prompt_tokens(made, questions, **STYLE, max_tokens=short, overlong="truncate_left")
        assert kept == questions
        assert too_long == 1
        assert [len(tokens) for tokens in prompts] == [short, short]
        whole = encode(made, chat_text(made, user_message(questions[1])))
        assert prompts[1].tolist() == whole[long - short :].tolist()

    def test_a_long_prompt_is_left_out(self):
        made, questions, (short, _, _) = self.lengths("a", "b" * 40, "c")
        kept, prompts, too_long = prompt_tokens(made, questions, **STYLE, max_tokens=short, overlong="drop")
        assert [q.id for q in kept] == ["q0", "q2"]
        assert [made.decode(tokens) for tokens in prompts] == [chat_text(made, user_message(q)) for q in kept]
        assert too_long == 1

    def test_nothing_left_is_an_input_error(self):
        made, questions, (short, _) = self.lengths("a", "b")
        with pytest.raises(InputError, match=f"all 2 prompts are longer than rollout.max_prompt_tokens = {short - 1}"):
            prompt_tokens(made, questions, **STYLE, max_tokens=short - 1, overlong="drop")
        with pytest.raises(InputError, match="there are no questions"):
            prompt_tokens(made, [], **STYLE, max_tokens=short, overlong="drop")
