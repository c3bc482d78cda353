"""Two processes make the run of one; where one of them is killed the other says so and ends, and both go on together."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from shared.training.metrics_log import without_timings
from tests.support.commands import REPOSITORY, Ended, environment
from tests.support.smoke_runs import CONFIG, STEPS, WARM, Run, after, prepared, signal_after, stopped_after
from tests.support.workers import free_port

pytestmark = pytest.mark.slow

GONE = "error: process {} of 2 ended; start all processes again with the same command, the run goes on from its last checkpoint"


# `python -m launch.train`, where a process that was killed is missed sooner than the 40 s that busy machines need.
TRAIN = """
import runpy
from creason_jax import distributed
distributed.SILENCE = 20.0
runpy.run_module("launch.train", run_name="__main__", alter_sys=True)
"""


def commands(workdir: Path) -> list[list[str]]:
    """The command of each of two processes."""
    flags = [CONFIG, *WARM, f"--workdir={workdir}", f"--coordinator=127.0.0.1:{free_port()}", "--num_processes=2"]
    return [[sys.executable, "-c", TRAIN, *flags, f"--process_id={process}"] for process in range(2)]


def train(workdir: Path) -> Run:
    """A run by two processes to its end."""
    begin = time.monotonic()
    started = [
        subprocess.Popen(
            command, cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command in commands(workdir)
    ]
    try:
        told = [process.communicate(timeout=900) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], "".join(err for _, err in told)[-4_000:]
    assert "after GRPO" in told[0][0] and "after GRPO" not in told[1][0]
    return Run(workdir, Ended(0, *told[0]), time.monotonic() - begin)


def without_room(pid: int) -> None:
    """From now on the process may write no file longer than a checkpoint's small ones."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (20_000, 20_000))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run by two processes that nobody disturbs."""
    return train(tmp_path_factory.mktemp("two") / "run")


def test_the_run_is_whole(whole):
    assert [line["step"] for line in whole.lines] == list(range(STEPS))
    assert sum(line["grad_norm"] > 0 for line in whole.lines) >= 4
    assert all(line["logprob_gap"] < 1e-4 for line in whole.lines)
    assert whole.summary["timings"]["steps"] == STEPS


def test_a_run_goes_on_whatever_is_done_to_its_processes(whole, tmp_path):
    """Process 1 cannot save, then it is killed, then process 0, then process 1 is asked to stop; each time both are started
    again."""
    workdir = prepared(whole, tmp_path / "run")
    # Process 1 has no room for its part of a checkpoint, in the background: one line each, and nothing that looks whole.
    survivor, full = after(1, workdir, commands(workdir), environment(), without_room, to=1, within=60)
    assert (survivor.code, survivor.err.splitlines()) == (1, [GONE.format(1)])
    assert full.refusal.startswith(f"error: {workdir / 'checkpoints'}: a checkpoint cannot be written (")
    assert "File too large); see that there is room" in full.refusal
    assert not [path for path in (workdir / "checkpoints").iterdir() if path.name.isdigit()]
    # Process 1 gone: one line, and none but Orbax's about what the failed save has left.
    survivor, killed = signal_after(3, workdir, commands(workdir), environment(), signal.SIGKILL, to=1)
    assert (survivor.code, killed.code) == (1, -signal.SIGKILL)
    lines = survivor.err.splitlines()
    assert lines.pop() == GONE.format(1) and all(
        "2.orbax-checkpoint-tmp which already exists" in line for line in lines
    )
    # Process 0 gone, and the service that JAX needs with it: JAX's own lines may come first.
    killed, survivor = signal_after(4, workdir, commands(workdir), environment(), signal.SIGKILL, to=0)
    assert (killed.code, survivor.code) == (-signal.SIGKILL, 1)
    assert survivor.err.splitlines()[-1] == GONE.format(0)
    # Asked to stop: both after the same step.
    first, second = signal_after(5, workdir, commands(workdir), environment(), signal.SIGTERM, to=1)
    assert 5 <= stopped_after(first) <= STEPS
    assert second.code == 0 and "stopped" not in second.out and second.err == ""
    assert not (workdir / "trained").exists()
    again = train(workdir)
    assert [without_timings(line) for line in again.lines] == [without_timings(line) for line in whole.lines]
    weights = [(run.workdir / "trained" / "model.safetensors").read_bytes() for run in (again, whole)]
    assert weights[0] == weights[1]
    for part in ("before", "after", "gain"):
        assert again.summary[part] == whole.summary[part]


def test_bad_input_that_one_process_finds_ends_all_with_one_line_each(tmp_path):
    """A model directory that is not there: found by process 0 alone, before the others look."""
    workdir = tmp_path / "run"
    started = [
        subprocess.Popen(
            [*command, f"--config.model.path={tmp_path / 'none'}"],
            cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for command in commands(workdir)
    ]  # fmt: skip
    try:
        (_, first), (_, second) = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 1]
    assert first.startswith("error: model.path = ") and first.count("\n") == 1
    assert second.splitlines() == [GONE.format(0)]
