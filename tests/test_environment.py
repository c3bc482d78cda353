"""What `make test` installs is there. Tests that need one of these would else be skipped, and nobody would see it."""

from __future__ import annotations

import importlib.util

import pytest

NEEDED = ("jax", "flax", "torch", "deepspeed", "vllm", "libtpu", "gcp_storage_emulator", "hypothesis", "playwright",
          "fastapi", "uvicorn", "prometheus_fastapi_instrumentator", "model_hosting_container_standards", "jmespath")  # fmt: skip


@pytest.mark.parametrize("name", NEEDED)
def test_is_installed(name):
    assert importlib.util.find_spec(name) is not None, f"{name}: run make env-dev again"
