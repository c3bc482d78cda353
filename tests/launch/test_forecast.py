"""What a run needs is said before it is done, without weights; it is what is taken then; what cannot fit is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from launch import config_file
from shared.config import validate, with_compute_dtype
from shared.policy.tokenizer import load_tokenizer
from shared.preparation import inputs
from shared.questions.prompts import PromptStyle
from shared.questions.record import write_questions
from shared.runs.forecast import FACTOR
from shared.runs.memory import text
from shared.runs.workdir import claim
from shared.tasks.prompts import prompt_tokens
from tests.support.commands import REPOSITORY, environment, here
from tests.support.exam import exam, exam_tokenizer, of_others
from tests.support.tiny import tiny_phi3

QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # see tests/conftest.py
BACKENDS = ("jax", "torch")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Questions, a model, and the same model without its weights."""
    folder = tmp_path_factory.mktemp("forecast")
    for name in ("model", "without"):
        exam_tokenizer(folder / name)
        tiny_phi3(folder / name, vocab_size=512, num_hidden_layers=1)
    for path in (folder / "without").glob("*.safetensors*"):
        path.unlink()
    write_questions(folder / "questions.parquet", exam(6))
    write_questions(folder / "train.parquet", of_others(exam(6)))
    return folder


@pytest.fixture
def call(root, monkeypatch, capfd):
    monkeypatch.chdir(REPOSITORY)

    def run(program: str, model: str, *flags: str):
        if program == "train":
            given = ["--config=configs/smoke.py"]
            given += [
                f"--config.data.train={root / 'train.parquet'}",
                f"--config.data.valid={root / 'questions.parquet'}",
            ]
            small = ["--config.rollout.max_prompt_tokens=400", "--config.warmup.steps=0"]
            if "--backend=torch" in flags:
                small.append("--config.torch.rollout_engine=hf")
            given += [f"--config.model.path={root / model}", f"--workdir={root / 'new'}", *small]
        else:
            given = [f"--questions={root / 'questions.parquet'}", f"--model={root / model}", f"--out={root / 'new'}",
                     "--max_prompt_tokens=400", "--max_new_tokens=24", "--slots=4", "--compute_dtype=float32"]  # fmt: skip
        return here(program, *given, *flags, monkeypatch=monkeypatch, capfd=capfd)

    return run


