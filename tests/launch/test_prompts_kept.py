"""The prompts of a run, of a resume on another day and of an evaluation of what it wrote are the same to the byte.

And what no engine could do with a prompt is refused by every program before anything is made.
"""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest

from creason_jax.backend import Backend
from creason_jax.rollout.engine import Engine
from shared.backend import Completion
from shared.policy.tokenizer import load_tokenizer
from shared.questions import prompt_style
from shared.questions.prompts import PREFILL
from shared.questions.record import write_questions
from shared.runs import evaluations, model_engine, run
from tests.support import chats
from tests.support.commands import here
from tests.support.exam import exam, exam_tokenizer, of_others
from tests.support.tiny import change_config, run_config, tiny_phi3

pytestmark = pytest.mark.slow

SMALL = ("--max_prompt_tokens=600", "--max_new_tokens=4", "--slots=8", "--compute_dtype=float32")
ENGINES = (("--backend=jax",), ("--backend=torch", "--engine=hf"), ("--backend=torch", "--engine=vllm"))


def model_in(folder: Path, template: str, *, rows: int = 512) -> Path:
    """A small model whose tokenizer has this template."""
    made = exam_tokenizer(folder)
    tiny_phi3(folder, vocab_size=rows, num_hidden_layers=1)
    made.chat_template = template
    made.save_pretrained(folder)
    return folder


@pytest.fixture
def call(monkeypatch, capfd):
    def call(*arguments):
        return here(*arguments, monkeypatch=monkeypatch, capfd=capfd)

    return call


@pytest.fixture
def questions(tmp_path) -> Path:
    write_questions(tmp_path / "questions.parquet", exam(4))
    write_questions(tmp_path / "train.parquet", of_others(exam(4)))
    return tmp_path / "questions.parquet"


@pytest.fixture
def asked(monkeypatch) -> list[list[str]]:
    """Token ids of the prompts of each request, which an engine answers with its stop token."""
    seen = []

    def generate(self, prompts, sampling, uniforms):
        seen.append([tuple(prompt.tolist()) for prompt in prompts])
        ended = Completion(np.array([3], np.int32), np.zeros(1, np.float32), truncated=False)
        return [[ended] * sampling.group_size for _ in prompts]

    for module, check in ((model_engine, "check_by_file"), (evaluations, "check_by_learner")):
        monkeypatch.setattr(
            module, check, lambda *_: {"engine": "a rule", "tokens": 0, "gap": 0.0, "bound": 1e-3}
        )  # it would find that this is no network
    monkeypatch.setattr(Engine, "generate", generate)
    return seen


def test_a_run_and_whoever_uses_its_model_later(tmp_path, questions, asked, monkeypatch, call, capfd):
    """A model with today's date in its template, in a folder that is called like a reasoning model."""
    model = model_in(tmp_path / "phi4-vs-deepseek-r1-baseline", chats.TODAY)
    config = run_config(
        model={"path": str(model)}, data={"train": str(questions.with_name("train.parquet")), "valid": str(questions)},
        grpo={"group_size": 2, "questions_per_step": 2, "steps": 1, "max_logprob_gap": 1e9},
        rollout={"max_prompt_tokens": 600, "max_new_tokens": 4}, checkpoint={"every": 1}, jax={"mesh_fsdp": -1},
    )  # fmt: skip
    days = iter(f"2026-11-{day}" for day in range(26, 31))
    monkeypatch.setattr(prompt_style, "today", lambda: next(days))
    summary = run.run(config, Backend(config), tmp_path / "run", progress=False)
    began = capfd.readouterr().out.splitlines()
    [line] = [line for line in began if line.startswith("prompts")]
    day = summary["prompts"]["date"]
    assert day == "2026-11-27"  # the 26th was seen as the model was looked at
    assert f'answers begin with "{PREFILL}"; the template\'s today is {day}' in line
    before = asked[0]
    text = load_tokenizer(model).decode(before[0])
    assert "Today Date: 27 Nov 2026\n" in text and text.endswith(f"<|assistant|>{PREFILL}")
    assert all(prompt in before for request in asked for prompt in request)

    for answers in (tmp_path / "run" / "evaluation").glob("*.parquet"):
        answers.unlink()
    asked.clear()
    run.run(config, Backend(config), tmp_path / "run", progress=False)
    assert asked == [before, before]

    exported = tmp_path / "exported"
    assert call("export", f"--workdir={tmp_path / 'run'}", f"--out={exported}").code == 0
    for folder in (tmp_path / "run", tmp_path / "run" / "trained", exported):
        kept = folder / "prompts.json"
        assert json.loads(kept.read_text()) == {"prefill": PREFILL, "thinking": "auto", "date": day}
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    for folder in (tmp_path / "run" / "trained", exported):
        asked.clear()
        out = tmp_path / f"evaluation of {folder.name}"
        ended = call("evaluate", *SMALL, f"--model={folder}", f"--questions={questions}", f"--out={out}")
        assert ended.code == 0, ended
        assert asked == [before]
        assert f"the template's today is {day}" in ended.out
        assert json.loads((out / "summary.json").read_text())["prompts"]["date"] == day


