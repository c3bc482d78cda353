"""Which number format `compute_dtype = auto` means: by device, and once for a run."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import pytest
import torch

from creason_jax.backend import Backend as JaxBackend
from creason_jax.backend import _fast_bfloat16
from creason_torch import zero
from creason_torch.backend import Backend as TorchBackend
from shared.config import LearnerConfig, validate
from shared.errors import InputError
from tests.support.tiny import run_config

AUTO = validate({"name": "x"})
# Lines as Linux writes them on Sapphire Rapids, Cooper Lake, Skylake, Graviton 3 and Graviton 2.
CPUS = {
    "flags\t\t: fpu sse2 avx512f avx512_bf16 amx_bf16 amx_tile\n": "bfloat16",
    "processor\t: 0\nflags\t\t: fpu avx512f avx512_bf16\nflags\t\t: fpu\n": "bfloat16",
    "flags\t\t: fpu sse2 avx2 avx512f avx512bw\n": "float32",
    "Features\t: fp asimd sve bf16 i8mm\n": "bfloat16",
    "Features\t: fp asimd\n": "float32",
    "": "float32",
}


def test_auto_is_the_default_and_a_given_format_stays():
    assert LearnerConfig().compute_dtype == "auto"
    for dtype in ("float32", "bfloat16"):
        config = run_config(learner={"compute_dtype": dtype})
        for backend in (JaxBackend, TorchBackend):
            assert backend.resolved(None, config) is config


@pytest.mark.parametrize(("text", "dtype"), CPUS.items(), ids=range(len(CPUS)))
def test_pytorch_on_a_cpu(text, dtype, tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(zero, "CPU_INFO", path)
    assert TorchBackend.resolved(None, AUTO).learner.compute_dtype == dtype
    # Stage 0 has no float32 masters in bfloat16, and is refused with it.
    unsharded = validate({"name": "x", "torch": {"zero_stage": 0}})
    assert TorchBackend.resolved(None, unsharded).learner.compute_dtype == "float32"
    path.unlink()
    assert TorchBackend.resolved(None, AUTO).learner.compute_dtype == "float32"


@pytest.mark.parametrize(("ampere", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_pytorch_on_a_gpu(ampere, dtype, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *, including_emulation: including_emulation or ampere)
    assert TorchBackend.resolved(None, AUTO).learner.compute_dtype == dtype


@pytest.mark.parametrize(
    ("device", "fast"),
    [
        ({"platform": "cpu"}, False),
        ({"platform": "tpu"}, True),
        ({"platform": "gpu", "compute_capability": "9.0"}, True),
        ({"platform": "gpu", "compute_capability": "8.0"}, True),
        ({"platform": "gpu", "compute_capability": "7.0"}, False),
        ({"platform": "gpu", "compute_capability": "10.0"}, True),
        ({"platform": "gpu", "compute_capability": "gfx942"}, True),
    ],
)
def test_jax(device, fast):
    assert _fast_bfloat16(SimpleNamespace(**device)) == fast


def test_jax_here_and_what_its_parts_are_given(model):
    """Also where nobody has asked `resolved`: learner and engine compute in the decided format."""
    assert jax.default_backend() == "cpu"
    config = run_config(learner={"compute_dtype": "auto"}, jax={"mesh_fsdp": -1})
    backend = JaxBackend(config)
    assert backend.resolved(config).learner.compute_dtype == "float32"
    assert backend.engine(config, model, stop_tokens=[3]).dtype == "float32"
    learner = backend.learner(config, model, optimizer=config.optimizer, steps=2, reference=False)
    assert learner.config.learner.compute_dtype == "float32"


def test_an_undecided_format_is_not_taken_for_one():
    with pytest.raises(InputError, match="learner.compute_dtype = 'auto': not decided yet"):
        zero.deepspeed_config(AUTO, None)
