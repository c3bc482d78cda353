"""The free memory of a machine, and of the container around a process, from files as Linux writes them."""

from __future__ import annotations

import resource
from pathlib import Path
from types import SimpleNamespace

import pytest

from shared.runs import memory

MACHINE = 64 * 2**30


@pytest.fixture
def machine(monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=MACHINE))
    monkeypatch.setattr(memory.resource, "getrlimit", lambda what: (resource.RLIM_INFINITY,) * 2)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def v2(folder: str, limit: str, used: int, inactive: int = 0) -> dict[str, str]:
    stat = f"anon {used - inactive}\nfile {inactive}\ninactive_anon 7\ninactive_file {inactive}\nactive_file 9\n"
    names = {"memory.max": f"{limit}\n", "memory.current": f"{used}\n", "memory.stat": stat}
    return {f"sys/fs/cgroup/{folder}{name}": text for name, text in names.items()}


def v1(folder: str, limit: int, used: int, inactive: int = 0) -> dict[str, str]:
    names = {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{used}\n",
        "memory.stat": f"cache 5\ninactive_file 1\ntotal_inactive_file {inactive}\n",
    }
    return {f"sys/fs/cgroup/memory/{folder}{name}": text for name, text in names.items()}


def without_stat(files: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in files.items() if not name.endswith("memory.stat")}


IN_V2 = {"proc/self/cgroup": "0::/system.slice/job.scope\n"}
IN_V1 = {"proc/self/cgroup": "9:name=systemd:/\n4:memory:/docker/0ab\n3:cpu,cpuacct:/docker/0ab\n0::/\n"}
GIB = 2**30


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, MACHINE),  # not Linux
        (IN_V2, MACHINE),
        (IN_V2 | v2("system.slice/job.scope/", "max", 3 * GIB), MACHINE),
        (IN_V2 | v2("system.slice/job.scope/", str(8 * GIB), 3 * GIB), 5 * GIB),
        # The kernel gives back what it keeps of files that were read.
        (IN_V2 | v2("system.slice/job.scope/", str(8 * GIB), 3 * GIB, 2 * GIB), 7 * GIB),
        # The limit of a parent, as Slurm and systemd set it, and of the smaller of two.
        (IN_V2 | v2("system.slice/", str(4 * GIB), GIB) | v2("system.slice/job.scope/", "max", GIB), 3 * GIB),
        (IN_V2 | v2("system.slice/", str(4 * GIB), GIB) | v2("system.slice/job.scope/", str(2 * GIB), GIB), GIB),
        # In a container: its own group is at the top of what it sees.
        ({"proc/self/cgroup": "0::/\n"} | v2("", str(8 * GIB), 2 * GIB), 6 * GIB),
        ({"proc/self/cgroup": "0::/../../host/path\n"} | v2("", str(8 * GIB), 2 * GIB), 6 * GIB),
        (IN_V1 | v1("", 8 * GIB, 2 * GIB, GIB), 7 * GIB),
        (IN_V1 | v1("docker/0ab/", 8 * GIB, 2 * GIB) | v1("", 2**63 - 4096, 9 * GIB), 6 * GIB),
        (IN_V1 | v1("", 2**63 - 4096, 9 * GIB), MACHINE),
        # Sandboxes such as gVisor have limits but no memory.stat.
        (IN_V2 | without_stat(v2("system.slice/job.scope/", str(8 * GIB), 3 * GIB, 2 * GIB)), 5 * GIB),
        (IN_V1 | without_stat(v1("docker/0ab/", 8 * GIB, 2 * GIB, GIB)), 6 * GIB),
        # More than it may have, for a moment.
        (IN_V2 | v2("system.slice/job.scope/", str(GIB), 2 * GIB), 0),
    ],
)
def test_the_smallest_of_machine_and_containers(machine, tmp_path, files, left):
    usable = max(0, min(int(0.9 * left), left - 256 * 2**20))  # a tenth is left alone, or 256 MiB
    assert memory.free_bytes(1, write(tmp_path, files)) == pytest.approx(usable, abs=1)
    assert memory.free_bytes(8, tmp_path) == pytest.approx(usable / 8, abs=1)


def test_a_limit_of_addresses_counts(machine, monkeypatch):
    monkeypatch.setattr(memory.resource, "getrlimit", lambda what: (10 * GIB, 12 * GIB))
    monkeypatch.setattr(
        memory.psutil, "Process", lambda: SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=4 * GIB))
    )
    assert memory.free_bytes() == int(0.9 * 6 * GIB)


def test_of_this_machine():
    total = memory.psutil.virtual_memory().total
    assert 0 < memory.free_bytes() < total
    assert (memory.text(3 * GIB), memory.text(50 * 2**20)) == ("3.0 GiB", "50 MiB")
