"""How prompts begin an answer, thinking and dates: chosen from the template, kept with a run and the models that it writes."""

from __future__ import annotations

import datetime
import stat
from pathlib import Path

import pytest
from transformers.utils import chat_template_utils

from shared.config import ModelConfig, RunConfig, validate
from shared.errors import InputError
from shared.questions import prompt_style
from shared.questions.prompts import PREFILL, SYSTEM_PROMPT, PromptStyle
from shared.questions.turns import end_of_turn, end_of_turn_warning
from tests.support import chats
from tests.support.chats import byte_tokenizer
from tests.support.golden_folder import GOLDEN, document, needs

TEMPLATES = GOLDEN / "registry" / "chat_templates.json.gz"
SYSTEM = f"<|system|>{SYSTEM_PROMPT}<|end|>"


def chosen(template: str, folder: Path, **fields: str) -> PromptStyle:
    return prompt_style.choose(
        ModelConfig(path=str(folder), **fields), folder, byte_tokenizer(template, name=str(folder))
    )


def prompt(template: str, style: PromptStyle, **options: str) -> str:
    return style.text(byte_tokenizer(template), "hello", **options)


class TestPrefill:
    """Whether an answer is begun for the model: by what its template is, not by how its folder is called."""

    @pytest.mark.parametrize(
        ("template", "prefill"),
        [
            (chats.PLAIN, PREFILL),
            (chats.OPENS, ""),
            (chats.FORGETS, ""),
            (chats.DEMANDS, ""),
            (chats.SWITCHED, PREFILL),
            (chats.SWITCHED_ON, ""),
            (chats.SWITCHED_OFF, PREFILL),
            (chats.TODAY, PREFILL),
        ],
    )
    @pytest.mark.parametrize("name", ["trained", "phi4-vs-deepseek-r1-baseline", "QwQ-32B", "policy"])
    def test_of_each_kind(self, template, prefill, name, tmp_path):
        assert chosen(template, tmp_path / name).prefill == prefill

    @pytest.mark.golden
    @needs("registry")
    def test_of_templates_as_models_have_them(self, tmp_path):
        found = {name: chosen(template, tmp_path).prefill for name, template in document(TEMPLATES).items()}
        assert {name for name, prefill in found.items() if not prefill} == {"r1", "qwq"}

    @pytest.mark.parametrize("template", [chats.PLAIN, chats.OPENS, chats.SWITCHED])
    @pytest.mark.parametrize("prefill", ["", "Well,", " e \n", "<think>\nOK</think>"])
    def test_a_given_one_stands_to_the_letter(self, template, prefill, tmp_path):
        style = chosen(template, tmp_path, prefill=prefill)
        assert style.prefill == prefill
        assert prompt(template, style).endswith(
            "hello<|end|><|assistant|>" + prefill if template == chats.PLAIN else prefill
        )

    def test_words_of_the_template_behind_it_are_not_mistaken_for_it(self):
        assert prompt(chats.PLAIN, PromptStyle(prefill="end")) == f"{SYSTEM}<|user|>hello<|end|><|assistant|>end"


