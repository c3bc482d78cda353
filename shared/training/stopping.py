"""A run that is asked to stop (SIGTERM: a preempted TPU or spot machine, Slurm, Kubernetes) ends its step and saves."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any


class Stopped(Exception):
    """A run was asked to stop, and has saved. The message says at which step it is and how it goes on."""


class StopRequest:
    """Whether a SIGTERM came (`made`) inside this context, in the main thread. A second SIGTERM acts as if this were not here."""

    def __init__(self) -> None:
        self.made = False
        self._before: Any = signal.SIG_DFL

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.made = True
        signal.signal(signal.SIGTERM, self._before)

    def __enter__(self) -> StopRequest:
        self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