def prompt_lengths(model: Path) -> list[int]:
    found = prompt_tokens(
        load_tokenizer(model), exam(6), style=PromptStyle(), rows=None, max_tokens=400, overlong="drop"
    )
    return [len(prompt) for prompt in found[1]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_a_dry_run_needs_no_weights_and_makes_nothing(root, call, program, backend):
    engine = ["--engine=hf"] if (program, backend) == ("evaluate", "torch") else []
    ended = call(program, "without", "--dry_run", f"--backend={backend}", *engine)
    assert ended.code == 0, ended.err
    lengths = prompt_lengths(root / "without")
    assert (
        f"tokens   prompts: median {int(np.median(lengths))}, longest {max(lengths)}; completions: at most 24"
        in ended.out
    )
    [memory] = [line for line in ended.out.splitlines() if line.startswith("memory ")]
    words = ("weights", "gradients", "optimizer state", "reference", "KV cache", "temporaries", "free")
    assert all(word in memory for word in (words if program == "train" else ("weights", "KV cache", "free")))
    if program == "train":
        stored = load_file(root / "model" / "model.safetensors")
        size = 16 * sum(weight.size for weight in stored.values())  # weights, two moments, reference: float32
        assert f"disk     checkpoints of {text(size)}: up to {text(3 * size)} with 2 kept" in ended.out
        assert (
            "at risk  if the machine fails, at most 2 of the 6 steps must be computed again (a checkpoint" in ended.out
        )
    assert not (root / "new").exists()


def test_a_dry_run_refuses_what_the_run_would_refuse(root, call, tmp_path):
    """The same patients on both sides; a work directory begun by another config, or with other questions of the same name."""
    ended = call("train", "without", "--dry_run", f"--config.data.train={root / 'questions.parquet'}")
    assert ended.code == 2 and "so that they are not held out" in ended.err
    train = shutil.copy(root / "train.parquet", tmp_path / "train.parquet")
    values = config_file.load(str(REPOSITORY / "configs" / "smoke.py"))
    values.data.train, values.data.valid = str(train), str(root / "questions.parquet")
    values.model.path, values.rollout.max_prompt_tokens, values.warmup.steps = str(root / "without"), 400, 0
    config = with_compute_dtype(validate(values), "float32")
    inputs.hold_data(config.data, claim(config, tmp_path / "begun"))
    command = ("train", "without", "--dry_run", f"--workdir={tmp_path / 'begun'}", f"--config.data.train={train}")
    ended = call(*command)
    assert (ended.code, ended.err) == (0, "")
    assert f"begun    {tmp_path / 'begun'} holds this run; it goes on from its last checkpoint" in ended.out
    ended = call(*command, "--config.seed=8")
    assert ended.code == 2 and "holds a run with another config (it differs in seed)" in ended.err
    write_questions(train, of_others(exam(5)))
    ended = call(*command)
    assert ended.code == 2 and f"error: {train}: " in ended.err


def test_a_dry_run_says_that_prompts_are_cut_and_how_to_keep_them_whole(root, call):
    lengths = prompt_lengths(root / "without")
    limit = sorted(lengths)[2]
    cut = sum(length > limit for length in lengths)
    ended = call("train", "without", "--dry_run", f"--config.rollout.max_prompt_tokens={limit}")
    assert ended.code == 0, ended.err
    assert f"longest {max(lengths)};" in ended.out  # what they are, not what is left of them
    [line] = [line for line in ended.out.splitlines() if line.startswith("warning ")]
    count, of = line.removeprefix("warning  ").split(" prompts")[0].split(" of ")
    assert int(count) / int(of) == cut / len(lengths)
    assert f"max_prompt_tokens = {limit} and lose their beginning" in line
    assert line.endswith(f"--config.rollout.max_prompt_tokens={max(lengths)} keeps them whole")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("program", ["train", "evaluate"])
def test_what_cannot_fit_is_refused_before_weights_are_read(root, call, program, backend, monkeypatch):
    """There are no weights to read, and the message is not about them."""
    monkeypatch.setattr("shared.runs.memory.free_bytes", lambda sharers=1: 2**20 // sharers)
    engine = ["--engine=hf"] if (program, backend) == ("evaluate", "torch") else []
    ended = call(program, "without", "--dry_run", f"--backend={backend}", *engine)
    assert "needed on" in ended.refusal and "it cannot fit; what helps: " in ended.refusal
    assert not (root / "new").exists()


def test_a_run_that_cannot_fit_does_not_begin(root, call, monkeypatch):
    monkeypatch.setattr("shared.runs.memory.free_bytes", lambda sharers=1: 2**20 // sharers)
    monkeypatch.setattr(
        "creason_torch.learner.learner.Learner.__init__", lambda *_, **__: pytest.fail("the learner was made")
    )
    ended = call("train", "model", "--backend=torch")
    assert "it cannot fit; what helps: rollout.max_prompt_tokens = " in ended.refusal
    assert "tokens   prompts: median" in ended.out


def test_a_full_disk_is_seen_before_the_run_begins(root, call, monkeypatch):
    monkeypatch.setattr("shared.runs.forecast.free_disk", lambda folder: 2**20)
    ended = call("train", "without", "--dry_run", "--backend=torch")
    assert "checkpoints: checkpoints need 8 MiB and 1 MiB are free; what helps: " in ended.refusal


def test_what_is_not_there_is_said_and_the_rest_is_known(root, call):
    ended = call("train", "nowhere", "--dry_run", "--backend=torch")
    assert ended.code == 0
    assert "tokens   not known (model.path = " in ended.out and "memory   not known (model.path = " in ended.out
    ended = call("train", "without", "--dry_run", "--backend=torch", f"--config.data.train={root / 'none.parquet'}")
    assert f"tokens   not known ({root / 'none.parquet'}: no such question file" in ended.out
    assert "\nmemory   about " in ended.out


@pytest.mark.slow
def test_a_few_steps_say_how_long_the_run_takes(root, call):
    ended = call("train", "model", "--dry_run", "--measure", "--backend=torch")
    assert ended.code == 0, ended.err
    [line] = [line for line in ended.out.splitlines() if line.startswith("time ")]
    assert "; 6 steps " in line and "both evaluations of 6 questions" in line and " in all" in line
    assert "GRPO" not in ended.out and not (root / "new").exists()
    ended = call("evaluate", "model", "--dry_run", "--measure", "--backend=torch", "--engine=hf")
    assert "s a question" in ended.out and "for 6 of them" in ended.out and not (root / "new").exists()
    assert "--measure: goes with --dry_run" in call("train", "model", "--measure").refusal


@pytest.fixture(scope="module")
def peaks(tmp_path_factory) -> dict[str, dict[str, float]]:
    """Of each backend what was forecast and what a process of its own took."""
    running = {}
    for backend in BACKENDS:
        folder = tmp_path_factory.mktemp(backend)
        command = [sys.executable, "-m", "tests.support.peak_worker", backend, "none", str(folder)]
        given = environment(["JAX_COMPILATION_CACHE_DIR"], XLA_FLAGS=QUICKLY)
        running[backend] = subprocess.Popen(
            command, cwd=REPOSITORY, env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    found = {}
    for backend, process in running.items():
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-3_000:]
        found[backend] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_forecast_is_near_what_is_taken(peaks, backend):
    found = peaks[backend]
    assert found["taken"] > 300 * 2**20  # else libraries' own memory would decide
    assert found["forecast"] / FACTOR < found["taken"] < found["forecast"] * FACTOR
    assert found["least"] < found["taken"]  # what is refused is never what would have fitted
