"""The small policies' tokenizer: it encodes anything, and gives a category the same tokens wherever it stands."""

from __future__ import annotations

import json
import shutil
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from shared.errors import InputError
from shared.policy.tokenizer import (
    END,
    PAD,
    SEPARATOR,
    START,
    VOCAB_MULTIPLE,
    check_in_embedding,
    embedding_rows,
    load_tokenizer,
    special_tokens,
    train_tokenizer,
)
from shared.questions.prompts import chat_text, encode
from shared.questions.record import LETTERS

CATEGORIES = ("Community-acquired", "Not performed", "Gram-negative rods", "Stage 3 or 4", "Unknown")
RECORD = """[Baseline Characteristics/Basic Data]
Age: 63
Sex: Male
Source of infection: {value}

[Initial Findings/Laboratory]
Lactate (mmol/L): 2.4
Chest X-ray: Not performed
Infection origin: [MASK]"""


def answer(value: str, letter: str) -> str:
    """As a worked answer has it."""
    return f"\nInfection origin: {value}. \\boxed{{{letter}}}"


QUESTION = "\nQ1. What would be the masked value of 'Infection origin' in section [Initial Findings/Laboratory]?"
OPTIONS = "".join(f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, CATEGORIES))
TEXTS = [
    text
    for value in CATEGORIES
    for text in (RECORD.format(value=value) + QUESTION + OPTIONS, answer(value, "A"))
    for _ in range(3)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "tokenizer"
    train_tokenizer(TEXTS, 1_024, path)
    return path


@pytest.fixture(scope="module")
def tokenizer(folder) -> PreTrainedTokenizerFast:
    return load_tokenizer(folder)


def pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return [tokenizer.decode([token]) for token in encode(tokenizer, text)]


@limits(deadline=None, max_examples=200)
@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=60))
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text)) == text


@pytest.mark.parametrize(
    "text", [*TEXTS, "패혈증 ≥ 3 µg/mL\r\n\t  é", "<|im_end|> \\boxed{E}", "'' in '' in ..[[]]{{}}"]
)
def test_texts_with_a_shape_come_back(tokenizer, text):
    assert tokenizer.decode(encode(tokenizer, text)) == text


def test_digits_stand_alone(tokenizer):
    for text in ("63", "2.45", "12345678901234567890", "Lactate (mmol/L): 17.31"):
        found = pieces(tokenizer, text)
        assert [piece for piece in found if any(c.isdigit() for c in piece)] == [c for c in text if c.isdigit()]


def test_option_letters_are_one_token_each(tokenizer):
    options, boxed = set(), set()
    for letter in LETTERS:
        option = pieces(tokenizer, f"\n{letter}. Unknown\n")
        assert option[0] == f"\n{letter}. "
        ended = pieces(tokenizer, answer("Unknown", letter))
        assert ended[-3:] == [". \\boxed{", letter, "}"]
        options.add(int(encode(tokenizer, f"\n{letter}. Unknown")[0]))
        boxed.add(int(encode(tokenizer, answer("Unknown", letter))[-2]))
    assert len(options) == len(boxed) == len(LETTERS)


@pytest.mark.parametrize("value", CATEGORIES)
def test_a_category_is_the_same_token_in_record_option_and_answer(tokenizer, value):
    record = encode(tokenizer, f"\nSource of infection: {value}\nAge: 3")
    option = encode(tokenizer, f"\nB. {value}\nC. Unknown")
    worked = encode(tokenizer, answer(value, "B"))
    [token] = {int(record[3]), int(option[1]), int(worked[3])}
    assert tokenizer.decode([token]) == value


def test_the_last_options_category_is_the_same_token(tokenizer):
    """The prompt goes on behind it with a special token."""
    text = f"\nA. Unknown\nB. Not performed{END}"
    assert pieces(tokenizer, text) == ["\nA. ", "Unknown", "\nB. ", "Not performed", END]


def test_a_number_is_its_digits_in_record_option_and_answer(tokenizer):
    for text in ("\nLactate (mmol/L): 2.4\n", "\nB. 2.4\n", "\nLactate (mmol/L): 2.4. \\boxed{B}", "\nC. -17.5\n"):
        found = pieces(tokenizer, text)
        assert [piece for piece in found if any(c.isdigit() for c in piece)] == [c for c in text if c.isdigit()]


def test_a_features_name_is_the_same_token_in_record_question_and_answer(tokenizer):
    record = pieces(tokenizer, "\nInfection origin: [MASK]")
    assert record == ["\n", "Infection origin", ": ", "[MASK]"]
    assert pieces(tokenizer, answer("Unknown", "C"))[:3] == record[:3]
    asked = pieces(tokenizer, "masked value of 'Infection origin' in section [Initial Findings/Laboratory]?")
    assert "Infection origin" in asked
    assert "[Initial Findings/Laboratory]" in asked


