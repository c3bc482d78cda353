"""Rollouts and their log-probabilities as TensorStore arrays, one row for each step, for replay, audit and parity.

A folder holds a zarr 3 array `[steps, rows, time]` for each field of a batch, `rewards` `[steps, rows, group]`,
`trajectories.json` (the layout, fixed when the folder is made) and a marker `steps/N.json` for each step. A step counts only with
its marker, which is written last: question ids, a checksum of each array, notes, and a checksum of all that. No pickle; only
the owner can read the folder.
"""

from __future__ import annotations

import dataclasses
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore

from shared.errors import InputError
from shared.grpo import OPTIONAL_ARRAYS, GroupBatch, GroupLayout
from shared.storage import files

FORMAT = 1
METADATA_FILE = "trajectories.json"
STEPS_FOLDER = "steps"
REWARDS = "rewards"
DTYPES = {
    "tokens": "int32",
    "positions": "int32",
    "groups": "int32",
    "segments": "int32",
    "completion_mask": "float32",
    "advantages": "float32",
    "rollout_logprobs": "float32",
    "old_logprobs": "float32",
    "ref_logprobs": "float32",
    REWARDS: "float64",
}


class TrajectoryWriter:
    """Writes the batches of a run, step by step. Writing a step again replaces it, as a resumed run does."""

    def __init__(self, folder: Path, *, rows_per_step: int, layout: GroupLayout) -> None:
        """Make the folder, or go on in it.

        Raises InputError where it was made for another layout or number of rows, or cannot be written.
        """
        self._folder = folder
        self._rows = rows_per_step
        self._layout = layout
        metadata = {"format": FORMAT, "rows_per_step": rows_per_step, "layout": dataclasses.asdict(layout)}
        with files.writing(folder):
            (folder / STEPS_FOLDER).mkdir(parents=True, exist_ok=True)
            os.chmod(folder, files.OWNER_ONLY_FOLDER)
        if (folder / METADATA_FILE).is_file():
            earlier = _unsealed(folder / METADATA_FILE)
            if earlier != metadata:
                raise InputError(
                    f"{folder}: made with {earlier}, not {metadata}; write the trajectories to a new folder"
                )
        else:
            files.write_json(folder / METADATA_FILE, files.sealed(metadata))
        with files.writing(folder):
            self._arrays = {name: _create(folder, name, dtype, self._shape(name)) for name, dtype in DTYPES.items()}

    def _shape(self, name: str) -> tuple[int, int]:
        return (self._rows, self._layout.group if name == REWARDS else self._layout.length)

    def append(
        self,
        step: int,
        batch: GroupBatch,
        rewards: np.ndarray,
        question_ids: Sequence[str],
        *,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        """Store `step` (0, 1, ...): at most `rows_per_step` rows, `rewards` `[rows, group]`, an id for each row.

        `notes`, as JSON can hold them, say what else is known of the step. The step is on disk when this returns; one that was
        half written when the process died does not count.
        Raises InputError where a shape or the layout differs from the folder's, or where it cannot be written.
        """
        arrays = self._checked(step, batch, rewards, question_ids)
        marker = _marker(self._folder, step)
        with files.writing(self._folder):
            files.remove(marker)
            writes = []
            for name, dtype in DTYPES.items():
                stored = np.full(self._shape(name), np.nan if dtype.startswith("float") else -1, dtype=dtype)
                if name in arrays:
                    stored[: len(question_ids)] = arrays[name]
                writes.append(self._at(name, step).write(stored))
            for write in writes:
                write.result()
        content = {
            "step": step,
            "question_ids": list(question_ids),
            "absent": [name for name in OPTIONAL_ARRAYS if name not in arrays],
            "crc32": {name: _checksum(array) for name, array in arrays.items()},
            "notes": dict(notes or {}),
        }
        files.write_json(marker, files.sealed(content))

    def _checked(
        self, step: int, batch: GroupBatch, rewards: np.ndarray, question_ids: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The arrays of a step as they are stored, without those that are None. Raises InputError for a wrong shape or layout."""
        if step < 0:
            raise InputError(f"step {step} of trajectories: steps count from 0")
        if batch.layout != self._layout:
            raise InputError(f"step {step}: layout {batch.layout} where {self._folder} holds {self._layout}")
        rows = len(question_ids)
        if not 1 <= rows <= self._rows:
            raise InputError(f"step {step}: {rows} rows where {self._folder} holds 1 to {self._rows} for each step")
        fields = {name: getattr(batch, name) for name in DTYPES if name != REWARDS} | {REWARDS: rewards}
        arrays = {}
        for name, value in fields.items():
            if value is None and name in OPTIONAL_ARRAYS:  # NaN on disk, and named in the marker
                continue
            expected = (rows, self._shape(name)[1])
            if np.shape(value) != expected:
                raise InputError(f"step {step}: {name} has shape {np.shape(value)}; it must be {expected}")
            arrays[name] = np.ascontiguousarray(value, dtype=DTYPES[name])
        return arrays

    def _at(self, name: str, step: int) -> Any:
        """The part of an array that holds `step`. The array grows where it is too short."""
        array = self._arrays[name]
        if step >= array.shape[0]:
            array = array.resize(exclusive_max=[step + 1, *self._shape(name)]).result()
            self._arrays[name] = array
        return array[step]


class TrajectoryReader:
    """Reads what a `TrajectoryWriter` wrote."""

    def __init__(self, folder: Path) -> None:
        """Open the folder. Raises InputError where it is missing or of another format."""
        metadata_path = folder / METADATA_FILE
        if not metadata_path.is_file():
            raise InputError(f"{folder}: holds no trajectories; a run writes them with store_trajectories = True")
        metadata = _unsealed(metadata_path)
        if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
            raise InputError(f"{metadata_path}: not trajectories of format {FORMAT}")
        self._folder = folder
        try:
            self.layout = GroupLayout(**metadata["layout"])
            self.rows_per_step: int = metadata["rows_per_step"]
        except (KeyError, TypeError) as error:
            raise InputError(f"{metadata_path}: damaged ({error}); record the run again") from None

    def steps(self) -> list[int]:
        """The steps that are there, in order."""
        return sorted(int(path.stem) for path in (self._folder / STEPS_FOLDER).glob("[0-9]*.json"))

    def read(self, step: int) -> tuple[GroupBatch, np.ndarray, list[str]]:
        """The batch of `step`, its rewards `[rows, group]` float64 and its question ids, one for each row.

        Raises InputError where the step is not there, or where what is stored is not what was written.
        """
        marker = self._read_marker(step)
        rows = len(marker["question_ids"])
        arrays: dict[str, np.ndarray | None] = dict.fromkeys(marker["absent"])
        for name, checksum in marker["crc32"].items():
            stored = _open(self._folder, name)
            try:
                arrays[name] = array = stored[step, :rows].read().result()
            except (ValueError, IndexError):  # a chunk that does not decode; an array shorter than the step
                raise InputError(_damaged(self._folder / name, step)) from None
            if _checksum(array) != checksum:  # a chunk that is not there reads as empty
                raise InputError(_damaged(self._folder / name, step))
        rewards = arrays.pop(REWARDS)
        assert rewards is not None
        return GroupBatch(layout=self.layout, **arrays), rewards, marker["question_ids"]  # type: ignore[arg-type]

    @property
    def folder(self) -> Path:
        """The folder of the trajectories."""
        return self._folder

    def markers(self, steps: Iterable[int]) -> dict[str, Path]:
        """The marker files of `steps`, by their names in the folder."""
        return {f"{STEPS_FOLDER}/{_marker(self._folder, step).name}": _marker(self._folder, step) for step in steps}

    def notes(self, step: int) -> dict[str, Any]:
        """What was noted of `step`. Raises InputError where the step is not there."""
        return self._read_marker(step).get("notes", {})

    def checksums(self, step: int) -> dict[str, int]:
        """CRC-32 of each array of `step`, as it was written. Raises InputError where the step is not there."""
        return self._read_marker(step)["crc32"]

    def _read_marker(self, step: int) -> dict[str, Any]:
        if not _marker(self._folder, step).is_file():
            raise InputError(f"{self._folder}: has no step {step}; it has {_ranges(self.steps())}")
        marker = _unsealed(_marker(self._folder, step))
        if not (isinstance(marker, dict) and {"question_ids", "absent", "crc32"} <= marker.keys()):
            raise InputError(_damaged(_marker(self._folder, step), step))
        return marker


def _marker(folder: Path, step: int) -> Path:
    return folder / STEPS_FOLDER / f"{step:08d}.json"


def _unsealed(path: Path) -> Any:
    content = files.read_json(path)
    # Earlier versions did not seal it.
    return files.unsealed(content, path, "record the run again") if files.is_sealed(content) else content


def _damaged(path: Path, step: int) -> str:
    return f"{path}: step {step} is damaged or incomplete; run that step again"


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).tobytes())


def _location(folder: Path, name: str) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": files.kvstore(folder / name)}


def _create(folder: Path, name: str, dtype: str, shape: tuple[int, int]) -> Any:
    metadata = {
        "shape": [0, *shape],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1, *shape]}},
        "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": 3}}],
        "fill_value": "NaN" if dtype.startswith("float") else -1,
    }
    if (folder / name / "zarr.json").is_file():
        return _open(folder, name)
    return tensorstore.open({**_location(folder, name), "metadata": metadata, "create": True}).result()


def _open(folder: Path, name: str) -> Any:
    try:
        return tensorstore.open({**_location(folder, name), "open": True}).result()
    except ValueError as error:
        raise InputError(f"{folder / name}: not a readable array ({error})".replace("\n", " ")) from None


def _ranges(steps: list[int]) -> str:
    return f"{len(steps)} of them, {steps[0]} to {steps[-1]}" if steps else "none"
