"""A library call evaluates as the program does: the same files, to the byte, and the same refusals."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from absl import flags

from launch import backends, consult, evaluate
from shared.backend import Completion
from shared.errors import InputError
from shared.evaluation.listener import Listener
from shared.evaluation.options import EvaluationOptions, GenerationOptions
from shared.policy.tokenizer import load_tokenizer
from shared.questions.prompts import encode
from shared.questions.record import write_questions
from shared.runs import evaluate as library
from shared.runs.forecast import Memory, Need
from shared.storage import files
from tests.support.commands import here
from tests.support.exam import exam, exam_tokenizer

QUESTIONS = 10
LIMITS = {"max_prompt_tokens": 300, "max_new_tokens": 9, "slots": 1, "compute_dtype": "float32"}


class RuleEngine:
    """Boxes a letter by the prompt and the sample's draws, and is as sure of every token as `RuleBackend` says."""

    def __init__(self, boxes):
        self.boxes, self.asked = boxes, 0

    def generate(self, prompts, sampling, uniforms):
        self.asked += len(prompts)
        draws = np.zeros((len(prompts), sampling.group_size)) if uniforms is None else uniforms[:, :, 0]
        return [
            [self._completion(int(prompt.sum() + 100 * draw)) for draw in own]
            for prompt, own in zip(prompts, draws, strict=True)
        ]

    def _completion(self, number):
        box = self.boxes[number % len(self.boxes)]
        return Completion(box, np.zeros(len(box), np.float32), truncated=False)

    def next_token_logprobs(self, texts, tokens):
        return np.zeros((len(texts), len(tokens)), np.float32) - np.arange(len(tokens), dtype=np.float32) / 10


class RuleBackend:
    """One process with a made-up engine, in place of JAX or PyTorch."""

    name, process, processes = "rule", 0, 1

    def __init__(self, boxes):
        self.boxes, self.made = boxes, []

    def resolved(self, config):
        return config

    def barrier(self):
        pass

    def any_process(self, flag):
        return flag

    def need(self, config, model, workload, *, trains):
        return Need(memory=Memory(weights=1e6), parameters=1, checkpoint_bytes=0.0)

    def engine(self, config, model, *, stop_tokens, workload):
        self.made.append(RuleEngine(self.boxes))
        return self.made[-1]

    def engine_kind(self, config):
        return "rule"

    def load(self, engine, model):
        pass

    def plain_logprobs(self, engine, model, prompts, completions):
        return [completion.logprobs for completion in completions]

    @property
    def asked(self):
        return sum(engine.asked for engine in self.made)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("library")
    exam_tokenizer(root / "model")
    files.write_json(root / "model" / "config.json", {"vocab_size": 512})
    write_questions(root / "questions.parquet", exam(QUESTIONS))
    rows = [
        {"id": question.id, "completion": f"\\boxed{{{'ABC'[number % 3]}}} or \\boxed{{ B }}", "tokens": number}
        for number, question in enumerate(exam(QUESTIONS))
    ]
    (root / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture
def backend(root):
    tokenizer = load_tokenizer(root / "model")
    return RuleBackend([encode(tokenizer, f"\\boxed{{{letter}}}") for letter in "ABC"])


def options(root, out, **changes):
    """Options of an evaluation of the model, or of answers where these are among the changes."""
    if "answers" not in changes:
        changes = {"model": str(root / "model"), "generation": GenerationOptions(**LIMITS)} | changes
    return EvaluationOptions(questions=[str(root / "questions.parquet")], out=str(out), bootstrap=100, **changes)


def as_flags(options):
    """The flags that say the same."""
    words = []
    for part in (options, options.generation):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if field.name == "questions":
                words.append(f"--questions={','.join(value)}")
            elif field.name != "generation" and value != field.default:
                words.append(f"--{field.name}={value}")
    return words


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"completions": True},
        {"samples": 3, "temperature": 0.8, "answer_rule": "lenient_last", "completions": True},
        {"cyclic": True, "limit": 4},
        {"protocol": "forced_choice"},
        {"answers": "answers.jsonl"},
    ],
    ids=["greedy", "voted", "cyclic", "forced", "answers"],
)
def test_a_library_call_writes_the_files_of_the_program(changes, root, tmp_path, backend, monkeypatch, capfd):
    if "answers" in changes:
        changes = changes | {"answers": str(root / "answers.jsonl")}
    monkeypatch.setattr(backends, "make_backend", lambda config: backend)
    program = options(root, tmp_path / "program", **changes)
    ended = here("evaluate", *as_flags(program), "--progress=false", monkeypatch=monkeypatch, capfd=capfd)
    assert ended.code == 0, ended
    asked = backend.asked
    called = options(root, tmp_path / "library", **changes)
    summary = library.evaluate(called, lambda config: backend, command="")
    assert capfd.readouterr() == ("", "")  # a library says nothing unless somebody listens
    ours, theirs = content(tmp_path / "library"), content(tmp_path / "program")
    page = ours.pop("evaluation.html"), theirs.pop("evaluation.html")
    assert ours == theirs and {"summary.json", "answers.parquet", "request.json"} <= ours.keys()
    assert json.loads(ours["summary.json"]) == json.loads(json.dumps(summary))
    assert backend.asked == 2 * asked and (asked > 0) == ("answers" not in changes)
    assert b"creason evaluate" in page[1] and b"creason evaluate" not in page[0]


