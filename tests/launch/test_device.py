"""What a run computes on: an accelerator that is there is used, or the program stops; libtpu is quiet where there is no TPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from shared.storage import files
from tests.support.commands import REPOSITORY, Ended, apart, environment
from tests.support.nvidia import GPU, nvidia_smi

pytestmark = pytest.mark.slow

COMPLAINT = "TPU_ACCELERATOR_TYPE"  # in what libtpu prints where there is no TPU


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """A work directory with a config and nothing else: `launch.export` makes the backend, then says that there is no model."""
    folder = tmp_path / "run"
    folder.mkdir()
    files.write_json(folder / "config.json", {"name": "test", "model": {"path": str(tmp_path / "nothing")}})
    return folder


def export(workdir: Path, *flags: str, without: Sequence[str] = (), **variables: str) -> Ended:
    """`launch.export` with `variables` in its environment and those named in `without` not."""
    return apart("export", f"--workdir={workdir}", f"--out={workdir / 'out'}", *flags, without=without, **variables)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_gpu_that_the_backend_cannot_use_stops_it(backend, workdir, tmp_path):
    path = f"{nvidia_smi(tmp_path / 'bin', GPU)}:{os.environ['PATH']}"
    refusal = export(
        workdir, "--device=auto", f"--backend={backend}", without=("JAX_PLATFORMS", "DS_ACCELERATOR"), PATH=path
    ).refusal
    assert f"the {backend} backend would run on the CPU although nvidia-smi lists a GPU" in refusal
    assert "--device=cpu" in refusal and "DEVICE=cuda" in refusal


def test_gpus_of_a_slurm_job_count_too(workdir):
    refusal = export(workdir, "--device=auto", SLURM_GPUS_ON_NODE="4").refusal
    assert "although SLURM_GPUS_ON_NODE is 4" in refusal
    assert "unset JAX_PLATFORMS, which is 'cpu'" in refusal


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_told_to_use_the_cpu_it_does(backend, workdir, tmp_path):
    path = f"{nvidia_smi(tmp_path / 'bin', GPU)}:{os.environ['PATH']}"
    refusal = export(workdir, "--device=cpu", f"--backend={backend}", PATH=path, SLURM_GPUS_ON_NODE="1").refusal
    assert "backend" not in refusal and "nothing" in refusal, "it went on to the model that is not there"


@pytest.mark.parametrize(("flags", "reason"), [
    (["--backend=jax", "--device=cuda"], "JAX sees no GPU on this machine"),
    (["--backend=torch", "--device=cuda"], "--device=cuda: the torch backend finds none here"),
    (["--backend=torch", "--device=tpu"], "the PyTorch backend runs on GPUs and CPUs"),
])  # fmt: skip
def test_a_device_that_is_not_there_is_refused(flags, reason, workdir):
    assert reason in export(workdir, *flags).refusal


def devices_of(*imports: str) -> subprocess.CompletedProcess[str]:
    """Ask JAX for its devices in a process of its own that was told nothing."""
    told = ["JAX_PLATFORMS", *(name for name in os.environ if name.startswith("TPU_"))]  # a test of plans sets libtpu's
    code = "\n".join([*(f"import {name}" for name in imports), "import jax", "print(jax.devices()[0].platform)"])
    return subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, env=environment(told), capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip


@pytest.mark.parametrize("package", ["creason_jax", "parity", "benchmarks"])
def test_libtpu_is_quiet_where_there_is_no_tpu(package):
    quiet = devices_of(package)
    assert (quiet.stdout.strip(), quiet.stderr) == ("cpu", "")


def test_libtpu_would_complain_otherwise():
    assert COMPLAINT in devices_of().stderr


def test_a_program_prints_none_of_it(workdir):
    export(workdir, "--device=auto", without=("JAX_PLATFORMS",)).refusal  # noqa: B018  one line, or it fails