def test_special_tokens(tokenizer, folder):
    tokens = special_tokens(tokenizer, folder)
    assert tokens.pad == tokenizer.convert_tokens_to_ids(PAD)
    assert tokens.bos == tokenizer.convert_tokens_to_ids(START)
    assert tokens.eos == tokenizer.convert_tokens_to_ids(END)
    assert tokens.stop == (tokens.eos,)
    assert len({tokens.pad, tokens.bos, tokens.eos, tokenizer.convert_tokens_to_ids(SEPARATOR)}) == 4
    assert tokens.vocab_size % VOCAB_MULTIPLE == 0
    assert len(tokenizer) <= tokens.vocab_size < len(tokenizer) + VOCAB_MULTIPLE


def test_the_chat_template_is_phi_4s(tokenizer):
    prefill = "Let's think step by step."
    assert chat_text(tokenizer, "hello", system="be brief", prefill=prefill) == (
        f"<|im_start|>system<|im_sep|>be brief<|im_end|><|im_start|>user<|im_sep|>hello<|im_end|>"
        f"<|im_start|>assistant<|im_sep|>{prefill}"
    )
    assert pieces(tokenizer, "<|im_end|><|im_start|>") == [END, START]


def test_vocabulary_stays_within_its_bound(tmp_path):
    train_tokenizer(TEXTS, 300, tmp_path / "small")
    small = load_tokenizer(tmp_path / "small")
    assert 260 <= len(small) <= 300
    assert special_tokens(small, tmp_path / "small").vocab_size == 320
    assert small.decode(encode(small, string.printable)) == string.printable


