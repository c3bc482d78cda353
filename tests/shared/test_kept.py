"""What a long task has done so far, and what tells one request from another."""

from __future__ import annotations

import dataclasses
import stat

import numpy as np
import pytest

from shared.backend import Completion, told_by_first
from shared.config import validate
from shared.errors import InputError
from shared.evaluation.answering import Answered
from shared.evaluation.answers import answer_to, read_answers
from shared.questions.prompts import decode
from shared.runs import evaluations
from shared.runs.kept import Kept, digest, model_digest, request_changes
from shared.runs.workdir import Job
from shared.storage import files
from tests.support.exam import exam, exam_tokenizer


class Alone:
    """A backend of one process."""

    name, process, processes = "test", 0, 1

    def any_process(self, flag):
        return flag

    def engine_kind(self, config):
        return config.torch.rollout_engine

    def resolved(self, config):
        return config


class Second(Alone):
    """The second of two processes; `first` is what process 0 says, bit by bit."""

    process, processes = 1, 2

    def __init__(self, first):
        self.bits = [bool(first >> bit & 1) for bit in range(31)]

    def any_process(self, flag):
        assert not flag
        return self.bits.pop(0)


def test_rows_come_back_in_order_and_bit_for_bit(tmp_path):
    rows = [{"n": 1 / 3, "text": "a\u2028b\x85\nc"}, {"n": None, "text": ""}]
    kept = Kept(tmp_path / "out", {"a": 1}, Alone())
    assert (kept.done, kept.rows) == (0, []) and not (
        tmp_path / "out"
    ).exists()  # nothing is made before there is a row
    kept.add(rows)
    kept.add([])
    kept.add(rows[:1])
    again = Kept(tmp_path / "out", {"a": 1}, Alone())
    assert (again.done, again.rows) == (3, [*rows, rows[0]])
    again.add(rows[1:])
    assert Kept(tmp_path / "out", {"a": 1}, Alone()).rows == [*rows, rows[0], rows[1]]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "out" / "parts").iterdir())
    again.remove_parts()
    assert Kept(tmp_path / "out", {"a": 1}, Alone()).done == 0


def test_a_part_that_was_being_written_is_not_there(tmp_path):
    kept = Kept(tmp_path, {}, Alone())
    kept.add([1, 2])
    (tmp_path / "parts" / ".00001.jsonl.77.partial").write_text("3\n4")  # where it was killed
    assert Kept(tmp_path, {}, Alone()).rows == [1, 2]
    (tmp_path / "parts" / "00001.jsonl").write_text('{"a": ')
    with pytest.raises(InputError, match=r"00001.jsonl: a damaged part of the answers"):
        Kept(tmp_path, {}, Alone())


def test_another_request_is_refused_in_one_line_and_changes_nothing(tmp_path):
    request = {"model": "m", "questions": "q", "temperature": 0.7, "stop": [1, 2]}
    Kept(tmp_path, request, Alone()).add([1])
    for name, value in (("model", "n"), ("temperature", 0.8), ("stop", [1]), ("new", 1)):
        with pytest.raises(
            InputError, match=rf"holds answers to another request \(it differs in {name}\); give another"
        ):
            Kept(tmp_path, {**request, name: value}, Alone())
    assert request_changes(tmp_path, dict(list(request.items())[:3])) == ["stop"]
    assert Kept(tmp_path, request, Alone()).rows == [1]


def test_other_processes_are_told_how_much_is_done(tmp_path):
    for number in (0, 1, 5, 2**30 + 3):
        assert told_by_first(Second(number), 0) == number
        assert told_by_first(Alone(), number) == number
    kept = Kept(tmp_path, {}, Second(6))
    assert (kept.done, kept.rows) == (6, [])
    kept.add([7])
    assert kept.rows == [7] and not list(tmp_path.iterdir())


def test_one_model_is_told_from_another(tmp_path):
    """By a tensor somewhere in large weights, by the tokenizer, by a further file; not by dates."""
    weights = np.random.default_rng(0).bytes(20 * 2**20)
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "README.md").write_text("x")
    before = model_digest(tmp_path)
    assert model_digest(tmp_path) == before
    (tmp_path / "README.md").write_text("y")
    (tmp_path / "model.safetensors").touch()
    assert model_digest(tmp_path) == before
    changed = bytearray(weights)
    changed[9 * 2**20 : 10 * 2**20] = bytes(2**20)  # a matrix of a megabyte is never missed among 64 pieces of 20
    (tmp_path / "model.safetensors").write_bytes(changed)
    assert model_digest(tmp_path) != before
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "tokenizer.json").write_text("[]")
    assert model_digest(tmp_path) != before
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "chat_template.jinja").write_text("")
    assert model_digest(tmp_path) != before
    assert digest([[1, 2], [3]]) != digest([[1], [2, 3]]) != digest([])


