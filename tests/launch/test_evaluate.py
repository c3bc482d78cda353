"""Evaluation in parts: what is wrong is said before anything is generated, and what was answered is not asked again."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shlex
import shutil
import sys

import numpy as np
import pandas as pd
import pytest

from creason_jax.rollout.engine import Engine
from launch import backends
from shared.backend import Completion
from shared.config import RunConfig, validate
from shared.errors import TrainingError
from shared.evaluation import orders
from shared.evaluation.answers import answer_to, read_answers, write_answers
from shared.policy.tokenizer import load_tokenizer
from shared.questions.prompts import encode
from shared.questions.record import write_questions
from shared.report.words import percent
from shared.runs import model_engine, run
from shared.runs.workdir import with_dtype_of, with_dtype_of_workdir
from tests.support.commands import REPOSITORY, here
from tests.support.exam import exam, exam_tokenizer, of_others
from tests.support.tiny import tiny_phi3

pytestmark = pytest.mark.slow

SMALL = ("--max_prompt_tokens=300", "--max_new_tokens=3", "--slots=1", "--bootstrap=100")
QUESTIONS = 10  # in parts of 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluate")
    exam_tokenizer(root / "model")
    tiny_phi3(root / "model", vocab_size=512, num_hidden_layers=1)
    write_questions(root / "questions.parquet", exam(QUESTIONS))
    write_questions(root / "train.parquet", of_others(exam(QUESTIONS)))
    write_questions(root / "other.parquet", exam(QUESTIONS, start=20))
    yes_no = [dataclasses.replace(q, choices=("YES", "NO"), answer="AB"[i % 2]) for i, q in enumerate(exam(4))]
    write_questions(root / "yes_no.parquet", [*yes_no[:3], dataclasses.replace(yes_no[3], choices=("yes", "no"))])
    write_answers(
        root / "others.parquet", [answer_to(q, "A", truncated=False, tokens=1) for q in exam(QUESTIONS, start=20)]
    )
    columns = {"patient": [f"patient-{i}" for i in range(3)], "split": "valid", "age_band": "", "sex": "", "site": ""}
    pd.DataFrame(columns).to_parquet(root / "patients.parquet")
    (root / "file").write_text("x")
    (root / "full").mkdir()
    (root / "full" / "mine.txt").write_text("x")
    return root


@pytest.fixture
def evaluate(root, monkeypatch, capfd):
    """Runs `launch.evaluate` on the questions; `asked` counts the prompts that the engine was given.

    In place of the network a rule answers, which nothing has to be compiled for: a box by the prompt and the sample's draws.
    """
    monkeypatch.chdir(REPOSITORY)
    tokenizer = load_tokenizer(root / "model")
    boxes = [encode(tokenizer, f"\\boxed{{{letter}}}") for letter in "ABC"]

    def generate(self, prompts, sampling, uniforms):
        if call.left == 0:
            raise TrainingError("interrupted")
        call.left -= 1
        call.asked += len(prompts)
        draws = np.zeros((len(prompts), sampling.group_size)) if uniforms is None else uniforms[:, :, 0]
        found = [[boxes[int(prompt.sum() + 100 * draw) % 3] for draw in own] for prompt, own in zip(prompts, draws)]
        return [[Completion(box, np.zeros(len(box), np.float32), truncated=False) for box in group] for group in found]

    def next_token_logprobs(self, texts, tokens):
        return np.float32([[-(int(text.sum()) % 7 + token % 5) for token in tokens] for text in texts])

    checked = {"engine": "jax Engine", "tokens": 48, "gap": 2e-6, "bound": 1e-3}
    monkeypatch.setattr(model_engine, "check_by_file", lambda *_: checked)  # it would find that this is no network
    monkeypatch.setattr(Engine, "generate", generate)
    monkeypatch.setattr(Engine, "next_token_logprobs", next_token_logprobs)

    def call(out, *flags, left=99, questions="questions"):
        call.left, call.asked = left, 0
        given = (*SMALL, f"--model={root / 'model'}", f"--questions={root / questions}.parquet", f"--out={out}", *flags)
        return here("evaluate", *given, monkeypatch=monkeypatch, capfd=capfd)

    return call


def content(folder):
    """What an evaluation wrote, without the place."""
    place = str(folder).encode()
    return {path.name: path.read_bytes().replace(place, b"") for path in sorted(folder.iterdir()) if path.is_file()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--compare={root}/others.parquet",), "--compare: answers 10 other questions and lacks 10 of these 10"),
        (("--compare={root}/others.parquet", "--cyclic"), "lacks 33 of these 33"),
        (("--compare={root}/questions.parquet",), "not a file of answers, these columns are missing: question_id"),
        (("--compare={root}/none.parquet",), "no such file of answers"),
        (("--compare={root}/file",), "not a readable Parquet file"),
        (("--patients={root}/patients.parquet",), "--patients: 7 patients of the answers are not in the file"),
        (("--patients={root}/others.parquet",), "not a file of patients, these columns are missing"),
        (("--patients={root}/none.parquet",), "no such file"),
        (("--registry={root}/none",), "no prepared registry there"),
        (("--registry={root}/full",), "provenance.json: no such file"),
        (("--lm_eval={root}/file",), "--lm_eval={root}/file: is a file; give a directory"),
        (("--lm_eval={root}/full",), "{root}/full: holds other files than a task, and would be replaced"),
        (("--lm_eval={root}/new", "--lm_eval_name=a b"), "letters, digits and underscores only"),
        (("--lm_eval={root}/new",), "is replaced as a whole, --out with it"),
        (("--out={root}/file/x",), "cannot be made"),
        (("--out=gs://bucket/x",), "must be a folder"),
    ],
)
def test_what_is_wrong_is_said_before_the_model_is_asked(flags, message, root, evaluate):
    ended = evaluate(root / "new", *(flag.format(root=root) for flag in flags))
    assert message.format(root=root) in ended.refusal
    assert evaluate.asked == 0 and ended.out == ""
    assert not (root / "new").exists()
    assert (root / "full" / "mine.txt").read_text() == "x"


@pytest.mark.parametrize(
    "flags",
    [(), ("--protocol=forced_choice",), ("--samples=3", "--temperature=0.8", "--completions")],
    ids=["greedy", "forced", "voted"],
)
def test_an_evaluation_that_was_interrupted_goes_on(flags, tmp_path, evaluate):
    """Twice, and the files are those of one that was not; started once more it asks nothing."""
    whole = evaluate(tmp_path / "whole", *flags)
    assert whole.code == 0 and evaluate.asked == QUESTIONS, whole
    out = tmp_path / "cut"
    for asked in (4, 4):
        assert evaluate(out, *flags, left=1).code == 1
        assert evaluate.asked == asked
        assert not (out / "answers.parquet").exists()
    last = evaluate(out, *flags)
    assert last.code == 0 and evaluate.asked == QUESTIONS - 8
    assert f"8 of {QUESTIONS} answers are there already" in last.err
    assert content(out) == content(tmp_path / "whole")
    assert not (out / "parts").exists()
    again = evaluate(out, *flags, "--bootstrap=200")
    assert (again.code, evaluate.asked) == (0, 0)
    assert "only the figures are made again" in again.err
    assert content(out)["answers.parquet"] == content(tmp_path / "whole")["answers.parquet"]


def test_a_running_server_can_be_the_engine(tmp_path, evaluate, monkeypatch):
    seen = []

    def make_backend(config):
        seen.append((config.torch.rollout_engine, config.torch.server_url, config.torch.server_weights))
        raise TrainingError("seen")

    monkeypatch.setattr(backends, "make_backend", make_backend)
    server = ("--server_url=http://node:8000", f"--server_weights={tmp_path / 'weights'}")
    assert evaluate(tmp_path / "out", "--backend=torch", "--engine=server", *server).code == 1
    assert seen == [("server", "http://node:8000", str(tmp_path / "weights"))]


NOT_FIGURES = ("made_elsewhere", "engine", "prompts")


@pytest.mark.parametrize(
    ("flags", "read", "file"),
    [
        ((), (), "completions"),
        (("--cyclic", "--limit=4", "--compare={root}/cyclic.parquet"), ("--cyclic", "--limit=4"), "completions"),
        (("--answer_rule=lenient_last",), ("--answer_rule=lenient_last",), "completions"),
        (("--samples=3", "--temperature=0.8"), ("--samples=3",), "samples"),
    ],
    ids=["greedy", "cyclic", "lenient", "voted"],
)
def test_completions_given_back_have_every_figure_of_the_evaluation_that_wrote_them(
    flags, read, file, root, tmp_path, evaluate, monkeypatch, capfd
):
    """Without a model: the figures, the answers and what is printed of them."""
    flags = [flag.format(root=root) for flag in flags]
    compare = [flag for flag in flags if flag.startswith("--compare")]
    questions = f"--questions={root / 'questions.parquet'}"
    if compare:
        asked = orders.cyclic(exam(4))
        write_answers(root / "cyclic.parquet", [answer_to(q, "A", truncated=False, tokens=1) for q in asked])
    ours = evaluate(tmp_path / "ours", "--completions", *flags)
    assert ours.code == 0, ours
    given = (
        f"--answers={tmp_path / 'ours' / file}.jsonl",
        questions,
        f"--out={tmp_path / 'theirs'}",
        "--bootstrap=100",
    )
    theirs = here("evaluate", *given, *read, *compare, monkeypatch=monkeypatch, capfd=capfd)
    assert theirs.code == 0, theirs
    found = [json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("ours", "theirs")]
    source, checked = found[1]["made_elsewhere"], found[0]["engine"]
    assert source["file"] == f"{file}.jsonl" and source["missing"] == 0 and found[0]["made_elsewhere"] is None
    assert (checked["tokens"], checked["gap"], checked["bound"], found[1]["engine"]) == (48, 2e-6, 1e-3, None)
    figures = [{name: value for name, value in each.items() if name not in NOT_FIGURES} for each in found]
    assert figures[0] == figures[1] and figures[0]["readings"]["differ"] > 0
    tables = [(tmp_path / folder / "answers.parquet").read_bytes() for folder in ("ours", "theirs")]
    assert tables[0] == tables[1]
    printed = [
        [line for line in each.out.splitlines() if line.startswith(("accuracy", "boxes"))] for each in (ours, theirs)
    ]
    assert printed[0] == printed[1] and len(printed[0]) == 2
    assert f"elsewhere, as {file}.jsonl says (SHA-256 {source['sha256']})" in theirs.out
    page = (tmp_path / "theirs" / "evaluation.html").read_text()
    assert source["sha256"] in page and "Boxes, read in two ways" in page
    again = here("evaluate", *given, *read, *compare, monkeypatch=monkeypatch, capfd=capfd)
    assert again.code == 0
    other = [flag for flag in read if "rule" not in flag] + ["--answer_rule=lenient_last"]
    if "--answer_rule=lenient_last" not in read:
        refused = here("evaluate", *given, *other, *compare, monkeypatch=monkeypatch, capfd=capfd)
        assert "holds answers to another request (it differs in answer_rule)" in refused.refusal


def test_the_other_reading_of_the_same_answers_asks_nothing_again(tmp_path, evaluate):
    """A single completion's letters are kept by both readings; of a vote the shares are by one of them."""
    assert evaluate(tmp_path / "out").code == 0
    strict = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert evaluate(tmp_path / "out", "--answer_rule=lenient_last").code == 0 and evaluate.asked == 0
    lenient = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert strict["readings"] == lenient["readings"]
    assert (strict["accuracy"], lenient["accuracy"]) == tuple(
        strict["readings"][name]["accuracy"] for name in ("strict", "lenient")
    )
    assert (
        strict["answered"] > lenient["answered"]
    )  # a letter beyond the options is an answer by the paper's rule alone
    voted = ("--samples=3", "--temperature=0.8")
    assert evaluate(tmp_path / "votes", *voted).code == 0
    refused = evaluate(tmp_path / "votes", *voted, "--answer_rule=lenient_last").refusal
    assert "it differs in answer_rule" in refused


