"""A machine that says it has a GPU."""

from __future__ import annotations

import stat
from pathlib import Path

GPU = "echo 'GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)'"


def nvidia_smi(folder: Path, script: str) -> Path:
    """A folder for PATH with an nvidia-smi that does what `script` says."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IEXEC)
    return folder
