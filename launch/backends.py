"""The one place that chooses a backend: nothing of the other one is imported."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping

from absl import flags

from launch import app
from shared.backend import Backend
from shared.config import RunConfig
from shared.errors import InputError
from shared.runs import devices

FLAGS = flags.FLAGS
JOINS = "joins processes of --backend=jax; torchrun or deepspeed starts PyTorch's"
# Flags that one backend alone reads, and what to say of them with the other.
ONE_BACKEND = {
    "coordinator": ("jax", JOINS),
    "num_processes": ("jax", JOINS),
    "process_id": ("jax", JOINS),
    "engine": ("torch", "chooses between engines of --backend=torch; JAX has one, so leave it out"),
    "local_rank": (
        "torch",
        "comes from the DeepSpeed launcher, which starts --backend=torch; `creason train` alone starts JAX",
    ),
}


def define_flags(what: str) -> None:
    """Define `--backend`, explained by `what`, and how the processes of a JAX run find each other."""
    flags.DEFINE_enum("backend", "jax", ["jax", "torch"], what)
    flags.DEFINE_enum(
        "device", "auto", ["auto", "cpu", "cuda", "tpu"],
        "What it runs on. auto: an accelerator; on a machine that has none, the CPU. Where there is an accelerator that the "
        "backend cannot use, the program stops unless this says cpu.",
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT at which process 0 of several listens (or JAX_COORDINATOR_ADDRESS). Not needed on TPU and Slurm.",
    )
    flags.DEFINE_integer("num_processes", None, "How many processes the run has (or JAX_NUM_PROCESSES).", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0 (or JAX_PROCESS_ID).", lower_bound=0)


def make_backend(config: RunConfig) -> Backend:
    """Build the backend that the flags name, joined with the other processes of the run.

    Raises InputError where its packages are not installed, or where the processes cannot be joined.
    """
    name = FLAGS.backend
    for flag, (reader, what) in ONE_BACKEND.items():
        if flag in FLAGS and FLAGS[flag].present and reader != name:
            raise InputError(f"--{flag}: {what}")
    needed = {"jax": ("jax", "flax"), "torch": ("torch", "deepspeed")}[name]
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"--backend={name}: {' and '.join(missing)} not installed; `make env BACKEND={name}` installs what it needs"
        )
    given = dict(os.environ)  # as the user has it: the backends set some of it
    return _checked(_torch(config) if name == "torch" else _jax(config), given)


def _torch(config: RunConfig) -> Backend:
    if FLAGS.device == "tpu":
        raise InputError("--device=tpu: the PyTorch backend runs on GPUs and CPUs; give --backend=jax for TPUs")
    if FLAGS.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before PyTorch looks for GPUs
    from creason_torch import zero
    from creason_torch.backend import Backend as TorchBackend

    backend = TorchBackend(config)
    app.ENDS.append(zero.end_process)
    return backend


def _jax(config: RunConfig) -> Backend:
    if FLAGS.device != "auto":
        os.environ["JAX_PLATFORMS"] = FLAGS.device  # before JAX is imported
    from creason_jax import distributed
    from creason_jax.backend import Backend as JaxBackend

    if distributed.start(
        FLAGS.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS", ""),
        _number("num_processes", "JAX_NUM_PROCESSES"),
        _number("process_id", "JAX_PROCESS_ID"),
    ):
        app.OTHERS.append(distributed)
    return JaxBackend(config)


def _checked(backend: Backend, given: Mapping[str, str]) -> Backend:
    """`backend`, if it runs on what was asked for. Raises InputError where it does not; `given`: the user's environment."""
    wanted, found = FLAGS.device, backend.device_kind
    advice = _advice(backend, given)
    if wanted not in ("auto", found):
        raise InputError(f"--device={wanted}: the {backend.name} backend finds none here; {advice}")
    if wanted == "auto" and found == "cpu" and (said := devices.accelerators()):
        raise InputError(
            f"the {backend.name} backend would run on the CPU although {' and '.join(said)}; {advice}, or say --device=cpu"
        )
    return backend


def _advice(backend: Backend, given: Mapping[str, str]) -> str:
    """What makes the backend find an accelerator."""
    hiding = {"jax": ["JAX_PLATFORMS"], "torch": ["CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"]}[backend.name]
    for name in hiding:
        if name in given:
            return f"unset {name}, which is {given[name]!r}"
    if backend.name == "torch":
        return "install PyTorch for it (`make env BACKEND=torch DEVICE=cuda`) and a driver that is new enough"
    return "install JAX for it (`make env DEVICE=cuda` or `make env DEVICE=tpu`)"


def _number(flag: str, variable: str) -> int | None:
    given, found = FLAGS[flag].value, os.environ.get(variable)
    if given is not None or not found:
        return given
    if not found.isdecimal():
        raise InputError(f"{variable}={found}: must be a whole number")
    return int(found)