@pytest.mark.slow
def test_a_listener_hears_what_the_program_prints(root, tmp_path, backend, monkeypatch, capfd):
    monkeypatch.setattr(backends, "make_backend", lambda config: backend)
    heard, warned, kept = [], [], []
    listener = Listener(line=heard.append, warning=warned.append, kept=lambda: kept.append(True))
    library.evaluate(options(root, tmp_path / "library"), lambda config: backend, listener=listener)
    ended = here("evaluate", *as_flags(options(root, tmp_path / "program")), monkeypatch=monkeypatch, capfd=capfd)
    assert ended.out.startswith("\n".join(heard) + "\naccuracy ")
    assert [line.split()[0] for line in "\n".join(heard).split("\n")] == ["tokens", "memory", "prompts"]
    assert (ended.err, warned, kept) == ("", [], [True])
    library.evaluate(options(root, tmp_path / "library"), lambda config: backend, listener=listener)
    assert warned == ["the answers are there already; only the figures are made again"]


def test_a_forecast_answers_nothing(root, tmp_path, backend):
    heard = []
    listener = Listener(line=heard.append)
    library.forecast_evaluation(options(root, tmp_path / "out"), lambda config: backend, listener=listener)
    assert backend.asked == 0 and not (tmp_path / "out").exists() and len(heard) == 1
    library.forecast_evaluation(
        options(root, tmp_path / "out"), lambda config: backend, listener=listener, measure=True
    )
    assert backend.asked > 0 and not (tmp_path / "out").exists()
    assert heard[-1].startswith("time ") and heard[-1].endswith(f" for {QUESTIONS} of them")
    with pytest.raises(InputError, match="--model: is needed"):
        given = options(root, tmp_path / "out", answers=str(root / "answers.jsonl"))
        library.forecast_evaluation(given, lambda config: backend, listener=listener)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"questions": []}, "--questions: give a list of question files"),
        ({"questions": "valid.parquet"}, "--questions: give a list of question files"),
        ({"model": ""}, "--model: is needed to evaluate; or --answers=FILE"),
        ({"out": ""}, "--out: is needed to evaluate"),
        ({"protocol": "guess"}, "protocol = 'guess': must be one of boxed, forced_choice"),
        ({"answer_rule": "last"}, "answer_rule = 'last': must be one of strict_first, lenient_last"),
        ({"samples": 0}, "samples = 0: must be at least 1"),
        ({"bootstrap": 99}, "bootstrap = 99: must be at least 100"),
        ({"samples": 3}, "--samples: greedy samples are all equal; give --temperature"),
        ({"protocol": "forced_choice", "completions": True}, "--completions: only with --protocol=boxed"),
        ({"show_examples": True}, "--show_examples: shows some of what --completions keeps"),
        ({"allow_missing": True}, "--allow_missing: goes with --answers"),
        ({"answers": "a.jsonl"}, "--model: --answers does not read it"),
        (
            {"answers": "a.jsonl", "model": "", "generation": GenerationOptions(slots=2)},
            "--slots: --answers does not read",
        ),
        ({"lm_eval": "task", "model": ""}, "--out: --lm_eval without a --model does not read it"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(InputError) as refused:
        EvaluationOptions(**{"questions": ["valid.parquet"], "model": "model", "out": "out"} | changes)
    assert message in str(refused.value)


@pytest.mark.parametrize("program", [evaluate, consult])
def test_flags_and_options_have_the_same_names_and_defaults(program, monkeypatch):
    known = set(flags.FLAGS)
    program.define_flags()
    try:
        defaults = {name: flags.FLAGS[name].default for name in set(flags.FLAGS) - known}
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
    kinds = [GenerationOptions] + [EvaluationOptions] * (program is evaluate)
    fields = {field.name: field.default for kind in kinds for field in dataclasses.fields(kind)}
    fields = {name: value for name, value in fields.items() if name not in ("generation", "questions")}
    if program is consult:
        fields["max_new_tokens"] = 4_000  # a recommendation is longer than an answer
    assert {name: defaults[name] for name in fields} == fields
