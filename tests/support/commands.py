"""Running the programs of launch/ from tests: in this process, which is quick, or each in its own."""

from __future__ import annotations

import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from absl import flags

from launch import app

REPOSITORY = Path(__file__).resolve().parents[2]
# Tests run on the CPU, on a machine with a GPU too, and there these programs want to be told.
COMPUTING = ("train", "evaluate", "consult", "export")


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The one line about bad input; fails where there is anything else."""
        assert self.code == 2, self
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1 and self.err.endswith("\n"), self
        assert "Traceback" not in self.err + self.out, self
        return self.err.strip()


def here(program: str, *arguments: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Ended:
    """Run `python -m launch.PROGRAM` in this process; its flags are forgotten afterwards."""
    arguments = _on_cpu(program, arguments)
    module = importlib.import_module(f"launch.{program}")
    known = set(flags.FLAGS)
    monkeypatch.setattr(sys, "argv", [f"launch.{program}", *arguments])
    monkeypatch.setattr(app, "ENDS", _NoEnds())
    capfd.readouterr()
    code = None
    try:
        module.define_flags()
        app.run(module.main)
    except SystemExit as stop:
        code = stop.code
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)
    captured = capfd.readouterr()
    return Ended(code or 0, captured.out, captured.err)


class _NoEnds(list[Any]):
    """Forgets what would end this process: the tests go on in it."""

    def append(self, _: Any) -> None:
        pass


def environment(without: Sequence[str] = (), **changes: str) -> dict[str, str]:
    """This process's environment with one CPU device in place of the tests' eight, and without the variables named.

    What one program has compiled, the next one finds.
    """
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    kept |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    kept |= {
        "JAX_COMPILATION_CACHE_DIR": os.environ["COMPILED_BY_TESTS"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
    }
    return {name: value for name, value in kept.items() if name not in without} | changes


def apart(program: str, *arguments: str, timeout: float = 300, without: Sequence[str] = (), **variables: str) -> Ended:
    """Run `python -m launch.PROGRAM` in a process of its own, with `variables` in its environment and `without` others."""
    result = subprocess.run(
        [sys.executable, "-m", f"launch.{program}", *_on_cpu(program, arguments)],
        cwd=REPOSITORY,
        env=environment(without, **variables),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return Ended(result.returncode, result.stdout, result.stderr)


def _on_cpu(program: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
    # Answers made elsewhere are not computed, nor is anything without a model; these refuse to be told where.
    told = program not in COMPUTING or any(word.startswith(("--device", "--answers=")) for word in arguments)
    alone = program == "evaluate" and not any(word.startswith("--model") for word in arguments)
    return arguments if told or alone else ("--device=cpu", *arguments)