class TestThinking:
    """A template's switch, and what comes of it."""

    TURN = f"<|system|>\n{SYSTEM_PROMPT}<|end|>\n<|user|>\nhello<|end|>\n<|assistant|>\n"

    @pytest.mark.parametrize(
        ("thinking", "end", "words"),
        [
            (
                "auto",
                f"<think>\n\n</think>\n\n{PREFILL}",
                "thinking is off: the template writes a <think> that is closed",
            ),
            (
                "off",
                f"<think>\n\n</think>\n\n{PREFILL}",
                "thinking is off: the template writes a <think> that is closed",
            ),
            ("on", "", "answers begin as the model likes; thinking is on: the model begins it"),
        ],
    )
    def test_of_a_model_that_may_think(self, thinking, end, words, tmp_path):
        style = chosen(chats.SWITCHED, tmp_path, thinking=thinking)
        assert prompt(chats.SWITCHED, style) == self.TURN + end
        assert words in prompt_style.style_line(style, ModelConfig(), byte_tokenizer(chats.SWITCHED))

    @pytest.mark.parametrize(
        ("template", "fields", "end", "words"),
        [
            (chats.SWITCHED, {"prefill": ""}, "<|assistant|>\n", "thinking is on: the model begins it"),
            (chats.SWITCHED_ON, {}, "<|assistant|><think>\n", "thinking is on: the template begins it"),
            (chats.SWITCHED_ON, {"thinking": "off"}, f"<think>\n</think>\n\n{PREFILL}", "thinking is off"),
            (chats.SWITCHED_OFF, {}, f"<|assistant|>{PREFILL}", "thinking is off: the answer's beginning stands"),
            (chats.SWITCHED_OFF, {"thinking": "off"}, f"</think>{PREFILL}", "thinking is off: the template writes"),
            (chats.SWITCHED_OFF, {"thinking": "on"}, "<|assistant|><think>", "thinking is on: the template begins it"),
            (chats.OPENS, {"thinking": "on"}, "<|assistant|><think>\n", "thinking is on: the template begins it"),
            (chats.OPENS, {"prefill": "Well,"}, "<|assistant|>Well,", "thinking is off: the answer's beginning stands"),
            (chats.FORGETS, {}, "<|assistant|>", "thinking is on: the model begins it"),
            (chats.PLAIN, {"thinking": "off"}, f"<|assistant|>{PREFILL}", PREFILL),
        ],
    )
    def test_of_each_kind(self, template, fields, end, words, tmp_path):
        style = chosen(template, tmp_path, **fields)
        assert prompt(template, style).endswith(end)
        assert words in prompt_style.style_line(style, ModelConfig(), byte_tokenizer(template))

    def test_of_an_ordinary_model_nothing_is_said(self):
        assert "think" not in prompt_style.style_line(
            PromptStyle(prefill="So"), ModelConfig(), byte_tokenizer(chats.PLAIN)
        )

    @pytest.mark.parametrize(
        ("template", "thinking"),
        [(chats.PLAIN, "on"), (chats.OPENS, "off"), (chats.FORGETS, "off"), (chats.TODAY, "on")],
    )
    def test_without_a_switch_it_is_refused(self, template, thinking, tmp_path):
        with pytest.raises(InputError, match=f"model.thinking = '{thinking}': the chat template of .* has no switch"):
            chosen(template, tmp_path, thinking=thinking)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"path": "x", "thinking": "on", "prefill": "So"}, "model.prefill = 'So': must be 'auto' or empty"),
            ({"thinking": "on"}, "model.thinking = 'on': needs a `path`"),
            ({"thinking": "yes"}, "model.thinking = 'yes': must be one of auto, on, off"),
            ({"template_date": "26 Nov 2026"}, "model.template_date = '26 Nov 2026': must be a day such as 2026-11-26"),
            ({"template_date": "20261126"}, "model.template_date = '20261126': must be a day such as 2026-11-26"),
            ({"template_date": "2026-02-30"}, "model.template_date = '2026-02-30': must be a day such as 2026-11-26"),
        ],
    )
    def test_a_config_that_cannot_be(self, fields, words):
        with pytest.raises(InputError) as caught:
            validate({"name": "run", "model": fields})
        assert words in str(caught.value)


class Clock(datetime.datetime):
    """What Transformers takes for now."""

    @classmethod
    def now(cls, tz=None):
        return cls(2024, 2, 29, 15, 4)


