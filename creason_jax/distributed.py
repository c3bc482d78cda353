"""Several processes: how they start, arrays that span them, and a clear error in bounded time when one of them has ended.

When a process has ended, JAX itself aborts the others with a stack trace. To be earlier and clearer, each process writes a count
(a heartbeat) to the key-value store of JAX's coordination service, which process 0 runs, and a thread reads the others' counts.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import importlib.util
import itertools
import os
import signal
import socket
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from creason_jax import private_jax
from shared.errors import InputError
from shared.runs.devices import tpu_chips

PLATFORMS = {"cuda": "GPU", "tpu": "TPU"}  # name in JAX_PLATFORMS -> the device to name in an error
UNANSWERED = 3  # writes in a row that the coordination service may fail to answer
# Limits in seconds.
START_LIMIT = 300  # until all processes have started
BEAT = 1.0  # between two counts of a process
SILENCE = 40.0  # without a new count: then the process is taken as ended; less than the 100 of JAX itself
SHUTDOWN_LIMIT = 60  # until all processes have ended
BARRIER_LIMIT = (
    7 * 24 * 3_600
)  # long: the others may wait while process 0 prepares data; an ended process is noticed anyway

KEY = "creason/alive"
LEFT = "left"  # in place of a count: this process has reported an error and ends
GO_ON = "start all processes again with the same command, the run goes on from its last checkpoint"

_barriers = itertools.count()
_watch: _Watch | None = None


def start(coordinator: str = "", num_processes: int | None = None, process_id: int | None = None) -> bool:
    """Connect this process to the others of the run; True if there are others. Call it before anything uses a device.

    Without arguments, a TPU slice, Slurm and Open MPI are recognised by their environment variables. `coordinator` is the
    HOST:PORT at which process 0 listens. Raises InputError where only some of the arguments are given, and where process 0
    does not answer.
    """
    global _watch
    if jax.distributed.is_initialized():
        return jax.process_count() > 1
    connection = _checked_address(coordinator, num_processes, process_id)
    if (connection is None and not (_by_scheduler() or _on_tpu())) or (connection is not None and connection[1] == 1):
        return False
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's preemption service would handle SIGTERM, but shared/training/stopping.py does that.
    jax.config.update("jax_enable_preemption_service", False)
    if connection is None:
        limits: dict[str, Any] = {}
    else:
        limits = dict(zip(("coordinator_address", "num_processes", "process_id"), connection))
        limits["cluster_detection_method"] = "deactivate"
        if connection[2] > 0:
            _wait_for(*connection)
    restore = _say_before_an_abort(f"not all processes started within {START_LIMIT} s; {GO_ON}")
    jax.distributed.initialize(**limits, initialization_timeout=START_LIMIT, shutdown_timeout_seconds=SHUTDOWN_LIMIT)
    restore()
    local_devices()
    if jax.process_count() > 1:
        known = private_jax.processes()
        _watch = _Watch(known.client, known.coordinator_address, jax.process_index(), jax.process_count())
        atexit.register(_end_together, _watch)  # runs before JAX's own exit function: the last registered runs first
    return jax.process_count() > 1


def local_devices() -> list[jax.Device]:
    """This process's devices. Raises InputError where JAX cannot start the platform that JAX_PLATFORMS names."""
    try:
        return jax.local_devices()
    except (RuntimeError, AssertionError) as error:  # for a platform without its plugin JAX 0.10 only asserts
        platform = os.environ.get("JAX_PLATFORMS", "")
        what = PLATFORMS.get(platform, f"device of JAX_PLATFORMS={platform}" if platform else "device")
        reason = " ".join(str(error).split())[:300]
        install = f"; `make env DEVICE={platform}` installs JAX for it" if platform in PLATFORMS else ""
        raise InputError(
            f"JAX sees no {what} on this machine{f' ({reason})' if reason else ''}; leave --device out (or give --device=cpu) to "
            f"compute on the CPU{install}"
        ) from None


def barrier() -> None:
    """Wait until every process has called this."""
    if jax.process_count() > 1:
        private_jax.processes().client.wait_at_barrier(f"creason/barrier/{next(_barriers)}", BARRIER_LIMIT * 1_000)


def any_process(flag: bool) -> bool:
    """True in every process if the flag is true in any of them; every process must call it."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.asarray(flag)).any())


def same(value: bytes) -> bool:
    """True in every process if all gave the same bytes. Every process must call it, with the same number of bytes."""
    if jax.process_count() == 1:
        return True
    every = multihost_utils.process_allgather(np.frombuffer(value, np.uint8))
    return bool((every == every[0]).all())


def least(number: int) -> int:
    """The smallest of the processes' numbers, each below 2**31; every process must call it."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.asarray(number, np.int32)).min())


def processes_here() -> int:
    """How many of the run's processes are on this machine; every process must call it."""
    if jax.process_count() == 1:
        return 1
    own = np.asarray(zlib.crc32(socket.gethostname().encode()), np.uint32)
    return int((multihost_utils.process_allgather(own) == own).sum())


