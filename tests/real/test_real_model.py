"""A real language model through the programs that a user starts: SmolLM2-135M-Instruct, whose head is its embedding."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from shared.policy.tokenizer import load_tokenizer
from shared.questions.prompts import PREFILL, SYSTEM_PROMPT
from shared.questions.record import write_questions
from shared.tasks.prompts import user_message
from tests.support.commands import REPOSITORY, environment
from tests.support.exam import exam

pytestmark = pytest.mark.real

COUNT, WRITTEN = 6, 24
LAPTOP = 4 * 2**30  # bytes that one program may take of a laptop with 8 GB


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("questions") / "valid.parquet"
    write_questions(path, exam(COUNT))
    return path


@pytest.fixture(scope="module")
def expected(smollm2: Path) -> list[str]:
    """What Transformers itself writes after the same prompts, greedily, in float32."""
    tokenizer = load_tokenizer(smollm2)
    network = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    texts = []
    for question in exam(COUNT):
        turns = [("system", SYSTEM_PROMPT), ("user", user_message(question)), ("assistant", PREFILL)]
        prompt = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in turns], continue_final_message=True,
            return_dict=True, return_tensors="pt",
        )  # fmt: skip
        written = network.generate(**prompt, do_sample=False, max_new_tokens=WRITTEN)
        texts.append(tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def evaluate(model: Path, questions: Path, out: Path, *flags: str) -> int:
    """`launch.evaluate` as a program; fails where it does. Returns the bytes that it held at most, looked at all the time.

    `ru_maxrss` would count what the process of the tests held, too.
    """
    command = [sys.executable, "-m", "launch.evaluate", f"--model={model}", f"--questions={questions}", f"--out={out}"]
    said = out.with_suffix(".stderr")
    with said.open("w") as stderr:
        program = subprocess.Popen(
            [*command, "--device=cpu", *flags], cwd=REPOSITORY, env=environment(["OMP_NUM_THREADS"]),
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    peak = 0
    while program.poll() is None:
        peak = max(peak, held_by(program.pid))
        time.sleep(0.05)
    assert program.returncode == 0, said.read_text()
    return peak


def held_by(pid: int) -> int:
    """Bytes of memory that a process and those it started hold now."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
        program = psutil.Process(pid)
        for process in (program, *program.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
    return total


@pytest.mark.parametrize("engine", ["jax", "hf", "vllm"])
def test_every_engine_writes_what_transformers_writes(engine, smollm2, questions, expected, tmp_path):
    backend = "--backend=jax" if engine == "jax" else "--backend=torch"
    kind = [] if engine == "jax" else [f"--engine={engine}"]
    evaluate(
        smollm2, questions, tmp_path / "out", backend, *kind, "--completions", f"--max_new_tokens={WRITTEN}",
        "--compute_dtype=float32",
    )  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "out" / "completions.jsonl").read_text().splitlines()]
    written = {line["id"]: line["completion"] for line in lines}
    assert [written[question.id] for question in exam(COUNT)] == expected


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_defaults_fit_a_laptop(backend, smollm2, questions, tmp_path):
    peak = evaluate(smollm2, questions, tmp_path / "out", f"--backend={backend}", "--limit=2")
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["n"] == 2
    assert 2**28 < peak < LAPTOP