class TestDate:
    """A template that shows today."""

    def test_is_the_one_that_transformers_would_write_on_that_day(self, tmp_path, monkeypatch):
        style = chosen(chats.TODAY, tmp_path, template_date="2024-02-29")
        assert prompt(chats.TODAY, style) == (
            f"<|system|>Cutting Knowledge Date: December 2023\nToday Date: 29 Feb 2024\n\n{SYSTEM_PROMPT}<|end|>"
            f"<|user|>hello<|end|><|assistant|>{PREFILL}"
        )
        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        turns = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "hello"}]
        theirs = byte_tokenizer(chats.TODAY).apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert prompt(chats.TODAY, style) == theirs + PREFILL

    @pytest.mark.parametrize(
        ("template", "shown", "fields"),
        [
            (chats.TODAY, True, {}),
            (chats.DEFAULT_DAY, True, {}),
            (chats.MINUTE, True, {}),
            (chats.WRITTEN_DAY, False, {}),
            (chats.PLAIN, False, {}),
            (chats.THINKING_DAY, True, {"thinking": "on"}),
            (chats.THINKING_DAY, False, {"thinking": "off"}),
            (chats.ANSWERING_DAY, True, {}),
            (chats.ANSWERING_DAY, False, {"prefill": ""}),
        ],
    )
    def test_is_kept_where_the_template_shows_it(self, template, shown, fields, tmp_path, monkeypatch):
        monkeypatch.setattr(prompt_style, "today", lambda: "2026-11-26")
        style = chosen(template, tmp_path, **fields)
        assert style.date == ("2026-11-26" if shown else "")
        told = prompt_style.style_line(style, ModelConfig(template_date="2026-01-01"), byte_tokenizer(template))
        assert ("the template's today is 2026-11-26" if shown else "model.template_date changes nothing") in told
        texts = {prompt(template, style, system=system) for system in (SYSTEM_PROMPT, "")}
        monkeypatch.setattr(chat_template_utils, "datetime", Clock)
        assert {prompt(template, style, system=system) for system in (SYSTEM_PROMPT, "")} == texts

    def test_that_is_written_down_stays(self, tmp_path):
        assert "Today Date: 26 Jul 2024\n" in prompt(chats.WRITTEN_DAY, chosen(chats.WRITTEN_DAY, tmp_path))

    def test_of_an_earlier_evaluation_counts_unless_another_is_given(self, tmp_path, monkeypatch):
        monkeypatch.setattr(prompt_style, "today", lambda: "2026-11-27")
        earlier, made = PromptStyle(date="2026-11-26"), byte_tokenizer(chats.TODAY)
        assert prompt_style.choose(ModelConfig(), tmp_path, made, earlier=earlier).date == "2026-11-26"
        prompt_style.write(tmp_path, PromptStyle(date="2026-11-20"))
        assert prompt_style.choose(ModelConfig(), tmp_path, made, earlier=earlier).date == "2026-11-20"
        given = ModelConfig(template_date="2025-01-02")
        assert prompt_style.choose(given, tmp_path, made, earlier=earlier).date == "2025-01-02"

    @pytest.mark.parametrize(("days", "agree"), [(("2026-11-26",) * 2, True), (("2026-11-26", "2026-11-27"), False)])
    def test_must_be_the_same_in_all_processes(self, days, agree):
        numbers = [datetime.date.fromisoformat(day).toordinal() for day in days]
        flags = [[bool(number >> bit & 1) for bit in range(22)] for number in numbers]
        both = [any(pair) for pair in zip(*flags, strict=True)] + [not agree]

        class Processes:
            """What `any_process` answers to each of the two."""

            processes = 2

            def __init__(self):
                self.answers = iter(both)

            def any_process(self, flag):
                return next(self.answers)

        for day in days:
            if agree:
                prompt_style.check_same_day(PromptStyle(date=day), Processes())
            else:
                with pytest.raises(InputError, match="give --template_date"):
                    prompt_style.check_same_day(PromptStyle(date=day), Processes())
        prompt_style.check_same_day(PromptStyle(), Processes())


class Process:
    """One of two processes, and nothing else of a backend."""

    def __init__(self, process: int = 0):
        self.process = process

    def barrier(self):
        pass


