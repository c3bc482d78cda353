"""Text files of cells (.csv, .tsv, .txt): what separates the cells and how letters are encoded, found or given."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import io
import itertools
import re
import zlib
from pathlib import Path
from typing import Any

from shared.cohorts.custom.encodings import RAW, decoder
from shared.cohorts.tables import check_cells, csv_rows, suffix
from shared.errors import InputError

ENDINGS = (".csv", ".tsv", ".txt")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}  # those that are recognised
NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}  # as a flag may call them
EXPECTED = {".csv": ",", ".tsv": "\t"}  # said only where a file has another
LOOKED_AT = 1_000  # rows
SAMPLE = 4_000_000  # characters
MARKS = {"": "", ".": ".", ",": ",", "point": ".", "comma": ","}  # of decimals, as a flag may call them

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_HINT = re.compile(r"sep=(.)\r?\n")  # a first line for Excel


@dataclasses.dataclass(frozen=True)
class Form:
    """How a file is written; "" is found from the file itself.

    `delimiter` separates cells (a character, or one of `NAMES`), `decimal` is the mark of decimals (a point or a comma).
    Raises InputError for another.
    """

    encoding: str = ""
    delimiter: str = ""
    decimal: str = ""

    def __post_init__(self) -> None:
        if len(self.separator) > 1 or (self.separator and self.separator in '"\r\n'):
            raise InputError(f"delimiter = {self.delimiter!r}: must be one character, or one of {', '.join(NAMES)}")
        if self.decimal not in MARKS:
            raise InputError(f"decimal = {self.decimal!r}: must be a comma or a point")
        if self.separator and self.separator == self.mark == ".":
            raise InputError(f"delimiter = {self.delimiter!r}: is the mark of decimals too")

    @property
    def separator(self) -> str:
        """The character that separates cells, or ""."""
        return NAMES.get(self.delimiter, self.delimiter)

    @property
    def mark(self) -> str:
        """The mark of decimals, or ""."""
        return MARKS[self.decimal]


def read_delimited(path: Path, form: Form, *, errors: bool = True) -> tuple[list[list[Any]], int, list[str]]:
    """The rows of a text file, the place of the first in the file (from 1), and notes on how it was read.

    `errors` takes a spreadsheet's error values as texts. Raises InputError, naming the file and the flag that helps, where it
    cannot be told how it is written.
    """
    text, notes = _text(path, form.encoding)
    hint = _HINT.match(text)
    if hint:
        text = text[hint.end() :]
    separator = form.separator or (hint[1] if hint else "") or _separator(path, text)
    if separator != EXPECTED.get(suffix(path)) and not form.separator:
        called = SEPARATORS.get(separator, repr(separator))
        notes.append(f"{path.name}: cells are separated by {called}; --delimiter names another separator")
    try:
        rows = list(csv_rows(io.StringIO(text, newline=""), separator))
    except csv.Error as error:
        raise InputError(f"{path}: not a readable {suffix(path)[1:].upper()} file ({error})") from None
    check_cells(str(path), rows, errors=errors)
    return rows, 2 if hint else 1, notes


def _text(path: Path, encoding: str) -> tuple[str, list[str]]:
    """What a file says, without a byte order mark, and a note where the encoding was found."""
    kind = suffix(path)[1:].upper()
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable {kind} file ({error})") from None
    sixteen = content.startswith(_UTF_16)
    if encoding or sixteen:
        name = encoding or "utf-16"
        try:
            text = content.decode(name).removeprefix("\ufeff")
        except UnicodeError:
            raise InputError(
                f"{path}: not a readable {kind} file in {encoding or 'UTF-16'}; save it in UTF-8"
            ) from None
        return text, [] if encoding else [f"{path.name}: is in UTF-16; --encoding names another encoding"]
    try:
        return content.decode("utf-8-sig"), []
    except UnicodeDecodeError:
        raw = content.decode(RAW)
    try:
        decode, notes = decoder(path, raw.split("\n"), "")
    except InputError:
        raise InputError(f"{path}: not a readable {kind} file in UTF-8, and in which other encoding cannot be told; name its "
                         f"encoding, such as --encoding=cp949, or save it in UTF-8") from None  # fmt: skip
    return decode(raw), notes


def _separator(path: Path, text: str) -> str:
    """What separates the cells. Raises InputError where two would do, or none."""
    sample = (
        text if len(text) <= SAMPLE else text[: text.rindex("\n", 0, SAMPLE) + 1] if "\n" in text[:SAMPLE] else text
    )
    fits = {mark: fit for mark in SEPARATORS if (fit := _fit(sample, mark))}
    if not fits:
        if _has_blanks_between(sample):
            raise InputError(f"{path}: one column only; where blanks separate its cells, give --delimiter=space")
        return EXPECTED.get(suffix(path), ",")
    fitting = [mark for mark, fit in fits.items() if fit == max(fits.values())]
    if len(fitting) > 1:
        found = " or ".join(SEPARATORS[mark] for mark in fitting)
        names = {mark: name for name, mark in NAMES.items()}
        raise InputError(
            f"{path}: cells may be separated by {found}: say by which, such as --delimiter={names[fitting[0]]}"
        )
    return fitting[0]


def _has_blanks_between(text: str) -> bool:
    """Whether blanks cut every row into as many parts as the first, which has several."""
    parts = {len(line.split()) for line in text.splitlines()[:LOOKED_AT] if line.strip()}
    return len(parts) == 1 and min(parts) > 1


def _fit(text: str, mark: str) -> tuple[float, int] | None:
    """The share of rows that a separator cuts into as many cells as the first, and how many; None where it does not cut that."""
    try:
        rows = list(itertools.islice(csv_rows(io.StringIO(text, newline=""), mark), LOOKED_AT))
    except csv.Error:
        return None
    filled = [row for row in rows if any(cell != "" for cell in row)]
    if not filled or len(filled[0]) < 2:
        return None
    body, width = filled[1:], len(filled[0])
    return (sum(len(row) == width for row in body) / len(body) if body else 1.0), width
