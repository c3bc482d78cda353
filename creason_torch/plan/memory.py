"""The free memory of a device."""

from __future__ import annotations

import socket
import zlib

import torch
import torch.distributed as dist

from shared.runs import memory as host


def free_bytes(device: torch.device, sharers: int = 1) -> int:
    """Bytes that this process may use. On a CPU the free memory is divided by `sharers`, the processes on this machine."""
    if device.type != "cuda":
        return host.free_bytes(sharers)
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(host.USED * (free + unused))


def processes_here() -> int:
    """How many of the run's processes are on this machine; every process must call it."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return 1
    device = "cpu" if dist.get_backend() == "gloo" else torch.device("cuda", torch.cuda.current_device())
    own = torch.tensor([zlib.crc32(socket.gethostname().encode())], dtype=torch.int64, device=device)
    hashes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(hashes, own)
    return int(sum(int(host_hash == own) for host_hash in hashes))
