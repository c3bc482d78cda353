"""Orbax behind one small file: asynchronous, sharded, whole or absent."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from creason_jax import zarr
from creason_jax.model import DecoderConfig
from shared import storage
from shared.errors import InputError

REASON_LENGTH = 200  # characters of a library's message that are shown


class Checkpoints:
    """The checkpoints in a folder or at a gs:// address, the newest `keep`; a save in flight ends before another begins."""

    def __init__(self, folder: Path | str, *, keep: int):
        """Raises InputError for an address that this process may not use."""
        self.folder = folder
        self._in_bucket = storage.is_address(folder)
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        with _errors_only(), storage.understood(folder):
            if self._in_bucket:
                _see_bucket(str(folder))
            path = epath.Path(folder) if self._in_bucket else Path(folder).absolute()
            self._manager = ocp.CheckpointManager(path, options=options)

    def save(self, step: int, state: Any, extra: dict[str, int]) -> None:
        """Begin to save `state` and `extra` as checkpoint `step`; a save that is killed leaves the last one whole."""
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra))
        self._manager.save(step, args=items)

    def wait(self) -> None:
        """Return when every save begun is on disk."""
        self._manager.wait_until_finished()

    def restore(
        self, target: Any, step: int | None, model: DecoderConfig | None = None
    ) -> tuple[Any, int, dict[str, int]] | None:
        """The newest checkpoint (or `step`) as (state, step, extra), or None where there is none.

        `target` holds shapes, dtypes and shardings, which may be those of another mesh. It may be one of the PyTorch
        backend where `model` is given. Raises InputError where the checkpoint is truncated or belongs to another model.
        """
        found = self._manager.latest_step() if step is None else step
        if found is None:
            return None
        known = sorted(self._manager.all_steps())
        if found not in known:
            raise InputError(
                f"{self.folder}: no checkpoint of step {found}; there are {', '.join(map(str, known)) or 'none'}"
            )
        here = storage.join(self.folder, str(found))
        if model is not None and isinstance(here, Path) and zarr.written_by_torch(here):
            arrays = zarr.ZarrArrays(here)
            return arrays.state(target, model), found, arrays.extra()
        items = ocp.args.Composite(state=ocp.args.StandardRestore(target), extra=ocp.args.JsonRestore())
        try:
            with _one_report():
                restored = self._manager.restore(found, args=items)
        except Exception as error:
            # A bare Exception is how Orbax reports values that cannot be read.
            if type(error) is not Exception and not isinstance(error, (KeyError, *storage.failures())):
                raise
            unless = "see that the bucket answers, and if it does " if self._in_bucket else ""
            raise InputError(
                f"{here}: not a whole checkpoint of this model ({_reason(error)}); {unless}remove that "
                "folder to go on from the one before"
            ) from error
        return restored["state"], found, restored["extra"]


def _see_bucket(address: str) -> None:
    """Orbax asks what kind of bucket it is when it removes an old checkpoint, hours later: where the right to ask is missing,
    the run would end there."""
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
    """Where several reads fail, the first raises; the others would print a traceback each, from threads of their own and
    until the process ends. So they are silent, and after a failure they remain it."""
    asyncio_log = logging.getLogger("asyncio")
    hook, level = sys.unraisablehook, asyncio_log.level
    sys.unraisablehook = lambda _: None
    asyncio_log.setLevel(logging.CRITICAL)
    yield
    sys.unraisablehook = hook
    asyncio_log.setLevel(level)


def _reason(error: BaseException) -> str:
    """What went wrong at first, in one line of readable length."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join((str(error) or type(error).__name__).split())
    return text if len(text) <= REASON_LENGTH else text[:REASON_LENGTH] + "..."
