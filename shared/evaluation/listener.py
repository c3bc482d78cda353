"""What a long task tells while it is done: a program prints it, a library call may ignore it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any


def _ignored(*_: Any) -> None:
    """Nobody hears it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listener:
    """What is called as a task goes on. By default nothing is said, and no progress bar is shown."""

    line: Callable[[str], Any] = _ignored  # a line about what is done, of process 0 only
    warning: Callable[[str], Any] = _ignored  # a line that should be read even where the others are not
    kept: Callable[[], Any] = _ignored  # from here on what is answered is kept, and the same call goes on from it
    progress: bool = False  # progress bars on standard error


SILENT = Listener()
