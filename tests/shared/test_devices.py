"""What a machine says of its accelerators."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.runs import devices
from tests.support.nvidia import GPU, nvidia_smi

# What `nvidia-smi -L` prints and how it ends: with GPUs, with none, and where the driver is not running.
NO_GPU = "echo 'No devices found.'"
NO_DRIVER = "echo 'NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.'; exit 9"


def pci(folder: Path, *cards: tuple[str, str]) -> Path:
    """A folder like /sys/bus/pci/devices with one entry for each (vendor, device)."""
    for number, (vendor, device) in enumerate(cards):
        entry = folder / f"0000:00:{number:02d}.0"
        entry.mkdir(parents=True)
        (entry / "vendor").write_text(f"{vendor}\n")
        (entry / "device").write_text(f"{device}\n")
    return folder


@pytest.mark.parametrize(("script", "there"), [(GPU, True), (NO_GPU, False), (NO_DRIVER, False)])
def test_a_gpu_is_there_where_nvidia_smi_finds_one(script, there, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(nvidia_smi(tmp_path / "bin", script)), prepend=":")
    assert devices.has_nvidia_gpu() is there


def test_no_gpu_without_nvidia_smi(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not devices.has_nvidia_gpu()


def test_tpu_chips_are_told_from_other_devices_of_google(tmp_path):
    network_card, v5p, disk = ("0x1ae0", "0x0042"), ("0x1ae0", "0x0062"), ("0x8086", "0x0062")
    assert devices.tpu_chips(pci(tmp_path / "virtual machine", network_card, disk)) == 0
    assert devices.tpu_chips(pci(tmp_path / "tpu", network_card, v5p, v5p, v5p, v5p, disk)) == 4
    assert devices.tpu_chips(tmp_path / "none") == 0


@pytest.mark.parametrize(("value", "gpus"), [("8", 8), ("0", 0), ("", 0), ("gpu:8", 0)])
def test_slurm_says_how_many_gpus_a_job_has(value, gpus, monkeypatch):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", value)
    assert devices.slurm_gpus() == gpus


def test_accelerators_in_words(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "tpu_chips", lambda: 4)
    monkeypatch.setenv("PATH", str(nvidia_smi(tmp_path / "bin", GPU)), prepend=":")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    assert devices.accelerators() == ["nvidia-smi lists a GPU", "SLURM_GPUS_ON_NODE is 2", "it has 4 TPU chips"]
    assert devices.kind() == "cuda"