def test_training_is_repeatable(folder, tmp_path):
    train_tokenizer(TEXTS, 1_024, tmp_path / "again")
    assert (tmp_path / "again" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def settings(folder, tmp_path, **contents):
    """A copy of the tokenizer's directory with these JSON files, and its tokenizer."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    for name, content in contents.items():
        (copy / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return load_tokenizer(copy), copy


class TestEnds:
    """A completion stops at whatever the tokenizer, config.json or generation_config.json calls an end."""

    @pytest.mark.parametrize(
        ("contents", "more"),
        [
            ({}, set()),
            ({"generation_config": {"eos_token_id": 5}}, {5}),
            ({"generation_config": {"eos_token_id": [5, 6]}}, {5, 6}),
            ({"generation_config": {"eos_token_id": []}}, set()),
            ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": None}}, set()),
            ({"generation_config": {}, "config": {}}, set()),
            ({"config": {"eos_token_id": 7}}, {7}),
            ({"config": {"eos_token_id": [7, 9]}}, {7, 9}),
            ({"config": {"eos_token_id": []}}, set()),
            ({"config": {"eos_token_id": 7}, "generation_config": {"eos_token_id": 5}}, {5, 7}),
            ({"config": {"eos_token_id": 7, "text_config": {"eos_token_id": [8, 0]}}}, {7, 8, 0}),
            ({"config": {"text_config": {"eos_token_id": 8}}, "generation_config": {"eos_token_id": None}}, {8}),
            ({"config": {"text_config": None, "vocab_size": 512, "eos_token_id": 511}}, {511}),
        ],
    )
    def test_all_of_them(self, folder, tmp_path, contents, more):
        made, copy = settings(folder, tmp_path, **contents)
        assert special_tokens(made, copy).stop == tuple(sorted({made.eos_token_id, *more}))

    @pytest.mark.parametrize("file", ["config", "generation_config"])
    @pytest.mark.parametrize("value", [True, False, "5", 3.0, -1, [5, -1], [None], [[5]], {"id": 5}, ""])
    def test_what_is_no_token_id_is_one_line(self, folder, tmp_path, file, value):
        made, copy = settings(folder, tmp_path, **{file: {"eos_token_id": value}})
        with pytest.raises(InputError) as caught:
            special_tokens(made, copy)
        assert str(caught.value).startswith(f"{copy / file}.json: eos_token_id is {value!r}; a token id, a list")
        assert "\n" not in str(caught.value)

    def test_nested_ones_are_named(self, folder, tmp_path):
        made, copy = settings(folder, tmp_path, config={"text_config": {"eos_token_id": "5"}})
        with pytest.raises(InputError, match="text_config.eos_token_id is '5'"):
            special_tokens(made, copy)

    @pytest.mark.parametrize("file", ["config", "generation_config"])
    @pytest.mark.parametrize("content", ["[]", "null", "3", '"x"', "{", ""])
    def test_a_file_that_holds_no_settings_is_one_line(self, folder, tmp_path, file, content):
        made, copy = settings(folder, tmp_path, **{file: content})
        with pytest.raises(InputError) as caught:
            special_tokens(made, copy)
        assert f"{copy / file}.json: " in str(caught.value) and "\n" not in str(caught.value)

    def test_without_one_no_completion_could_end(self, folder, tmp_path):
        made, copy = settings(folder, tmp_path)
        made.eos_token = None
        with pytest.raises(InputError, match="names no eos_token"):
            special_tokens(made, copy)
        (copy / "config.json").write_text('{"eos_token_id": [7, 9]}')
        assert special_tokens(made, copy).stop == (7, 9)


class TestEmbedding:
    """Token ids that a model has no row for are named before anything is computed."""

    def test_stop_tokens_beyond_it(self, folder, tmp_path):
        made, copy = settings(
            folder, tmp_path, config={"vocab_size": 512}, generation_config={"eos_token_id": [3, 600]}
        )
        with pytest.raises(InputError) as caught:
            special_tokens(made, copy)
        assert f"eos_token_id in generation_config.json of {copy}: token id 600 is beyond" in str(caught.value)
        assert "which has 512 rows" in str(caught.value)

    def test_the_tokenizers_own_end_beyond_it(self, folder, tmp_path):
        made, copy = settings(folder, tmp_path, config={"vocab_size": len(load_tokenizer(folder))})
        made.add_special_tokens({"eos_token": "<|stop|>"})
        with pytest.raises(
            InputError, match=r"the tokenizer's eos_token of .*: token '<\|stop\|>' \(id \d+\) is beyond"
        ):
            special_tokens(made, copy)

    @pytest.mark.parametrize(
        ("config", "rows"),
        [
            ({"vocab_size": 512}, 512),
            ({"text_config": {"vocab_size": 300}, "vocab_size": None}, 300),
            ({}, None),
            ({"vocab_size": "512"}, None),
            ({"vocab_size": 512, "pad_token_id": 511}, 512),
            ({"vocab_size": 512, "pad_token_id": -1}, 512),
        ],
    )
    def test_its_rows(self, folder, tmp_path, config, rows):
        assert embedding_rows(settings(folder, tmp_path, config=config)[1]) == rows
        assert embedding_rows(folder) is None

    def test_a_pad_token_beyond_it(self, folder, tmp_path):
        _, copy = settings(folder, tmp_path, config={"vocab_size": 512, "pad_token_id": 512})
        with pytest.raises(
            InputError, match="config.json: pad_token_id is 512, and the model's embedding has 512 rows; set"
        ):
            embedding_rows(copy)

    def test_an_added_token_is_named_and_a_learned_one_is_not(self, folder):
        """A tokenizer that was trained on records may hold a patient's words as one token."""
        made = load_tokenizer(folder)
        last = len(made) - 1
        made.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
        texts = [encode(made, "fine"), encode(made, "so <|extra|> it is")]
        with pytest.raises(InputError) as caught:
            check_in_embedding(made, texts, last + 1, "prompts")
        assert f"prompts: token '<|extra|>' (id {last + 1}) is beyond the model's embedding" in str(caught.value)
        with pytest.raises(InputError) as caught:
            check_in_embedding(made, [np.array([5, last])], last, "prompts")
        assert f"prompts: token id {last} is beyond" in str(caught.value)
        assert made.decode([last]) not in str(caught.value)
        check_in_embedding(made, texts, last + 2, "prompts")
        check_in_embedding(made, texts, None, "prompts")


class TestBrokenDirectories:
    """A folder that holds no tokenizer is named."""

    def refused(self, folder) -> str:
        with pytest.raises(InputError) as caught:
            load_tokenizer(folder)
        assert str(folder) in str(caught.value)
        return str(caught.value)

    def test_missing(self, tmp_path):
        assert "no tokenizer.json" in self.refused(tmp_path)
        assert "no such folder" in self.refused(tmp_path / "nowhere")
        (tmp_path / "trained").mkdir()
        (tmp_path / "trained" / "tokenizer.json").write_text("{}")
        assert f"is a run's work directory, not a model; give {tmp_path / 'trained'}" in self.refused(tmp_path)

    @pytest.mark.parametrize("share", [0.0, 0.5])
    def test_truncated(self, folder, tmp_path, share):
        copy = shutil.copytree(folder, tmp_path / "copy")
        whole = (copy / "tokenizer.json").read_bytes()
        (copy / "tokenizer.json").write_bytes(whole[: int(share * len(whole))])
        assert "not JSON" in self.refused(copy)

    def test_something_else(self, tmp_path):
        (tmp_path / "tokenizer.json").write_text("{}")
        assert "not a fast tokenizer" in self.refused(tmp_path)

    def test_a_base_model_without_a_chat_template(self, folder, tmp_path):
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / "chat_template.jinja").unlink()
        assert "no chat template" in self.refused(copy)
