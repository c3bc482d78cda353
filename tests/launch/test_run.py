"""A whole run, from nothing to its report; killed at any step it ends as one that never was."""

from __future__ import annotations

import re
import shutil
import signal
import stat
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest

from shared.evaluation.answers import read_answers
from shared.policy.tokenizer import load_tokenizer
from shared.questions.boxes import answer_letter
from shared.questions.prompts import PromptStyle, chat_text, encode
from shared.questions.record import read_questions
from shared.storage import files
from shared.tasks.prompts import prompt_tokens
from shared.training.metrics_log import without_timings
from tests.support.commands import apart, environment, here
from tests.support.smoke_runs import (
    CONFIG,
    STEPS,
    WARM,
    Run,
    evaluate,
    kill_after,
    prepared,
    signal_after,
    stopped_after,
)

pytestmark = pytest.mark.slow

INNER = (
    "--config.grpo.inner_steps=2",
    "--config.grpo.ref_sync_steps=3",
    "--config.learner.micro_batch_rows=2",
    "--config.checkpoint.every=1",
)


def train(workdir: Path, *flags: str) -> Run:
    begin = time.monotonic()
    ended = apart("train", CONFIG, *WARM, *flags, f"--workdir={workdir}", timeout=600)
    assert ended.code == 0, ended.err[-3_000:]
    return Run(workdir, ended, time.monotonic() - begin)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    return train(tmp_path_factory.mktemp("smoke") / "run")


@pytest.fixture(scope="module")
def inner(tmp_path_factory, smoke):
    return train(prepared(smoke, tmp_path_factory.mktemp("inner") / "run"), *INNER)


