"""Starts worker processes and reads what they found."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Found:
    """What a learner left: its metrics, its state by "kind/name", and elements held of policy and reference."""

    metrics: list[Any]
    arrays: dict[str, np.ndarray]
    held: list[int]


def run_workers(specs: list[dict[str, Any]], folder: Path, *, processes: int = 1, killed: bool = False) -> list[Found]:
    """Run learners one after the other in `processes` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{processes}.spec.json"
    file.write_text(json.dumps(specs))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    }
    environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tests.support.worker", str(file)]
    if processes > 1:
        launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", f"--master-port={free_port()}"]
        command[1:1] = launcher
    ended = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=600)
    assert (ended.returncode != 0) == killed, ended.stderr[-4_000:]
    return [] if killed else [read(spec["out"]) for spec in specs]


def read(out: str) -> Found:
    """What one learner wrote."""
    told = json.loads(Path(out + ".json").read_text())
    with np.load(out + ".npz") as stored:
        return Found(told["metrics"], {name: stored[name] for name in stored.files}, told["held"])


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def distance(found: Found, expected: Found, kinds: tuple[str, ...] = ("params",)) -> float:
    """The largest relative L2 distance of a tensor of these kinds from what is expected."""
    names = [name for name in expected.arrays if name.split("/")[0] in kinds]
    assert names and {name for name in found.arrays if name.split("/")[0] in kinds} == set(names)
    pairs = [(found.arrays[name].astype(np.float64), expected.arrays[name].astype(np.float64)) for name in names]
    return max(float(np.linalg.norm(one - other) / np.linalg.norm(other)) for one, other in pairs)
