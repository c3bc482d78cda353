"""Checkpoints through Orbax: asynchronous and sharded, with checksums of all values. A save is whole or absent."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from tqdm import tqdm

from creason_jax import private_orbax
from creason_jax.checkpoint import from_torch
from creason_jax.checkpoint.checksums import checksums, path_name
from creason_jax.model import DecoderConfig
from shared.errors import REASON_LENGTH, InputError
from shared.storage import buckets, files
from shared.storage.checkpoints import CHECKSUMS, REMEDY


class Checkpoints:
    """The checkpoints in a folder or at a gs:// address. The newest `keep` are kept; a save waits for the one before it."""

    def __init__(self, folder: Path | str, *, keep: int):
        """Raises InputError for a bucket that this process may not use."""
        self.folder = folder
        self._in_bucket = buckets.is_address(folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            # If Orbax made folders in the background and could not, its other threads would wait 300 s for them.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )
        with _errors_only(), _written(folder), buckets.understood(folder):
            if self._in_bucket:
                _see_bucket(str(folder))
            path = epath.Path(folder) if self._in_bucket else Path(folder).absolute()
            self._manager = _Manager(path, options=options)

    def save(self, step: int, state: Any, extra: dict[str, int]) -> None:
        """Begin to save `state` and `extra` as checkpoint `step`. If this save is killed, the last one stays whole.

        Raises InputError where this save cannot begin, or where the one before failed.
        """
        self.wait()
        notes = files.sealed({**extra, CHECKSUMS: checksums(state)})
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(notes))
        with _written(self.folder):
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Return when every save that was begun is on disk. Raises InputError where one failed."""
        with _written(self.folder):
            self._manager.written.result()
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raise InputError if a save has failed; does not wait."""
        if self._manager.written.done():
            with _written(self.folder):
                self._manager.written.result()

    def restore(
        self, target: Any, step: int | None, model: DecoderConfig | None = None
    ) -> tuple[Any, int, dict[str, int]] | None:
        """The newest checkpoint, or that of `step`, as (state, step, extra); None where there is no checkpoint.

        `target` holds the shapes, dtypes and shardings to restore to; the mesh may differ from the one that saved. With `model`
        given, a checkpoint of the PyTorch backend is read too. Raises InputError where the checkpoint is missing, truncated or
        damaged, or belongs to another model.
        """
        self.wait()
        chosen = self._manager.latest_step() if step is None else step
        if chosen is None:
            return None
        saved = sorted(self._manager.all_steps())
        if chosen not in saved:
            raise InputError(
                f"{self.folder}: no checkpoint of step {chosen}; there are {', '.join(map(str, saved)) or 'none'}"
            )
        folder = buckets.join(self.folder, str(chosen))
        if model is not None and isinstance(folder, Path) and from_torch.written_by_torch(folder):
            arrays = from_torch.ZarrArrays(folder)
            return arrays.state(target, model), chosen, arrays.extra()
        notes = self._read(chosen, "extra", ocp.args.JsonRestore())
        if not isinstance(notes, dict):
            raise InputError(f"{folder}: damaged: it does not say where the run was; {REMEDY}")
        if files.is_sealed(notes) or CHECKSUMS in notes:
            notes = files.unsealed(notes, folder, REMEDY)
        extra = dict(notes)
        sums = extra.pop(CHECKSUMS, None)
        if sums is None and jax.process_index() == 0:
            tqdm.write(
                f"{folder}: an earlier version saved it without checksums, so damage to its values would go unseen"
            )
        state = self._read(chosen, "state", ocp.args.StandardRestore(_as_stored(target, sums or {})))
        if sums is not None:
            _check(state, sums, folder)
        return jax.tree.map(_converted, state, target), chosen, extra

    def _read(self, step: int, item: str, args: Any) -> Any:
        """Read one item of a checkpoint. Raises InputError where it cannot be read whole."""
        folder = buckets.join(self.folder, str(step))
        try:
            with _one_report():
                return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:
            # Orbax raises a bare Exception for values that it cannot read, and the other types for damaged metadata.
            damaged = (KeyError, AttributeError, TypeError, *buckets.failures())
            if type(error) is not Exception and not isinstance(error, damaged):
                raise
            unless = "see that the bucket answers, and if it does " if self._in_bucket else ""
            raise InputError(
                f"{folder}: not a whole checkpoint of this model ({_reason(error)}); {unless}{REMEDY}"
            ) from error