def test_an_evaluation_of_any_other_model(tmp_path, questions, asked, monkeypatch, call):
    """Says which day it used, keeps to it in the same folder, and takes another one where it is told."""
    model = model_in(tmp_path / "model", chats.TODAY)
    monkeypatch.setattr(prompt_style, "today", lambda: "2026-11-26")
    command = ("evaluate", *SMALL, f"--model={model}", f"--questions={questions}", f"--out={tmp_path / 'out'}")
    assert "today is 2026-11-26" in call(*command).out
    monkeypatch.setattr(prompt_style, "today", lambda: "2026-11-27")
    assert "today is 2026-11-26" in call(*command).out and len(asked) == 1
    (tmp_path / "out" / "answers.parquet").unlink()
    assert "today is 2026-11-26" in call(*command).out
    assert asked[0] == asked[1]
    told = call(*command, f"--out={tmp_path / 'other'}", "--template_date=2024-02-29", "--prefill=Well,")
    assert "answers begin with 'Well,'; the template's today is 2024-02-29" in told.out
    text = load_tokenizer(model).decode(asked[2][0])
    assert "Today Date: 29 Feb 2024\n" in text and text.endswith("<|assistant|>Well,")


def test_thinking_is_switched_and_shown(tmp_path, questions, asked, call):
    model = model_in(tmp_path / "model", chats.SWITCHED)
    command = ("evaluate", *SMALL, f"--model={model}", f"--questions={questions}", f"--out={tmp_path / 'out'}")
    ends = {}
    for thinking in ("auto", "off", "on"):
        told = call(*command, f"--out={tmp_path / thinking}", f"--thinking={thinking}")
        assert f"thinking is {'on' if thinking == 'on' else 'off'}: " in told.out
        ends[thinking] = load_tokenizer(model).decode(asked[-1][0]).rpartition("<|assistant|>\n")[2]
    closed = f"<think>\n\n</think>\n\n{PREFILL}"
    assert ends == {"auto": closed, "off": closed, "on": ""}
    notes = tmp_path / "notes.csv"
    notes.write_text("id,note\n7,Fever.\n")
    consult = ("consult", *SMALL, f"--model={model}", f"--notes={notes}", f"--out={tmp_path / 'consult'}")
    assert "thinking is on: the model begins it" in call(*consult, "--thinking=on").out
    assert load_tokenizer(model).decode(asked[-1][0]).endswith("Fever.<|end|>\n<|assistant|>\n")


def test_a_template_whose_end_of_turn_does_not_stop(tmp_path, questions, asked, call):
    """Phi-3 without its generation_config.json."""
    model = tmp_path / "model"
    model_in(model, chats.PLAIN)
    made = load_tokenizer(model)
    made.add_special_tokens({"additional_special_tokens": ["<|end|>"]})
    made.save_pretrained(model)
    command = ("evaluate", *SMALL, f"--model={model}", f"--questions={questions}")
    told = call(*command, f"--out={tmp_path / 'neither'}")
    end = made.convert_tokens_to_ids("<|end|>")
    assert told.code == 0 and f"warning: the chat template ends a turn with '<|end|>' (id {end})" in told.err
    change_config(model, eos_token_id=[3, end])
    assert "chat template" not in call(*command, f"--out={tmp_path / 'config'}").err
    change_config(model, eos_token_id=3)
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    assert "chat template" not in call(*command, f"--out={tmp_path / 'generation'}").err


