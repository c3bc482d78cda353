"""Orbax behind one small file: asynchronous, sharded, whole or absent, and with checksums of all values."""

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
    """The checkpoints in a folder or at a gs:// address, the newest `keep`; a save in flight ends before another begins."""

    def __init__(self, folder: Path | str, *, keep: int):
        """Raises InputError for an address that this process may not use."""
        self.folder = folder
        self._in_bucket = buckets.is_address(folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            # Where a folder cannot be made in the background, Orbax's other threads wait 300 s for it, and the end for them.
            async_options=ocp.options.AsyncOptions(create_directories_asynchronously=False),
        )
        with _errors_only(), _written(folder), buckets.understood(folder):
            if self._in_bucket:
                _see_bucket(str(folder))
            path = epath.Path(folder) if self._in_bucket else Path(folder).absolute()
            self._manager = _Manager(path, options=options)

    def save(self, step: int, state: Any, extra: dict[str, int]) -> None:
        """Begin to save `state` and `extra` as checkpoint `step`; a save that is killed leaves the last one whole.

        Raises InputError where it cannot be written, or where the one before could not.
        """
        self.wait()
        noted = files.sealed({**extra, CHECKSUMS: checksums(state)})
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(noted))
        with _written(self.folder):
            self._manager.save(step, args=items)

    def wait(self) -> None:
        """Return when every save begun is on disk. Raises InputError where that cannot be."""
        with _written(self.folder):
            self._manager.written.result()
            self._manager.wait_until_finished()

    def check(self) -> None:
        """Raise InputError where a save has failed by now."""
        if self._manager.written.done():
            with _written(self.folder):
                self._manager.written.result()

    def restore(
        self, target: Any, step: int | None, model: DecoderConfig | None = None
    ) -> tuple[Any, int, dict[str, int]] | None:
        """The newest checkpoint (or `step`) as (state, step, extra), or None where there is none.

        `target` holds shapes, dtypes and shardings, which may be those of another mesh. It may be one of the PyTorch
        backend where `model` is given. Raises InputError where the checkpoint is truncated or damaged, or belongs to another
        model.
        """
        self.wait()
        found = self._manager.latest_step() if step is None else step
        if found is None:
            return None
        known = sorted(self._manager.all_steps())
        if found not in known:
            raise InputError(
                f"{self.folder}: no checkpoint of step {found}; there are {', '.join(map(str, known)) or 'none'}"
            )
        here = buckets.join(self.folder, str(found))
        if model is not None and isinstance(here, Path) and from_torch.written_by_torch(here):
            arrays = from_torch.ZarrArrays(here)
            return arrays.state(target, model), found, arrays.extra()
        noted = self._read(found, "extra", ocp.args.JsonRestore())
        if not isinstance(noted, dict):
            raise InputError(f"{here}: damaged: it does not say where the run was; {REMEDY}")
        if files.is_sealed(noted) or CHECKSUMS in noted:
            noted = files.unsealed(noted, here, REMEDY)
        extra = dict(noted)
        sums = extra.pop(CHECKSUMS, None)
        if sums is None and jax.process_index() == 0:
            tqdm.write(
                f"{here}: an earlier version saved it without checksums, so damage to its values would go unseen"
            )
        state = self._read(found, "state", ocp.args.StandardRestore(_as_stored(target, sums or {})))
        if sums is not None:
            _check(state, sums, here)
        return jax.tree.map(_converted, state, target), found, extra

    def _read(self, step: int, item: str, args: Any) -> Any:
        """One item of a checkpoint. Raises InputError where it cannot be had whole."""
        here = buckets.join(self.folder, str(step))
        try:
            with _one_report():
                return self._manager.restore(step, args=ocp.args.Composite(**{item: args}))[item]
        except Exception as error:
            # A bare Exception is how Orbax reports values that cannot be read; the others are of a damaged description.
            damaged = (KeyError, AttributeError, TypeError, *buckets.failures())
            if type(error) is not Exception and not isinstance(error, damaged):
                raise
            unless = "see that the bucket answers, and if it does " if self._in_bucket else ""
            raise InputError(
                f"{here}: not a whole checkpoint of this model ({_reason(error)}); {unless}{REMEDY}"
            ) from error


def _as_stored(target: Any, sums: dict[str, Any]) -> Any:
    """`target` with the dtypes that were saved, which are those that the checksums are of."""

    def one(path: tuple[Any, ...], leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = sums.get(path_name(path), {}).get("dtype", leaf.dtype)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=leaf.sharding)

    return jax.tree_util.tree_map_with_path(one, target)


def _converted(found: jax.Array, wanted: Any) -> jax.Array:
    if found.dtype == wanted.dtype:
        return found
    return jax.device_put(found.astype(wanted.dtype), wanted.sharding)


def _check(state: Any, sums: dict[str, Any], here: Path | str) -> None:
    """Raise InputError for values that are not those that were saved."""
    found = checksums(state)
    changed = [name for name in sorted({*found, *sums}) if found.get(name) != sums.get(name)]
    if changed:
        raise InputError(
            f"{here}: damaged: {changed[0]} does not hold the values that were saved, as its checksum says; {REMEDY}"
        )


class _Manager(private_orbax.CheckpointManager):
    """Knows at once of a save that failed in the background.

    Orbax says so only after all processes have met. But the processes that have written their part wait for the one that
    failed, so they would never meet.
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
        except BaseException as error:  # whatever it is: it is raised, here and to whoever waits
            self.written.set_exception(error)
            raise


def _see_bucket(address: str) -> None:
    """Ask now what kind of bucket this is. Orbax asks it when it first removes an old checkpoint, hours later, and a run
    without the right to ask would end then."""
    from google.cloud import storage as google_storage

    google_storage.Client().get_bucket(address.removeprefix("gs://").split("/")[0])


@contextlib.contextmanager
def _errors_only() -> Iterator[None]:
    """Orbax warns of a checkpoint without a metadata file of its own: those of the PyTorch backend have none."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


@contextlib.contextmanager
def _one_report() -> Iterator[None]:
    """Report a failure once. Of several reads or writes that fail, the first raises; the others would each print a traceback
    from a thread, even after this block. So threads print nothing here, and nothing after a failure either."""
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
    """Turn what keeps this block from writing there into an InputError."""
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
    """What went wrong at first, in one line of readable length."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join((str(error) or type(error).__name__).split())
    if len(text) <= REASON_LENGTH:
        return text
    code = re.search(r"os_error_code='(\d+)'", text)  # TensorStore's messages have the reason behind the path
    return text[:REASON_LENGTH] + "..." + (f" {os.strerror(int(code[1]))}" if code else "")