def _as_stored(target: Any, sums: dict[str, Any]) -> Any:
    """`target` with the dtypes that were saved: the checksums are of values in these dtypes."""

    def shape_of(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = sums.get(path_name(path), {}).get("dtype", leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(shape_of, target)


def _converted(array: jax.Array, target: Any) -> jax.Array:
    if array.dtype == target.dtype:
        return array
    return jax.device_put(array.astype(target.dtype), target.sharding)


def _check(state: Any, sums: dict[str, Any], folder: Path | str) -> None:
    """Raise InputError if a value of `state` differs from the saved one, as its checksum says."""
    sums_now = checksums(state)
    changed = [name for name in sorted({*sums_now, *sums}) if sums_now.get(name) != sums.get(name)]
    if changed:
        raise InputError(
            f"{folder}: damaged: {changed[0]} does not hold the values that were saved, as its checksum says; {REMEDY}"
        )


class _Manager(private_orbax.CheckpointManager):
    """Orbax's manager, with a future `written` that reports a failed background save at once.

    Orbax itself reports the failure only after a barrier of all processes. The other processes wait there for the one that
    failed, so without this the run would hang.
    """

    def __init__(self, path: epath.Path | Path, options: ocp.CheckpointManagerOptions):
        super().__init__(path, options=options)
        self.written: Future[None] = Future()
        self.written.set_result(None)
        self._quiet = contextlib.ExitStack()

    def save(self, *args: Any, **kwargs: Any) -> bool:
        self.written = Future()
        self._quiet.enter_context(_one_report())
        with self._noted():
            begun = super().save(*args, **kwargs)
        if not begun:
            self._ended()
        return begun

    def wait_for_writers(self) -> None:
        with self._noted():
            super().wait_for_writers()
        self._ended()

    def _ended(self) -> None:
        self._quiet.close()
        self.written.set_result(None)

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:  # of any type: it is raised here, and to every caller that waits for `written`
            self.written.set_exception(error)
            raise


def _see_bucket(address: str) -> None:
    """Read the bucket's metadata now. Orbax reads it when it first removes an old checkpoint, hours later: a run without the
    permission to do so would end then."""
    from google.cloud import storage as google_storage

    google_storage.Client().get_bucket(address.removeprefix("gs://").split("/")[0])


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Hide Orbax's warning about checkpoints without Orbax metadata: those of the PyTorch backend have none."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


@contextlib.contextmanager
def _one_report() -> Iterator[None]:
    """Report a failure once. If several reads or writes fail, the first one raises; each of the others would print a traceback
    from its thread, even after this block. So no thread prints here, and none prints after a failure."""
    log, asyncio_log = logging.getLogger("absl"), logging.getLogger("asyncio")
    hook, level = sys.unraisablehook, asyncio_log.level
    sys.unraisablehook = lambda _: None
    asyncio_log.setLevel(logging.CRITICAL)
    log.addFilter(_without_traceback)
    yield
    log.removeFilter(_without_traceback)
    sys.unraisablehook = hook
    asyncio_log.setLevel(level)


def _without_traceback(record: logging.LogRecord) -> bool:
    return not record.exc_info


@contextlib.contextmanager
def _written(folder: Path | str) -> Iterator[None]:
    """Turn an error of writing to `folder` in this block into an InputError."""
    try:
        yield
    except InputError:
        raise
    except buckets.failures() as error:
        raise InputError(
            f"{folder}: a checkpoint cannot be written ({_reason(error)}); see that there is room and that this process may "
            "write there, and give the same command again, the run goes on from its last checkpoint"
        ) from error


def _reason(error: BaseException) -> str:
    """The first cause of the error, in one line of readable length."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join((str(error) or type(error).__name__).split())
    if len(text) <= REASON_LENGTH:
        return text
    code = re.search(r"os_error_code='(\d+)'", text)  # in TensorStore's messages the reason comes after the long path
    return text[:REASON_LENGTH] + "..." + (f" {os.strerror(int(code[1]))}" if code else "")
