"""A progress bar of steps. The first step compiles programs, so its time says nothing about the steps after it."""

from __future__ import annotations

from tqdm import tqdm

COMPILING = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}, compiling]"


class StepBar(tqdm):
    """A bar that says "compiling" until its first step is done, and estimates the time left from the steps after that one."""

    def __init__(self, *, total: int, initial: int = 0, description: str, shown: bool) -> None:
        super().__init__(
            total=total, initial=initial, desc=description, unit="step", disable=not shown, bar_format=COMPILING
        )
        self._compiles = True

    def update(self, n: float | None = 1) -> bool | None:
        """Count so many steps."""
        if self.disable or not self._compiles:
            return super().update(n)
        self._compiles = False
        self.n += n or 0
        self.bar_format = None
        # Speed is measured from here on.
        self.initial = self.last_print_n = self.n
        self.start_t = self.last_print_t = self._time()
        return self.refresh()
