"""Reads text files of cells (.csv, .tsv, .txt), and recognises their separator and encoding if these are not given."""

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
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}  # the separators that are recognised
NAMES = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|", "space": " "}  # the names that --delimiter accepts
EXPECTED = {".csv": ",", ".tsv": "\t"}  # the usual separator by file ending; a note is given only for another
LOOKED_AT = 1_000  # rows from which the separator is found
SAMPLE = 4_000_000  # characters from which the separator is found
MARKS = {"": "", ".": ".", ",": ",", "point": ".", "comma": ","}  # the decimal marks that --decimal accepts

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_HINT = re.compile(r"sep=(.)\r?\n")  # a first line that tells Excel the separator


@dataclasses.dataclass(frozen=True)
class Form:
    """How a text file is written. What is "" is recognised from the file itself.

    `delimiter` separates cells: a character, or one of `NAMES`. `decimal` is the decimal mark: one of `MARKS`. Raises InputError
    for any other value.
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
        """The character that separates cells, or "" if it is not given."""
        return NAMES.get(self.delimiter, self.delimiter)

    @property
    def mark(self) -> str:
        """The decimal mark, or "" if it is not given."""
        return MARKS[self.decimal]


def read_delimited(path: Path, form: Form, *, errors: bool = True) -> tuple[list[list[Any]], int, list[str]]:
    """Read a text file: its rows, the line number of the first row, and notes on how it was read.

    If `errors` is true, error values of a spreadsheet are read as texts. Raises InputError, which names the file and the flag
    that helps, if the encoding or the separator cannot be recognised.
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
    """The text of a file without its byte order mark, and a note if the encoding was recognised and is not UTF-8."""
    kind = suffix(path)[1:].upper()
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: not a readable {kind} file ({error})") from None
    is_utf_16 = content.startswith(_UTF_16)
    if encoding or is_utf_16:
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
        raise InputError(f"{path}: not a readable {kind} file in UTF-8, and its encoding is not recognised; name its "
                         f"encoding, such as --encoding=cp949, or save it in UTF-8") from None  # fmt: skip
    return decode(raw), notes


def _separator(path: Path, text: str) -> str:
    """Recognise the separator of the cells. Raises InputError if several separators are possible, or blanks are."""
    sample = (
        text if len(text) <= SAMPLE else text[: text.rindex("\n", 0, SAMPLE) + 1] if "\n" in text[:SAMPLE] else text
    )
    scores = {mark: score for mark in SEPARATORS if (score := _separator_score(sample, mark))}
    if not scores:
        if _has_blanks_between(sample):
            raise InputError(f"{path}: one column only; where blanks separate its cells, give --delimiter=space")
        return EXPECTED.get(suffix(path), ",")
    best = [mark for mark, score in scores.items() if score == max(scores.values())]
    if len(best) > 1:
        separators = " or ".join(SEPARATORS[mark] for mark in best)
        names = {mark: name for name, mark in NAMES.items()}
        raise InputError(
            f"{path}: cells may be separated by {separators}: give the right separator, such as --delimiter={names[best[0]]}"
        )
    return best[0]


def _has_blanks_between(text: str) -> bool:
    """Whether blanks divide all rows into the same number of parts, which is more than one."""
    parts = {len(line.split()) for line in text.splitlines()[:LOOKED_AT] if line.strip()}
    return len(parts) == 1 and min(parts) > 1


def _separator_score(text: str, mark: str) -> tuple[float, int] | None:
    """How well a separator fits: the share of rows with as many cells as the first row, and that number.

    None if it does not divide the first row.
    """
    try:
        rows = list(itertools.islice(csv_rows(io.StringIO(text, newline=""), mark), LOOKED_AT))
    except csv.Error:
        return None
    filled = [row for row in rows if any(cell != "" for cell in row)]
    if not filled or len(filled[0]) < 2:
        return None
    body, width = filled[1:], len(filled[0])
    return (sum(len(row) == width for row in body) / len(body) if body else 1.0), width
