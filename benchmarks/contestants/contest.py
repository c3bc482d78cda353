"""The input and the answer of every contestant. Needs only NumPy, because contestants run in other environments."""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# The names of the phases, in the order in which they are timed.
ROLLOUT, SCORING, UPDATE = "rollout", "scoring", "update"
TEMPERATURE, BETA, EPSILON, LEARNING_RATE = 0.9, 0.04, 0.2, 1e-6


@dataclasses.dataclass(frozen=True)
class Work:
    """The input: a Hugging Face model folder, and random groups without padding.

    prompts `[questions, prompt]`, completions `[questions, group, completion]`, advantages `[questions, group]`.
    """

    model: Path
    prompts: np.ndarray
    completions: np.ndarray
    advantages: np.ndarray

    @property
    def repeated(self) -> np.ndarray:
        """The prompt of each completion, `[questions * group, prompt]`, for systems without groups."""
        return np.repeat(self.prompts, self.completions.shape[1], axis=0)

    @property
    def rows(self) -> np.ndarray:
        """Completions `[questions * group, completion]`."""
        return self.completions.reshape(-1, self.completions.shape[-1])


def write(file: Path, work: Work) -> None:
    """Write the work to `file`, for `read` in another process."""
    np.savez(file, prompts=work.prompts, completions=work.completions, advantages=work.advantages)


def read(file: Path) -> Work:
    """Read the work in `file`; its model is in the folder `model` beside the file."""
    arrays = np.load(file, allow_pickle=False)
    return Work(file.parent / "model", arrays["prompts"], arrays["completions"], arrays["advantages"])


def answer(phases: Callable[[Work], Mapping[str, Callable[[], Any]]]) -> None:
    """Build the phases for the work file on the command line, time them, and print one line of JSON.

    The first run of each phase compiles and is not counted. Times are in seconds. `peak` is the peak memory of the process in
    bytes.
    """
    file, repeats = sys.argv[1:]
    seconds = {}
    for name, run in phases(read(Path(file))).items():
        run()
        phase_seconds = []
        for _ in range(int(repeats)):
            begin = time.perf_counter()
            run()
            phase_seconds.append(time.perf_counter() - begin)
        seconds[name] = phase_seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1_024
    print(json.dumps({"seconds": seconds, "peak": peak}))