class TestBeyondTheEmbedding:
    """A tokenizer with more tokens than its model has rows; nothing is made."""

    @pytest.fixture
    def grown(self, tmp_path) -> Path:
        """Every prompt begins with a token that the model lacks."""
        folder = tmp_path / "grown"
        rows = len(exam_tokenizer(tmp_path / "counted"))
        model_in(folder, "<|extra|>" + chats.PLAIN, rows=rows)
        made = load_tokenizer(folder)
        made.add_special_tokens({"additional_special_tokens": ["<|extra|>"]})
        made.save_pretrained(folder)
        return folder

    def refused(self, ended, folder: Path, made: Path) -> str:
        assert not made.exists()
        rows = json.loads((folder / "config.json").read_text())["vocab_size"]
        assert f"is beyond the model's embedding, which has {rows} rows" in ended.refusal
        return ended.refusal

    @pytest.mark.parametrize("engine", ENGINES, ids=" ".join)
    def test_prompts(self, engine, grown, questions, tmp_path, call):
        out = tmp_path / "out"
        asking = (*SMALL, *engine, f"--model={grown}", f"--out={out}")
        notes = tmp_path / "notes.csv"
        notes.write_text("id,note\n7,Fever.\n")
        for command in (("evaluate", f"--questions={questions}"), ("consult", f"--notes={notes}")):
            told = self.refused(call(*command, *asking), grown, out)
            assert "prompts: token '<|extra|>' (id " in told and "Fever" not in told

    @pytest.mark.parametrize("backend", ["jax", "torch"])
    def test_a_run_ends_before_it_computes(self, backend, grown, questions, tmp_path, call, monkeypatch):
        def never(*arguments, **options):
            raise AssertionError("nothing is to be learned")

        monkeypatch.setattr("creason_jax.backend.Backend.learner", never)
        if backend == "torch":
            monkeypatch.setattr("launch.backends.make_backend", Process)
        data = [f"--config.data.train={questions.with_name('train.parquet')}", f"--config.data.valid={questions}"]
        ended = call("train", "--config=configs/smoke.py", f"--config.model.path={grown}", *data, f"--backend={backend}",
                     f"--workdir={tmp_path / 'run'}", "--config.rollout.max_prompt_tokens=600")  # fmt: skip
        assert "prompts: token '<|extra|>' (id " in self.refused(ended, grown, tmp_path / "run" / "evaluation")

    @pytest.mark.parametrize("engine", ENGINES, ids=" ".join)
    def test_stop_tokens(self, engine, questions, tmp_path, call):
        model = model_in(tmp_path / "model", chats.PLAIN)
        command = (
            "evaluate",
            *SMALL,
            *engine,
            f"--model={model}",
            f"--questions={questions}",
            f"--out={tmp_path / 'out'}",
        )
        change_config(model, eos_token_id=[3, 512])
        assert "eos_token_id in config.json of" in self.refused(call(*command), model, tmp_path / "out")
        change_config(model, eos_token_id=3, pad_token_id=512)
        assert "pad_token_id is 512, and the model's embedding has 512 rows" in call(*command).refusal

    def test_the_phrase_of_a_forced_choice(self, questions, tmp_path, call):
        rows = len(exam_tokenizer(tmp_path / "counted"))
        model = model_in(tmp_path / "model", chats.PLAIN, rows=rows)
        made = load_tokenizer(model)
        made.add_tokens(["Therefore, the answer"])
        made.save_pretrained(model)
        command = ("evaluate", *SMALL, f"--model={model}", f"--questions={questions}", f"--out={tmp_path / 'out'}")
        told = self.refused(call(*command, "--protocol=forced_choice"), model, tmp_path / "out")
        assert "the answer phrase and its letters: token 'Therefore, the answer' (id " in told


class Process:
    """The only process of a run that ends before its backend is asked for anything."""

    name, process, processes, checkpoints_in_buckets = "torch", 0, 1, False

    def __init__(self, config):
        pass

    def resolved(self, config):
        return config

    def barrier(self):
        pass
