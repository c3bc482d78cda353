"""Names of Python that it does not promise to keep: all that we use stand here, and nowhere else.

They hold for `VERSIONS`; tests/test_private_names.py says when another version runs, or when a name is gone.
"""

from __future__ import annotations

import atexit

VERSIONS = ("3.11", "3.12", "3.13")


def run_exit_functions() -> None:
    """Do now what was registered with `atexit` for the end of this process."""
    atexit._run_exitfuncs()
