"""Which accelerators this machine has. The machine itself is asked, so neither JAX nor PyTorch must be installed."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")
GOOGLE = "0x1ae0"  # PCI vendor
# PCI device ids of TPUs: v3, v4, v5p, v5e, v6e, tpu7x. Google's virtual machines have other devices of that vendor too.
TPUS = {"0x0027", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}
ANSWER_LIMIT = 30  # seconds for nvidia-smi; with a broken driver it may hang


def tpu_chips(devices: Path = PCI_DEVICES) -> int:
    """How many TPU chips are attached to this machine."""
    ids = [(_id(path / "vendor"), _id(path / "device")) for path in devices.glob("*")]
    return sum(vendor == GOOGLE and device in TPUS for vendor, device in ids)


def has_nvidia_gpu() -> bool:
    """Whether `nvidia-smi` is here and finds a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=ANSWER_LIMIT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and "no devices" not in answer.stdout.lower()


def slurm_gpus() -> int:
    """How many GPUs Slurm gave to this job on this node."""
    count = os.environ.get("SLURM_GPUS_ON_NODE", "")
    return int(count) if count.isdecimal() else 0


def accelerators() -> list[str]:
    """The signs that this machine has an accelerator, in words; empty where there is none."""
    signs = []
    if has_nvidia_gpu():
        signs.append("nvidia-smi lists a GPU")
    if slurm_gpus():
        signs.append(f"SLURM_GPUS_ON_NODE is {slurm_gpus()}")
    if tpu_chips():
        signs.append(f"it has {tpu_chips()} TPU chips")
    return signs


def kind() -> str:
    """The kind of device that software is to be installed for on this machine: `cuda`, `tpu` or `cpu`."""
    return "cuda" if has_nvidia_gpu() else "tpu" if tpu_chips() else "cpu"


def _id(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # a device may go away, or hide its id
        return ""


if __name__ == "__main__":
    print(kind())  # the Makefile asks, before any package is installed
