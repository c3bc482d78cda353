"""Names of openpyxl that it does not promise to keep: all that we use stand here, and nowhere else.

They hold for `VERSION`; tests/test_private_names.py says when another version is installed, or when a name is gone.
"""

from __future__ import annotations

from typing import IO, Any

VERSION = "3.1.5"


def sheet_xml(book: Any, sheet: Any) -> IO[bytes]:
    """The XML of a sheet of a workbook that was opened `read_only`."""
    return book._archive.open(sheet._worksheet_path)
