"""Before any test imports jax: the CPU, eight devices, no network."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"
# Machine code as it comes: tests run small programs a few times, and optimising them takes longer. What XLA itself does with
# a program is the same; the programs that tests start in processes of their own are optimised as anywhere else.
QUICKLY_COMPILED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # elsewhere float32 products are rounded to less by default
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")
if EIGHT_DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT_DEVICES} {QUICKLY_COMPILED}".strip()

pytest.register_assert_rewrite("tests.support")  # before anything imports it


@pytest.fixture(scope="module", autouse=True)
def memory() -> Iterator[None]:
    """After each file, give back what its tests compiled and freed: kept, it comes to gigabytes over all files."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)


@pytest.fixture(scope="session", autouse=True)
def compiled(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder for what started programs compile (`tests/support/commands.py`): much of it is the same."""
    os.environ["COMPILED_BY_TESTS"] = str(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small Phi-3 on which learners are tested; nobody writes into it."""
    from tests.support.groups import MODEL
    from tests.support.tiny import tiny_phi3

    folder = tmp_path_factory.mktemp("model")
    tiny_phi3(folder, **MODEL)
    return folder


@pytest.fixture(scope="session")
def cloud() -> Iterator[str]:
    """The address of a bucket that this process and those it starts can use."""
    from tests.support.buckets import serving

    with serving() as address:
        yield address


@pytest.fixture
def bucket(cloud: str, tmp_path: Path) -> str:
    """A folder of the test's own in that bucket."""
    return f"{cloud}/{tmp_path.name}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A started Chromium for the tests of a file; see `tests/support/browsers.py`."""
    from tests.support.browsers import chromium

    with chromium() as started:
        yield started
