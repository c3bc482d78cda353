"""How much of a machine's own memory is free, for devices that have no other: CPUs. A container's limit counts, too."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import psutil

GIB = 2**30
USED = 0.95  # fraction of an accelerator's free memory that is used: an allocator cannot fill the last gaps
# Libraries, compilers and the rest of the machine need memory, too: this part of the free memory, and at least so many bytes,
# are not used.
RESERVED_PART, RESERVED_BYTES = 0.1, 256 * 2**20
# For each version of Linux's control groups: the files of a group that hold its limit and its use, and the line of memory.stat
# with the part of that use (files that were read) that the kernel gives back when memory is needed.
GROUP_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def free_bytes(sharers: int = 1, root: Path = Path("/")) -> int:
    """Bytes that each of `sharers` processes or devices may fill: of the machine, or of the control group of this process.

    A container, a Kubernetes pod, a Slurm job or systemd limits the memory of a process by such a group, and a process that
    uses more is killed. `root` is the folder with `proc` and `sys`.
    """
    free_by_limit = [psutil.virtual_memory().available, *_left_in_groups(root)]
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)  # `ulimit -v`, as some batch systems set it
    if addresses != resource.RLIM_INFINITY:
        free_by_limit.append(max(0, addresses - psutil.Process().memory_info().vms))
    free = min(free_by_limit)
    return int(max(0, free - max(RESERVED_PART * free, RESERVED_BYTES)) / sharers)


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes that each limited group of this process has left."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            version, mounts = 2, [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "memory" in controllers.split(","):
            version, mounts = 1, [root / "sys/fs/cgroup/memory"]
        else:
            continue
        for mount in mounts:
            # In a container the path may be the host's, and the group itself is mounted at the top.
            group = mount / path.strip("/")
            while group.is_relative_to(mount):
                left = _left(group, version)
                if left is not None:
                    yield left
                if group == mount:
                    break
                group = group.parent


def _left(group: Path, version: int) -> int | None:
    limit_file, use_file, reclaimable = GROUP_FILES[version]
    try:
        limit, use = (group / limit_file).read_text().strip(), int((group / use_file).read_text())
    except (OSError, ValueError):
        return None  # no such group here, or one without a limit of its own
    if limit == "max":
        return None
    try:
        stat = dict(line.split()[:2] for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        stat = {}  # some sandboxes have none: then all that is used counts
    return max(0, int(limit) - use + int(stat.get(reclaimable, 0)))


def text(count: float) -> str:
    """A count of bytes as a message shows it."""
    return f"{count / GIB:.1f} GiB" if count >= GIB / 10 else f"{count / 2**20:.0f} MiB"
