"""Names of Orbax that it does not promise to keep: all that we use stand here, and nowhere else.

They hold for `VERSION`; tests/test_private_names.py says when another version is installed, or when a name is gone.
"""

from __future__ import annotations

import orbax.checkpoint as ocp

VERSION = "0.12.8"


class CheckpointManager(ocp.CheckpointManager):
    """Orbax's manager, where the wait for the writers in the background is a method to override."""

    def wait_for_writers(self) -> None:
        """Return when what was saved is written. Raises what the writers raised."""
        super()._wait_for_checkpointers()

    def _wait_for_checkpointers(self) -> None:
        self.wait_for_writers()
