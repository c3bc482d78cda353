"""How a process of PyTorch ends: with its exit code, whatever Gloo's threads still hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
# Collectives are still under way when the program ends, in a thread of Gloo that needs Python's lock to give back their
# tensors. Where Python itself ends the process, the thread comes too late in most runs, and PyTorch aborts: exit code -6.
PROGRAM = """
import atexit, ctypes, sys
import torch, torch.distributed as dist
from creason_torch import zero
from launch import app
from shared.errors import InputError

def main():
    zero.start_processes()
    app.ENDS.append(zero.end_process)
    atexit.register(print, "registered before the end")
    print("done")
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))  # for ever, as DeepSpeed keeps it
    for _ in range(20_000):
        dist.all_gather([torch.zeros(1)], torch.ones(1), async_op=True)
    {last}

app.run(main)
"""


@pytest.mark.parametrize(
    ("last", "code", "said"),
    [
        ("", 0, ""),
        ("raise InputError('--flag=3: give 2')", 2, "error: --flag=3: give 2\n"),
        ("sys.exit(7)", 7, ""),
        ("int('three')", 1, "ValueError: invalid literal for int() with base 10: 'three'\n"),
    ],
)
def test_a_process_ends_with_its_code_while_gloo_still_holds_tensors(last, code, said):
    command = [sys.executable, "-c", PROGRAM.format(last=last)]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert ended.returncode == code, ended.stderr
    assert ended.stdout == "done\nregistered before the end\n"
    assert ended.stderr.endswith(said) and ended.stderr.count("Traceback") == (code == 1)