def test_answers_made_elsewhere_need_no_framework(root, tmp_path, monkeypatch, capfd):
    """What imports one fails here; that `launch.evaluate` itself loads none is tested in tests/test_walls.py."""
    rows = [{"id": question.id, "completion": f"\\boxed{{{question.answer}}}"} for question in exam(QUESTIONS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    for name in ("jax", "jaxlib", "flax", "torch", "deepspeed", "creason_jax", "creason_torch"):
        monkeypatch.setitem(sys.modules, name, None)
    given = (
        f"--answers={tmp_path / 'a.jsonl'}",
        f"--questions={root / 'questions.parquet'}",
        f"--out={tmp_path / 'out'}",
    )
    ended = here("evaluate", *given, "--registry=", monkeypatch=monkeypatch, capfd=capfd)
    assert ended.code == 0 and "1 lines repeat an answer word for word" in ended.err
    assert "accuracy 100.0% 72.2 to 100.0% on 10 questions" in ended.out
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["accuracy"] == 1


def test_answers_without_a_box_are_said_to_be_so(root, tmp_path, monkeypatch, capfd):
    """A program's predicted letters, without a box, all count as wrong: not without a word."""
    rows = [{"id": question.id, "completion": f"The answer is {question.answer}"} for question in exam(QUESTIONS)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = (
        f"--answers={tmp_path / 'a.jsonl'}",
        f"--questions={root / 'questions.parquet'}",
        f"--out={tmp_path / 'out'}",
    )
    ended = here("evaluate", *given, monkeypatch=monkeypatch, capfd=capfd)
    assert ended.code == 0 and f"warning: {QUESTIONS} of {QUESTIONS} answers hold no boxed letter" in ended.err
    assert "\\boxed{A}" in ended.err and ended.err.count("\n") == 1


def test_other_requests_do_not_go_on_from_it(root, tmp_path, evaluate):
    assert evaluate(tmp_path / "out", left=1).code == 1
    before = content(tmp_path / "out")
    shutil.copytree(root / "model", tmp_path / "model")
    tiny_phi3(tmp_path / "model", seed=5, vocab_size=512, num_hidden_layers=1)
    for flags, differs in (
        (("--max_new_tokens=4",), "max_new_tokens"),
        (("--temperature=0.5",), "temperature, seed"),
        (("--cyclic",), "questions, prompts"),
        (("--limit=5",), "questions, prompts"),
        (("--compute_dtype=bfloat16",), "compute_dtype"),
        ((f"--model={tmp_path / 'model'}",), "model"),
        ((f"--questions={root / 'other.parquet'}",), "questions, prompts"),
    ):
        refused = evaluate(tmp_path / "out", *flags).refusal
        assert f"holds answers to another request (it differs in {differs}); give another --out" in refused, refused
        assert evaluate.asked == 0
    assert content(tmp_path / "out") == before
    # What changes no answer may differ.
    assert evaluate(tmp_path / "out", "--seed=3", "--slots=2").code == 0 and evaluate.asked == 6


def test_answers_outlive_a_failure_of_their_figures(tmp_path, evaluate, monkeypatch):
    def fail(*_, **__):
        raise TrainingError("interrupted")

    with monkeypatch.context() as patch:
        patch.setattr("shared.evaluation.figures.summarise", fail)
        assert evaluate(tmp_path / "out").code == 1 and evaluate.asked == QUESTIONS
    assert len(read_answers(tmp_path / "out" / "answers.parquet")) == QUESTIONS
    assert evaluate(tmp_path / "out").code == 0 and evaluate.asked == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["n"] == QUESTIONS


def test_answers_of_an_earlier_version_are_left_alone(tmp_path, evaluate):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "answers.parquet").write_text("x")
    assert "holds the answers of an earlier version; give another --out" in evaluate(tmp_path / "out").refusal
    assert (tmp_path / "out" / "answers.parquet").read_text() == "x"


def test_capitals_of_yes_and_no_have_their_figures(tmp_path, evaluate):
    ended = evaluate(tmp_path / "out", "--protocol=forced_choice", questions="yes_no")
    assert ended.code == 0, ended
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["binary"]
    assert (found["n"], found["prevalence"]) == (4, 0.5) and 0 <= found["auroc"] <= 1


def test_with_its_defaults_room_is_made_for_the_questions_alone(root, tmp_path, monkeypatch, capfd):
    """No limit is given: ten prompts of some 100 tokens do not take 64 slots of 11,000 tokens."""
    engines, samplings = [], []
    generate = Engine.generate

    def noted(engine, prompts, sampling, uniforms):
        engines.append(engine)
        samplings.append(sampling)
        return generate(engine, prompts, sampling, uniforms)

    monkeypatch.setattr(Engine, "generate", noted)
    given = (f"--model={root / 'model'}", f"--questions={root / 'questions.parquet'}", f"--out={tmp_path / 'out'}")
    ended = here("evaluate", *given, "--max_new_tokens=40", "--bootstrap=100", monkeypatch=monkeypatch, capfd=capfd)
    assert ended.code == 0 and ended.err.startswith("warning: 10 of 10 answers hold no boxed letter")
    assert ended.err.count("\n") == 1
    (engine,) = set(engines)  # asked twice: for its check, and for the answers
    assert 64 < engine.workload.prompt_tokens <= engine.longest_prompt == 128
    slots = {sampling.max_new_tokens: engine.slots(sampling) for sampling in samplings}
    assert slots.pop(40) == 16  # ten, over eight devices
    assert list(slots) == [32]  # its check
    assert engine.config.longest_sequence == 9_040  # which chooses the rotation: that does not hang on the prompts
    assert engine.config.learner.compute_dtype == "float32"  # on a CPU


def test_a_consultation_goes_on_where_it_was_interrupted(root, tmp_path, evaluate, monkeypatch, capfd):
    notes = tmp_path / "notes.csv"
    notes.write_text("id,note,header\n7,Fever.,\n8,Cough.,\n9,Pain.,\n")

    def consult(out, left=99):
        evaluate.left, evaluate.asked = left, 0
        given = ("--max_new_tokens=3", "--slots=1", f"--model={root / 'model'}", f"--notes={notes}", f"--out={out}")
        return here("consult", *given, monkeypatch=monkeypatch, capfd=capfd)

    assert consult(tmp_path / "whole").code == 0 and evaluate.asked == 3
    assert consult(tmp_path / "cut", left=2).code == 1
    ended = consult(tmp_path / "cut")
    assert (ended.code, evaluate.asked) == (0, 1) and "3 answered" in ended.out
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert set(content(tmp_path / "cut")) == {"completions.jsonl", "evaluation_prompts.json"}


class Entered(Exception):
    pass


def test_the_number_format_is_decided_into_the_runs_config(root, tmp_path):
    class Backend:
        name, process, checkpoints_in_buckets = "test", 0, True

        def resolved(self, config):
            return dataclasses.replace(config, learner=dataclasses.replace(config.learner, compute_dtype="bfloat16"))

        def barrier(self):
            raise Entered

    data = {"train": str(root / "train.parquet"), "valid": str(root / "questions.parquet")}
    config = validate({"name": "x", "data": data})
    assert config.learner.compute_dtype == "auto"
    with pytest.raises(Entered):
        run.run(config, Backend(), tmp_path, progress=False)
    assert json.loads((tmp_path / "config.json").read_text())["learner"]["compute_dtype"] == "bfloat16"
    # Started again anywhere, it goes on in the number format that it began with; a given one counts.
    assert with_dtype_of_workdir(config, tmp_path).learner.compute_dtype == "bfloat16"
    assert with_dtype_of_workdir(config, tmp_path / "none") == config
    given = validate({"name": "x", "learner": {"compute_dtype": "float32"}})
    assert with_dtype_of_workdir(given, tmp_path) == given == with_dtype_of(given, RunConfig(name="y"))


def test_the_page_says_how_it_was_made_and_shows_patients_text_only_if_asked(tmp_path, root, evaluate):
    out = tmp_path / "out"
    assert "--show_examples: shows some of what --completions keeps" in evaluate(out, "--show_examples").refusal
    assert evaluate(out, "--completions", "--limit=9").code == 0
    page = html.unescape((out / "evaluation.html").read_text())
    found = json.loads((out / "summary.json").read_text())
    assert f"The model answered {percent(found['accuracy'])} of 9 questions about 9 patients right" in page
    assert "[Baseline]" not in page and "Lactate" not in page
    for said in (
        str(root / "model"),
        "questions.parquet, the first 9",
        "prompts of 300 tokens, completions of 3",
        "Seed",
    ):
        assert said in page
    assert evaluate(out, "--completions", "--limit=9", "--show_examples").code == 0
    shown = html.unescape((out / "evaluation.html").read_text())
    kinds = {"✓ right": 0, "✗ wrong": 0}
    assert "[Baseline]" in shown and all(1 <= shown.count(kind) <= 2 for kind in kinds)
    # The command on the page makes the same page.
    command = re.search(r"<pre>(creason evaluate .*?)</pre>", shown, re.DOTALL)[1]
    words = shlex.split(command.replace("\\\n", " "))
    assert words[:2] == ["creason", "evaluate"] and f"--out={out}" in words and "--limit=9" in words
    given = [word for word in words[2:] if not word.startswith(("--out", "--model", "--questions", *SMALL))]
    assert sorted(given) == ["--completions", "--device=cpu", "--limit=9", "--show_examples"]
