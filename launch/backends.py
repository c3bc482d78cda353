"""The one place that chooses a backend. Nothing of the other backend is imported."""

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
# Flag -> the only backend that reads it, and the error's text with the other backend.
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
    """Define `--backend` with the help text `what`, `--device`, and the flags by which the processes of a JAX run connect."""
    flags.DEFINE_enum("backend", "jax", ["jax", "torch"], what)
    flags.DEFINE_enum(
        "device", "auto", ["auto", "cpu", "cuda", "tpu"],
        "The device to use. auto: an accelerator, or the CPU of a machine that has none. If there is an accelerator that the "
        "backend cannot use, the program stops unless this is cpu.",
    )  # fmt: skip
    flags.DEFINE_string(
        "coordinator",
        None,
        "In a run of several processes: HOST:PORT at which process 0 listens (or JAX_COORDINATOR_ADDRESS). Not needed on TPU and "
        "Slurm.",
    )
    flags.DEFINE_integer(
        "num_processes", None, "The number of processes of the run (or JAX_NUM_PROCESSES).", lower_bound=1
    )
    flags.DEFINE_integer("process_id", None, "The number of this process, from 0 (or JAX_PROCESS_ID).", lower_bound=0)


def make_backend(config: RunConfig) -> Backend:
    """Build the backend that the flags name, and connect it with the other processes of the run.

    Raises InputError if its packages are not installed, if the processes cannot connect, if the device that --device names is
    missing, or if a flag of the other backend is set.
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
    environment = dict(os.environ)  # the user's variables: backends change some of them
    return _checked(_torch(config) if name == "torch" else _jax(config), environment)


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


def _checked(backend: Backend, environment: Mapping[str, str]) -> Backend:
    """Return `backend` if it runs on the device of --device, else raise InputError. `environment`: the user's variables."""
    requested, device_kind = FLAGS.device, backend.device_kind
    advice = _advice(backend, environment)
    if requested not in ("auto", device_kind):
        raise InputError(f"--device={requested}: the {backend.name} backend finds none here; {advice}")
    if requested == "auto" and device_kind == "cpu" and (present := devices.accelerators()):
        raise InputError(
            f"the {backend.name} backend would run on the CPU although {' and '.join(present)}; {advice}, or say --device=cpu"
        )
    return backend


def _advice(backend: Backend, environment: Mapping[str, str]) -> str:
    """What the user can do so that the backend finds an accelerator."""
    hiding = {"jax": ["JAX_PLATFORMS"], "torch": ["CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR"]}[backend.name]
    for name in hiding:
        if name in environment:
            return f"unset {name}, which is {environment[name]!r}"
    if backend.name == "torch":
        return "install PyTorch for it (`make env BACKEND=torch DEVICE=cuda`) and a driver that is new enough"
    return "install JAX for it (`make env DEVICE=cuda` or `make env DEVICE=tpu`)"


def _number(flag: str, variable: str) -> int | None:
    flag_value, variable_value = FLAGS[flag].value, os.environ.get(variable)
    if flag_value is not None or not variable_value:
        return flag_value
    if not variable_value.isdecimal():
        raise InputError(f"{variable}={variable_value}: must be a whole number")
    return int(variable_value)
