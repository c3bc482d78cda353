"""Names of pandas that it does not promise to keep: all that we use stand here, and nowhere else.

They hold for `VERSION`; tests/test_private_names.py says when another version is installed, or when a name is gone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

VERSION = "3.1.1"


class StataColumns(NamedTuple):
    """Of each column of a Stata file its name, its format and the name of its value labels; and the file's version."""

    names: list[str]
    formats: list[str]
    labels: list[str]
    version: int


def stata_columns(reader: Any) -> StataColumns:
    """The columns of a file that `pandas.read_stata(..., iterator=True)` has opened."""
    return StataColumns(
        list(reader._varlist), list(reader._fmtlist), list(reader._lbllist), int(reader._format_version)
    )


def set_stata_formats(reader: Any, formats: list[str]) -> None:
    """Read the columns by these formats in place of the file's own."""
    reader._fmtlist = formats