def place(value: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Make an array with this sharding from a NumPy array that every process holds whole."""
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def fetch(tree: Any) -> Any:
    """The whole values of a tree of arrays, as NumPy arrays in every process; every process must call it."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def _end_together(watch: _Watch) -> None:
    """At the end of the program: wait for all processes, then stop the watch. Its thread must end before Python does."""
    with contextlib.suppress(RuntimeError, ValueError):  # a process is late: JAX's own barrier reports it
        watch.client.wait_at_barrier("creason/end", SHUTDOWN_LIMIT * 1_000)
    watch.stop()


def before_report() -> None:
    """Call it after an error that may be caused by another process's end: it returns when all others have written a new count.

    If one does not, the watch ends this process with an error that names it."""
    assert _watch is not None
    _watch.hear_all()


def leave(code: int) -> None:
    """End this process with this exit code and tell the others. Its own error must have been reported before."""
    assert _watch is not None
    _watch.leave(code)


@dataclasses.dataclass
class _Watch:
    """Writes this process's count and reads those of the others; if one has ended, reports it and ends this process."""

    client: Any
    coordinator: str
    process: int
    processes: int

    def __post_init__(self) -> None:
        others = [other for other in range(self.processes) if other != self.process]
        self._heard: dict[int, tuple[str, float]] = dict.fromkeys(others, ("", time.monotonic()))
        self._ending, self._telling, self._stopped = threading.Lock(), threading.Lock(), threading.Event()
        if self.process > 0:
            # The coordination service ends with process 0, and then JAX aborts each process that notices it.
            host, port = self.coordinator.rsplit(":", 1)
            _say_before_an_abort(self._gone(0), unless=lambda: _answers(host, int(port)))
        self._thread = threading.Thread(target=self._listen, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop counting and reading. A thread that is inside JAX's client when Python ends would abort the process."""
        self._stopped.set()
        self._thread.join(UNANSWERED * BEAT)

    def leave(self, code: int) -> None:
        """See `leave` of this module."""
        self._ending.acquire()
        with contextlib.suppress(RuntimeError, ValueError):  # process 0 may be gone
            self._tell(LEFT)
        if self.process == 0:
            time.sleep(UNANSWERED * BEAT)  # the others need time to read it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def hear_all(self) -> None:
        """Return when every other process has written `UNANSWERED` new counts, so that it is certainly alive."""
        for _ in range(UNANSWERED):
            begin = time.monotonic()
            while any(at < begin for _, at in self._heard.values()):
                time.sleep(BEAT / 10)

    def _tell(self, what: str) -> None:
        with self._telling:
            if what == LEFT or not self._ending.locked():  # no count may follow LEFT
                self.client.key_value_set(f"{KEY}/{self.process}", what, allow_overwrite=True)

    def _listen(self) -> None:
        unanswered = 0
        for count in itertools.count(1):
            try:
                self._tell(str(count))
                counts = dict(self.client.key_value_dir_get(KEY))
                unanswered = 0
            except (RuntimeError, ValueError):  # JAX raises both for a failed remote call
                unanswered += 1
                if unanswered >= UNANSWERED and not self._stopped.is_set():
                    self._end(0)
                counts = {}
            for other, (last_count, at) in list(self._heard.items()):
                count_now = counts.get(f"{KEY}/{other}", last_count)
                if count_now != last_count:
                    self._heard[other] = count_now, time.monotonic()
                elif counts and time.monotonic() - at > SILENCE:
                    self._end(other)
                if count_now == LEFT:
                    self._end(other)
            if self._stopped.wait(BEAT):
                return

    def _end(self, other: int) -> None:
        if self._ending.acquire(blocking=False):
            print(f"error: {self._gone(other)}", file=sys.stderr, flush=True)
            os._exit(1)

    def _gone(self, other: int) -> str:
        return f"process {other} of {self.processes} ended; {GO_ON}"


def _checked_address(
    coordinator: str, num_processes: int | None, process_id: int | None
) -> tuple[str, int, int] | None:
    """(coordinator, num_processes, process_id); None if no argument is given. Raises InputError for some missing or wrong."""
    if not coordinator and num_processes is None and process_id is None:
        return None
    if not coordinator or num_processes is None or process_id is None:
        raise InputError("--coordinator, --num_processes and --process_id go together; give all three, or none")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator={coordinator}: must be HOST:PORT, process 0's address and a free port there")
    if not 0 <= process_id < num_processes:
        raise InputError(f"--process_id={process_id}: must be 0 to {num_processes - 1}, --num_processes less 1")
    return coordinator, num_processes, process_id


def _by_scheduler() -> bool:
    """Whether Slurm's srun or Open MPI's mpirun has started this process as one of several."""
    return any(int(os.environ.get(name, "1")) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))


def _on_tpu() -> bool:
    """Whether this is a TPU VM or a pod with TPUs, perhaps one of several of a slice."""
    platforms = os.environ.get("JAX_PLATFORMS", "tpu").split(",")
    return "tpu" in platforms and tpu_chips() > 0 and importlib.util.find_spec("libtpu") is not None


def _wait_for(coordinator: str, processes: int, process: int) -> None:
    host, port = coordinator.rsplit(":", 1)
    deadline = time.monotonic() + START_LIMIT
    while not _answers(host, int(port)):
        if time.monotonic() > deadline:
            raise InputError(
                f"--coordinator={coordinator}: no answer within {START_LIMIT} s; start all {processes} processes, and see "
                f"that process {process} can reach that port"
            )
        time.sleep(BEAT)


def _answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=5 * BEAT).close()
    except OSError:
        return False
    return True


_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int)
_handlers: list[Any] = []  # kept alive: C holds no reference


def _say_before_an_abort(message: str, unless: Callable[[], bool] = lambda: False) -> Callable[[], Any]:
    """If this process is aborted, print one line and end with code 1, unless `unless()`. Returns a function that undoes this.

    JAX aborts from C++, on any thread, so a handler of Python's `signal` module would never run.
    """

    def handle(_: int) -> None:
        if not unless():
            os.write(2, f"error: {message}\n".encode())
            os._exit(1)

    _handlers.append(_Handler(handle))
    set_handler = ctypes.CDLL(None).signal
    set_handler.argtypes, set_handler.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    before = set_handler(signal.SIGABRT, ctypes.cast(_handlers[-1], ctypes.c_void_p))
    return lambda: set_handler(signal.SIGABRT, before)