class Links(HTMLParser):
    """Whatever a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def handle_starttag(self, tag, attributes):
        self.found += [(tag, value or "") for name, value in attributes if name in ("src", "href", "srcset", "data")]


class TestSmoke:
    """What a run leaves behind."""

    def test_steps_are_taken_and_learned_from(self, smoke):
        assert [line["step"] for line in smoke.lines] == list(range(STEPS))
        assert sum(line["grad_norm"] > 0 for line in smoke.lines) >= 4
        assert max(line["reward"] for line in smoke.lines) > 0
        assert smoke.lines[0]["kl"] == 0
        assert smoke.lines[-1]["kl"] > 0
        assert all(line["logprob_gap"] < 1e-4 for line in smoke.lines)

    def test_summary(self, smoke):
        summary = smoke.summary
        for when in ("before", "after"):
            part = summary[when]
            assert part["n"] == len(read_questions(smoke.workdir / "data" / "questions" / "valid.parquet")) == 80
            low, high = part["ci"]
            assert 0 <= low <= part["accuracy"] <= high <= 1
            assert 0 <= part["answered"] <= 1 and 0 <= part["truncated"] <= 1
        gain = summary["gain"]
        assert gain["value"] == pytest.approx(summary["after"]["accuracy"] - summary["before"]["accuracy"])
        assert gain["ci"][0] <= gain["value"] <= gain["ci"][1]
        assert 0.2 <= summary["chance_accuracy"] < summary["bayes_accuracy"] <= 1
        assert 0 < summary["majority_accuracy"] < 1
        assert summary["timings"]["steps"] == STEPS
        assert summary["environment"]["backend"] == "jax"

    def test_report_needs_no_network(self, smoke):
        page = (smoke.workdir / "report.html").read_text(encoding="utf-8")
        links = Links()
        links.feed(page)
        assert [value for _, value in links.found if not value.startswith(("#", "data:"))] == []
        assert not re.search(r"@import|url\(\s*['\"]?(?!#|data:)", page)
        assert f"{100 * smoke.summary['after']['accuracy']:.1f}%" in page
        assert page.count("<svg") >= 8

    def test_plot(self, smoke):
        picture = (smoke.workdir / "plots" / "main.png").read_bytes()
        assert picture.startswith(b"\x89PNG\r\n")
        assert len(picture) > 10_000

    def test_the_terminal_shows_the_result_and_nobodys_record(self, smoke):
        out = smoke.ended.out
        assert "before GRPO" in out and "after GRPO" in out
        assert str(smoke.workdir / "report.html") in out
        shown = out + smoke.ended.err
        assert "[MASK]" not in shown
        for question in read_questions(smoke.workdir / "data" / "questions" / "valid.parquet"):
            assert question.patient not in shown
        assert smoke.ended.err == ""

    def test_records_are_their_owners_alone(self, smoke):
        private = [
            path for folder in ("data", "evaluation") for path in (smoke.workdir / folder).rglob("*") if path.is_file()
        ]
        assert len(private) > 8
        assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in private} == {0}

    def test_hugging_face_gives_the_same_answers(self, smoke):
        import torch
        from transformers import AutoModelForCausalLM

        folder = smoke.workdir / "trained"
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        tokenizer = load_tokenizer(folder)
        limit = smoke.config.rollout.max_new_tokens

        @torch.inference_mode()
        def greedy(prompt) -> list[int]:
            ids = torch.tensor(prompt)[None]
            for _ in range(limit):
                ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], dim=1)
                if ids[0, -1] == tokenizer.eos_token_id:
                    break
            return ids[0, len(prompt) :].tolist()

        questions = read_questions(smoke.workdir / "data" / "questions" / "valid.parquet")
        _, prompts, _ = prompt_tokens(
            tokenizer, questions, style=PromptStyle(), rows=None, max_tokens=288, overlong="truncate_left"
        )
        answers = read_answers(smoke.workdir / "evaluation" / "after.parquet")
        for answer, prompt in list(zip(answers, prompts, strict=True))[:20]:
            tokens = greedy(prompt)
            assert answer.tokens == len(tokens)
            assert answer.predicted == answer_letter(tokenizer.decode(tokens, skip_special_tokens=True))
        examples = files.read_json(smoke.workdir / "evaluation" / "examples.json")
        after = [example for example in examples if example["when"] == "after"]
        assert len(after) == 2
        for example in after:
            prompt = encode(tokenizer, chat_text(tokenizer, example["question"]))
            assert tokenizer.decode(greedy(prompt), skip_special_tokens=True) == example["completion"]

    def test_the_policy_moved(self, smoke):
        before, after = (smoke.workdir / name / "model.safetensors" for name in ("policy", "trained"))
        assert before.read_bytes() != after.read_bytes()


FORECAST = ("tokens ", "memory ", "disk ", "at risk ")  # said of what is still to be done


def test_a_run_started_again_does_nothing(smoke):
    summary, metrics = smoke.summary, (smoke.workdir / "metrics.jsonl").read_bytes()
    weights = (smoke.workdir / "trained" / "model.safetensors").stat()
    again = train(smoke.workdir)
    assert again.summary == summary
    assert (smoke.workdir / "metrics.jsonl").read_bytes() == metrics
    assert (smoke.workdir / "trained" / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert again.ended.out == "".join(
        line for line in smoke.ended.out.splitlines(keepends=True) if not line.startswith(FORECAST)
    )
    assert again.seconds < smoke.seconds


def started_at(workdir: Path) -> list[int]:
    """The step at which each process of a run began, in order."""
    events = sorted((workdir / "tensorboard").glob("events*"), key=lambda path: path.stat().st_mtime_ns)
    return [int(path.name.split(".")[-2]) for path in events]


@pytest.mark.parametrize(("name", "lines"), [("smoke", 1), ("smoke", 3), ("smoke", 5), ("inner", 5)])
def test_a_killed_run_ends_as_one_that_never_was(name, lines, request, smoke, tmp_path):
    whole: Run = request.getfixturevalue(name)
    flags = INNER if name == "inner" else ()
    workdir = prepared(smoke, tmp_path / "run")
    command = [sys.executable, "-m", "launch.train", CONFIG, *WARM, *flags, f"--workdir={workdir}"]
    kill_after(lines, workdir, command, environment())
    again = train(workdir, *flags)
    assert [without_timings(line) for line in again.lines] == [without_timings(line) for line in whole.lines]
    weights = [(run.workdir / "trained" / "model.safetensors").read_bytes() for run in (again, whole)]
    assert weights[0] == weights[1]
    for part in ("before", "after", "gain"):
        assert again.summary[part] == whole.summary[part]
    first, second = started_at(workdir)
    assert first == 0
    # A save goes on while the next steps run, and ends before the next save begins.
    assert second in ((0, 2) if lines < 5 else (2, 4))


def test_a_run_that_is_asked_to_stop_saves_and_ends_as_one_that_never_was(smoke, tmp_path):
    workdir = prepared(smoke, tmp_path / "run")
    command = [sys.executable, "-m", "launch.train", CONFIG, *WARM, f"--workdir={workdir}"]
    [ended] = signal_after(3, workdir, [command], environment(), signal.SIGTERM, to=0)
    step = stopped_after(ended)
    assert 3 <= step < STEPS
    assert (workdir / "checkpoints" / str(step)).is_dir() and not (workdir / "trained").exists()
    again = train(workdir)
    assert started_at(workdir) == [0, step]
    assert [without_timings(line) for line in again.lines] == [without_timings(line) for line in smoke.lines]
    weights = [(run.workdir / "trained" / "model.safetensors").read_bytes() for run in (again, smoke)]
    assert weights[0] == weights[1]


class TestAfterwards:
    """What can be done with a run that has ended."""

    def test_evaluating_the_trained_model_gives_the_same_answers(self, smoke, tmp_path):
        ended = evaluate(smoke, tmp_path / "out")
        found, wanted = files.read_json(tmp_path / "out" / "summary.json"), smoke.summary["after"]
        assert {name: found[name] for name in wanted} == wanted
        assert found["bayes_accuracy"] == smoke.summary["bayes_accuracy"]
        again = read_answers(tmp_path / "out" / "answers.parquet")
        assert again == read_answers(smoke.workdir / "evaluation" / "after.parquet")
        assert f"accuracy {100 * wanted['accuracy']:.1f}%" in ended.out
        shares = (f"{100 * wanted[name]:.1f}%" for name in ("answered", "truncated", "format"))
        assert ended.out.splitlines()[-1] == (
            "texts    with a letter {}, cut off by the length limit {}, with the letter of an option {}".format(*shares)
        )

    def test_checkpoints_can_be_exported(self, smoke, tmp_path):
        newest = apart("export", f"--workdir={smoke.workdir}", f"--out={tmp_path / 'newest'}")
        assert newest.code == 0, newest.err[-3_000:]
        assert newest.out == f"step {STEPS} of smoke written to {tmp_path / 'newest'}\n"
        trained = smoke.workdir / "trained"
        names = sorted(path.name for path in trained.iterdir())
        assert sorted(path.name for path in (tmp_path / "newest").iterdir()) == names
        for name in names:
            assert (tmp_path / "newest" / name).read_bytes() == (trained / name).read_bytes()
        earlier = apart("export", f"--workdir={smoke.workdir}", "--step=4", f"--out={tmp_path / 'earlier'}")
        assert earlier.code == 0, earlier.err[-3_000:]
        weights = (tmp_path / "earlier" / "model.safetensors").read_bytes()
        assert weights not in ((trained / "model.safetensors").read_bytes(), policy_weights(smoke))

    def test_the_report_can_be_built_again(self, smoke, tmp_path, monkeypatch, capfd):
        workdir = tmp_path / "run"
        ignored = shutil.ignore_patterns(
            "questions", "raw", "checkpoints", "initial", "policy", "trained", "tensorboard", "report.html"
        )
        shutil.copytree(smoke.workdir, workdir, ignore=ignored)
        shutil.rmtree(workdir / "plots")
        ended = here("report", f"--workdir={workdir}", monkeypatch=monkeypatch, capfd=capfd)
        assert ended.code == 0
        assert "after GRPO" in ended.out
        assert (workdir / "plots" / "main.png").is_file()
        page = (workdir / "report.html").read_text(encoding="utf-8")
        assert len(page) == len((smoke.workdir / "report.html").read_text(encoding="utf-8"))


def policy_weights(run: Run) -> bytes:
    return (run.workdir / "policy" / "model.safetensors").read_bytes()