def test_an_answer_comes_back_from_its_row():
    (question,) = exam(1)
    answer = answer_to(question, "A", truncated=True, tokens=3, probabilities=(1 / 3, 2 / 3))
    for whole in (Answered(answer), Answered(answer, answer, {"id": "x"})):
        assert Answered.from_row(whole.to_row()) == whole


class Answering:
    """An engine that boxes A, and stops after some parts as a killed process does. Its first call is the engine's check."""

    def __init__(self, tokenizer, parts):
        self.tokens = np.asarray(tokenizer("\\boxed{A}", add_special_tokens=False)["input_ids"], np.int32)
        assert decode(tokenizer, self.tokens) == "\\boxed{A}"
        self.parts, self.checked, self.asked = parts, False, []
        self.version, self.whole_tensors = 0, False

    def generate(self, prompts, sampling, uniforms):
        if self.checked and not self.parts:
            raise KeyboardInterrupt
        if self.checked:
            self.parts -= 1
            self.asked += [int(prompt[0]) for prompt in prompts]
        self.checked = True
        return [[Completion(self.tokens, np.zeros(len(self.tokens), np.float32), truncated=False)] for _ in prompts]

    def seconds(self):
        return {}

    def readable(self):
        return {"weight": 1}

    def digests(self, probes):
        return ["same" for _ in probes]


class Sure:
    """A learner that is as sure of every token as the engine says to be, and whose weights the engine has."""

    step = 0

    def digests(self, probes):
        return ["same" for _ in probes]

    def publish(self, engine):
        pass

    def logprobs(self, batch, which):
        return np.zeros(batch.tokens.shape, np.float32)


def settings(**sections):
    rollout = {"slots": 1, "max_prompt_tokens": 8, "max_new_tokens": 16}
    return validate({"name": "x", "learner": {"compute_dtype": "float32"}, "rollout": rollout, **sections})


def test_a_runs_evaluation_goes_on_in_its_middle(tmp_path):
    tokenizer = exam_tokenizer(tmp_path / "tokenizer")
    questions = exam(10)
    prompts = [np.int32([number]) for number in range(10)]
    config = settings(evaluation={"examples": 3})
    whole = Answering(tokenizer, 99)

    def evaluate(engine, workdir, config=config):
        job = Job.of(config, Alone(), workdir, progress=False)
        evaluations.evaluate("before", job, Sure(), engine, tokenizer, questions, prompts)

    evaluate(whole, tmp_path / "whole")
    first = Answering(tokenizer, 2)
    with pytest.raises(KeyboardInterrupt):
        evaluate(first, tmp_path / "cut")
    assert not (tmp_path / "cut" / "evaluation" / "before.parquet").exists()
    rest = Answering(tokenizer, 99)
    evaluate(rest, tmp_path / "cut")
    assert (first.asked, rest.asked) == (list(range(8)), [8, 9])
    for name in ("before.parquet", "examples.json"):
        both = [(tmp_path / folder / "evaluation" / name).read_bytes() for folder in ("whole", "cut")]
        assert both[0] == both[1]
    left = {path.name for path in (tmp_path / "cut" / "evaluation").iterdir()}
    assert left == {"before.parquet", "examples.json", "engines.json"}
    assert len(files.read_json(tmp_path / "cut" / "evaluation" / "examples.json")) == 3
    found = read_answers(tmp_path / "cut" / "evaluation" / "before.parquet")
    assert [(answer.question_id, answer.predicted) for answer in found] == [(f"question-{i}", "A") for i in range(10)]


def test_a_runs_evaluation_that_another_engine_began_starts_again(tmp_path, capfd):
    tokenizer = exam_tokenizer(tmp_path / "tokenizer")
    questions, prompts = exam(6), [np.int32([number]) for number in range(6)]
    config = settings(torch={"rollout_engine": "hf"})
    other = dataclasses.replace(config, torch=dataclasses.replace(config.torch, rollout_engine="vllm"))

    def evaluate(config, engine):
        job = Job.of(config, Alone(), tmp_path, progress=False)
        evaluations.evaluate("after", job, Sure(), engine, tokenizer, questions, prompts)

    with pytest.raises(KeyboardInterrupt):
        evaluate(config, Answering(tokenizer, 1))
    engine = Answering(tokenizer, 99)
    evaluate(other, engine)
    assert engine.asked == list(range(6))
    assert "evaluation after: begun with other engine; it starts again" in capfd.readouterr().out