class Learner:
    """Writes a model directory."""

    def export(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        prompt_style.write(folder, PromptStyle(prefill="of the model that was trained"))


@pytest.fixture
def policy(tmp_path) -> Path:
    folder = tmp_path / "phi4-vs-deepseek-r1-baseline"
    byte_tokenizer(chats.TODAY).save_pretrained(folder)
    return folder


class TestRun:
    """Chosen as a run begins, and the same ever after."""

    def config(self, policy: Path, **sections: dict) -> RunConfig:
        return validate({"name": "run", "model": {"path": str(policy)}, **sections})

    def test_a_resume_on_another_day_renders_the_same(self, policy, tmp_path, monkeypatch):
        config, workdir = self.config(policy), tmp_path / "run"
        styles = []
        for day in ("2026-11-26", "2026-11-27"):
            monkeypatch.setattr(prompt_style, "today", lambda day=day: day)
            styles.append(prompt_style.of_run(config, Process(), workdir, policy))
        assert styles == [PromptStyle(date="2026-11-26")] * 2
        assert prompt_style.of_run(config, Process(1), workdir, policy) == styles[0]
        assert stat.S_IMODE((workdir / "prompts.json").stat().st_mode) == 0o600
        assert prompt_style.of_run(config, Process(), tmp_path / "other", policy).date == "2026-11-27"

    def test_goes_on_from_its_checkpoints_alone(self, policy, tmp_path, monkeypatch):
        """Each process, and each start, with a work directory of its own."""
        config = self.config(policy, checkpoint={"folder": str(tmp_path / "saved")})
        monkeypatch.setattr(prompt_style, "today", lambda: "2026-11-26")
        begun = prompt_style.of_run(config, Process(), tmp_path / "first", policy)
        monkeypatch.setattr(prompt_style, "today", lambda: "2026-11-27")
        assert prompt_style.of_run(config, Process(1), tmp_path / "elsewhere", policy) == begun
        assert prompt_style.of_run(config, Process(), tmp_path / "second", policy) == begun
        assert prompt_style.recorded(config, tmp_path / "third") == begun
        prompt_style.write(tmp_path / "second", PromptStyle(date="2026-11-27"))
        with pytest.raises(InputError, match=r"prompts.json in .*second and in .*saved say different things"):
            prompt_style.of_run(config, Process(), tmp_path / "second", policy)

    def test_a_process_that_does_not_see_it_says_so(self, policy, tmp_path):
        with pytest.raises(InputError, match="process 1 does not see the prompts.json"):
            prompt_style.of_run(self.config(policy), Process(1), tmp_path / "run", policy)

    def test_a_model_that_it_writes_has_it(self, tmp_path, monkeypatch):
        """The trained model is called otherwise and used later; only what is asked for anew is different."""
        style = PromptStyle(prefill="Well,", thinking="off", date="2026-11-26")
        prompt_style.export(Learner(), tmp_path / "trained", style, first=True)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["trained"]
        monkeypatch.setattr(prompt_style, "today", lambda: "2026-12-24")
        dated = byte_tokenizer(chats.TODAY)
        assert prompt_style.choose(ModelConfig(), tmp_path / "trained", dated) == style
        asked = ModelConfig(prefill="", template_date="2025-01-02")
        assert prompt_style.choose(asked, tmp_path / "trained", dated) == PromptStyle("", "off", "2025-01-02")
        switched = byte_tokenizer(chats.SWITCHED)
        thinks = ModelConfig(path="x", thinking="on")
        assert prompt_style.choose(thinks, tmp_path / "trained", switched) == PromptStyle("", "on")

    def test_nothing_is_left_of_the_model_that_was_trained(self, tmp_path):
        prompt_style.export(Learner(), tmp_path / "trained", None, first=True)
        assert prompt_style.read(tmp_path / "trained") is None and (tmp_path / "trained" / "config.json").is_file()

    @pytest.mark.parametrize(
        "text",
        [
            "[]",
            "null",
            "{",
            '{"prefill": null}',
            '{"thinking": "maybe"}',
            '{"date": "26 Nov"}',
            '{"prefil": "x"}',
            '"x"',
        ],
    )
    def test_a_file_that_says_something_else_is_one_line(self, text, tmp_path):
        (tmp_path / "prompts.json").write_text(text)
        with pytest.raises(InputError) as caught:
            prompt_style.read(tmp_path)
        assert str(tmp_path / "prompts.json") in str(caught.value) and "\n" not in str(caught.value)


class TestEndOfTurn:
    """What a template writes behind an answer must stop it."""

    MARKS = ("<|end|>", "<|user|>", "<|assistant|>", "</s>")  # ids 256 to 259
    UNENDED = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    SINGLE = "{% if messages | length > 2 %}{{ raise_exception('one question only') }}{% endif %}" + chats.PLAIN
    LLAMA_2 = (
        "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
    )

    @pytest.mark.parametrize(
        ("template", "behind", "token"),
        [
            (chats.PLAIN, "<|end|><|user|>", 256),
            (chats.SWITCHED, "<|end|>\n<|user|>\n", 256),
            (SINGLE, "<|end|>", 256),
            (LLAMA_2, " </s>[INST] ", 259),
            (UNENDED, "<|user|>", 257),
            ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", "\n", None),
            ("{{ raise_exception('no') }}", None, None),
            ("{{ messages[0]['content'] }}", None, None),
        ],
    )
    def test_is_found_in_a_dialogue(self, template, behind, token):
        found = end_of_turn(byte_tokenizer(template, *self.MARKS))
        assert found == (None if behind is None else (behind, token))

    def test_that_does_not_stop_is_named(self):
        made = byte_tokenizer(chats.PLAIN, *self.MARKS)
        warning = end_of_turn_warning(made, [259])
        assert "ends a turn with '<|end|>' (id 256), and completions stop at '</s>' (id 259) only" in warning
        assert "\n" not in warning
        assert end_of_turn_warning(made, [256, 259]) == ""
        assert end_of_turn_warning(byte_tokenizer("{{ raise_exception('no') }}"), [3]) == ""
        assert r"ends a turn with '\n'" in end_of_turn_warning(
            byte_tokenizer("{% for m in messages %}{{ m['content'] }}\n{% endfor %}"), [3]
        )
