"""Two processes with nothing in common but a bucket: questions, model and checkpoints there, a work directory for each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import pytest

from shared.config import ModelConfig
from shared.policy.initial import write_model
from shared.policy.tokenizer import special_tokens
from shared.questions.record import write_questions
from shared.storage import files
from tests.support.commands import REPOSITORY, environment
from tests.support.exam import exam, exam_tokenizer
from tests.support.workers import free_port

pytestmark = pytest.mark.slow

SMALL = ModelConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
FIELDS = {
    "warmup.steps": 0,
    "grpo.beta": 0.0,
    "grpo.steps": 2,
    "grpo.questions_per_step": 2,
    "grpo.group_size": 2,
    "rollout.max_prompt_tokens": 192,
    "rollout.max_new_tokens": 4,
    "checkpoint.every": 1,
}


def fill(bucket: str, folder: Path) -> dict[str, str]:
    """Put question files and a model there, and return the fields that name them."""
    model = folder / "model"
    tokens = special_tokens(exam_tokenizer(model), model)
    write_model(
        SMALL, model, vocab_size=tokens.vocab_size, bos=tokens.bos, eos=tokens.eos, pad=tokens.pad, seed=1
    )  # fmt: skip
    write_questions(folder / "train.parquet", exam(4))
    write_questions(folder / "valid.parquet", exam(4, start=10))
    there = fsspec.filesystem("gs")
    for name in ("train.parquet", "valid.parquet", *(f"model/{path.name}" for path in model.iterdir())):
        there.pipe_file(f"{bucket}/{name}", (folder / name).read_bytes())
    return {
        "data.train": f"{bucket}/train.parquet",
        "data.valid": f"{bucket}/valid.parquet",
        "model.path": f"{bucket}/model",
    }


def train(folder: Path, fields: dict[str, object]) -> list[subprocess.CompletedProcess[str]]:
    """Two processes of a run, each with a work directory of its own in `folder`."""
    flags = ["--config=configs/smoke.py", *(f"--config.{name}={value}" for name, value in fields.items())]
    flags += [f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "launch.train", *flags, f"--workdir={folder / str(process)}", f"--process_id={process}"],
            cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in range(2)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [subprocess.CompletedProcess(p.args, p.returncode, out, err) for p, (out, err) in zip(started, told)]


@pytest.fixture
def fields(bucket, tmp_path):
    """The fields of a small run that reads from a bucket."""
    (tmp_path / "source").mkdir()
    return FIELDS | fill(bucket, tmp_path / "source")


def test_processes_without_a_common_folder_make_a_run_through_a_bucket(bucket, tmp_path, fields):
    ended = train(tmp_path, fields | {"checkpoint.folder": f"{bucket}/run"})
    assert [each.returncode for each in ended] == [0, 0], "".join(each.stderr for each in ended)[-4_000:]
    assert "after GRPO" in ended[0].stdout and "after GRPO" not in ended[1].stdout
    there = fsspec.filesystem("gs", use_listings_cache=False).ls(f"{bucket}/run")
    assert sorted(path.rsplit("/", 1)[-1] for path in there) == ["1", "2", "config.json", "inputs.json", "prompts.json"]
    first, second = (sorted(path.name for path in (tmp_path / process).iterdir()) for process in "01")
    assert second == [".model.lock", "model"]
    assert {
        "config.json",
        "evaluation",
        "inputs.json",
        "metrics.jsonl",
        "model",
        "prompts.json",
        "report.html",
        "summary.json",
        "trained",
    } <= {*first}
    assert "checkpoints" not in first
    assert files.read_json(tmp_path / "0" / "summary.json")["timings"]["steps"] == 2
