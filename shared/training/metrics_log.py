"""The metrics of a run's steps: written as JSON lines, TensorBoard events and, if asked, to Weights & Biases; read; compared."""

from __future__ import annotations

import json
import math
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd

from shared.errors import InputError
from shared.storage import files

METRICS_FILE = "metrics.jsonl"
SECONDS = "seconds_"  # the time of a phase is `seconds_prefill`, `seconds_decode`, ...
WHOLE_STEP = "seconds_total"
TIMING_FIELDS = (SECONDS, "tokens_per_second")  # fields that begin so depend on the clock


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: NumPy numbers and arrays as Python's, NaN and infinities as None, at any depth."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def without_timings(line: Mapping[str, Any]) -> dict[str, Any]:
    """A metrics line without the fields that depend on the clock: equal for two runs with the same seed on one machine."""
    return {name: value for name, value in line.items() if not name.startswith(TIMING_FIELDS)}


class MetricsWriter:
    """Appends one line a step to `folder/metrics.jsonl`, and the same numbers to `folder/tensorboard`.

    A writer that starts at `start_step` removes the lines that an earlier, killed run wrote for that step and later ones, so
    that the file of a resumed run has each step once. One process of a run writes. Use it as a context manager, or call `close`.
    """

    def __init__(self, folder: Path, start_step: int, *, wandb_project: str = "", run_name: str = "") -> None:
        """Open the files. Raises InputError for a broken line before `start_step`, or where wandb is not installed.

        Weights & Biases gets the same numbers where `wandb_project` is given. Otherwise nothing leaves the machine.
        """
        self._path = folder / METRICS_FILE
        self._wandb = _start_wandb(folder, wandb_project, run_name) if wandb_project else None
        with files.writing(self._path):
            folder.mkdir(parents=True, exist_ok=True)
            self._keep_before(start_step)
            self._file = self._path.open("a", encoding="utf-8")
        self._events = _Events(folder / "tensorboard", start_step)

    def _keep_before(self, start_step: int) -> None:
        if not self._path.is_file():
            return
        lines = [line for line in _read_lines(self._path) if line["step"] < start_step]
        with files.replacing(self._path) as temporary:
            temporary.write_text("".join(_dump(line) for line in lines), encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Append the metrics of optimizer step `step`; on disk when this returns. A NaN or infinity becomes null."""
        line = {"step": int(step), **plain({name: value for name, value in metrics.items() if name != "step"})}
        with files.writing(self._path):
            self._file.write(_dump(line))
            self._file.flush()
            os.fsync(self._file.fileno())
        numbers = {name: value for name, value in line.items() if name != "step" and value is not None}
        self._events.write(step, {_tag(name): value for name, value in numbers.items()})
        if self._wandb is not None:
            self._wandb.log({_tag(name): value for name, value in numbers.items()}, step=step)

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        with files.writing(self._path):
            self._file.close()
        self._events.close()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Events:
    """TensorBoard's file of a run from `start_step` on. TensorBoard drops what an earlier file says of these steps.

    This thread writes the file. tensorboardX's `SummaryWriter` writes in a thread of its own; where that cannot write, it ends
    with a traceback, and the run waits for it for ever.
    """

    def __init__(self, folder: Path, start_step: int) -> None:
        # Slow to import, and reading metrics does not need it.
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.record_writer import RecordWriter

        # The number of this process keeps two writers that start within one second from sharing a file.
        now = time.time()
        name = f"events.out.tfevents.{int(now)}.{socket.gethostname()}.{start_step}.{os.getpid()}"
        self._folder, self._closed = folder, False
        with files.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._file = RecordWriter(str(folder / name))
        begin = SessionLog(status=SessionLog.START)
        self._append(
            Event(wall_time=now, file_version="brain.Event:2"), Event(wall_time=now, step=start_step, session_log=begin)
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a step; on disk when this returns."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        now = time.time()
        self._append(*(Event(wall_time=now, step=step, summary=scalar(*pair)) for pair in numbers.items()))

    def _append(self, *events: Any) -> None:
        with files.writing(self._folder):
            for event in events:
                self._file.write(event.SerializeToString())
            self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            with files.writing(self._folder):
                self._file.close()
        finally:
            self._file.close()  # a first call that fails does close the file, but the object takes note of it only here


def read_metrics(path: Path) -> pd.DataFrame:
    """One row for each step of a metrics file, in file order, null as NaN; no rows where the file is empty.

    A last line without its line end is left out: a killed run was writing it. Raises InputError where the file is
    missing, or naming the line that is broken.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such metrics file; a run writes it at its first step")
    lines = _read_lines(path)
    if not lines:
        return pd.DataFrame({"step": pd.Series(dtype="int64")})
    table = pd.DataFrame(lines)
    numbers = {name: "float64" for name in table.columns if name != "step"}
    return table.astype({"step": "int64", **numbers})


def differences(metrics: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """How far the metrics of two runs are apart: a row for each metric that both have, but those that depend on the clock.

    Columns: `metric`; `relative`, the largest relative difference over the steps that both runs have; `step`, where that is;
    `absolute`, the largest absolute difference. A difference is divided by the value in the first run, or by the root mean
    square of that run's values where that is larger: on policy, a loss is a sum of advantages that cancel, and where it is
    nearly 0 its own size is rounding. A value that only one run has counts as an infinite difference.
    Raises InputError where no step is in both.
    """
    first, second = (table.set_index("step") for table in (metrics, other))
    steps = first.index.intersection(second.index)
    if steps.empty:
        raise InputError("the two runs have no optimizer step in common")
    rows = []
    for name in first.columns.intersection(second.columns):
        if str(name).startswith(TIMING_FIELDS):
            continue
        ours, theirs = first.loc[steps, name], second.loc[steps, name]
        gap = (theirs - ours).abs().where(ours.notna() | theirs.notna(), 0.0).fillna(math.inf)
        scale = ours.abs().fillna(0.0).clip(lower=float(np.sqrt((ours**2).mean())))
        relative = (gap / scale).where(gap > 0, 0.0)
        step = relative.idxmax()
        rows.append({"metric": name, "relative": relative[step], "step": step, "absolute": gap.max()})
    return pd.DataFrame(rows, columns=["metric", "relative", "step", "absolute"])


def differences_table(rows: Sequence[Mapping[Any, Any]]) -> str:
    """The rows of `differences` as text; None stands for infinity."""
    lines = [f"{'metric':<28}{'largest relative':>17}{'at step':>9}{'largest absolute':>18}"]
    for row in rows:
        relative, absolute = (math.inf if row[name] is None else row[name] for name in ("relative", "absolute"))
        lines.append(f"{row['metric']:<28}{relative:>17.1e}{row['step']:>9}{absolute:>18.1e}")
    return "\n".join(lines)


def phases(metrics: pd.DataFrame) -> pd.DataFrame:
    """Seconds of each step (row) in each phase (column `prefill`, `decode`, ...).

    Where the steps' whole time is known, column `other` holds what no phase accounts for.
    """
    names = [name for name in metrics.columns if name.startswith(SECONDS) and name != WHOLE_STEP]
    table = pd.DataFrame({name.removeprefix(SECONDS): metrics[name].fillna(0.0) for name in names}, index=metrics.index)
    if WHOLE_STEP in metrics.columns:
        table["other"] = (metrics[WHOLE_STEP].fillna(0.0) - table.sum(axis=1)).clip(lower=0.0)
    return table


def timings(metrics: pd.DataFrame) -> dict[str, Any]:
    """A run's speed for its summary: steps, seconds in all and by phase, tokens per second over all (None: unknown)."""
    seconds = phases(metrics)
    speed = metrics.get("tokens_per_second")
    tokens = None if speed is None else float((speed * seconds.sum(axis=1)).sum())
    total = float(seconds.to_numpy().sum())
    return {
        "steps": len(metrics),
        "seconds": total,
        "seconds_by_phase": {str(name): float(value) for name, value in seconds.sum().items()},
        "tokens_per_second": tokens / total if tokens is not None and total > 0 else None,
    }


def _read_lines(path: Path) -> list[dict[str, Any]]:
    whole, _, _unfinished = path.read_bytes().rpartition(b"\n")
    return [_parse(line, path, number) for number, line in enumerate(whole.split(b"\n"), start=1) if line.strip()]


def _parse(text: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise InputError(f"{path}: line {number} is not JSON; remove it and run again") from None
    if not isinstance(line, dict) or type(line.get("step")) is not int:
        raise InputError(f"{path}: line {number} has no step number; remove it and run again")
    wrong = [name for name, value in line.items() if not (value is None or isinstance(value, int | float))]
    if wrong:
        raise InputError(f"{path}: line {number}: {wrong[0]} is not a number; remove the line and run again")
    return line


def _dump(line: Mapping[str, Any]) -> str:
    return json.dumps(line, allow_nan=False) + "\n"


def _tag(name: str) -> str:
    """The name in TensorBoard, which groups by what stands before a slash."""
    return f"time/{name}" if name.startswith(TIMING_FIELDS) else f"train/{name}"


def _start_wandb(folder: Path, project: str, run_name: str) -> Any:
    try:
        import wandb
    except ImportError:
        raise InputError(
            "Weights & Biases was asked for but is not installed: `pip install wandb`, or leave it off"
        ) from None
    # Each work directory has one id, so that a resumed run continues its curve.
    id_file = folder / "wandb.json"
    if not id_file.is_file():
        files.write_json(id_file, {"id": uuid.uuid4().hex})
    # Neither what the program prints nor its source code is sent.
    settings = wandb.Settings(console="off", disable_git=True, disable_code=True, save_code=False)
    identifier = files.read_json_object(id_file, "id")["id"]
    return wandb.init(
        project=project, name=run_name or None, id=identifier, resume="allow", dir=str(folder), settings=settings
    )
