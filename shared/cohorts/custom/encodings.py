"""Texts of files that do not say how they are encoded: found from the texts themselves, or asked for."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from shared.errors import InputError

RAW = "latin-1"  # as which such texts are read first: each byte is one letter, so nothing is lost
HANGUL_SHARE = 0.9  # of the letters that are not ASCII, in a Korean text

_WESTERN = re.compile(
    "[\x00-\x7f]*(?:[\xa0-\xff]{1,2}(?:[\x00-\x7f]+|$))*"
)  # single letters with accents, no more than two together
_HANGUL = re.compile("[가-힣]")
_BEYOND_ASCII = re.compile("[^\x00-\x7f]")
_EAST_ASIAN_LETTER = re.compile("[가-힣ㄱ-ㆎ一-鿿豈-﫿]")


def check_encoding(name: str) -> None:
    """Raises InputError for an encoding that Python does not know."""
    try:
        codecs.lookup(name or "utf-8")
    except LookupError:
        raise InputError(
            f"encoding = {name!r}: no encoding of that name; cp949 is Korean, cp1252 Western European"
        ) from None


def decoder(path: Path, texts: Iterable[str], encoding: str) -> tuple[Callable[[str], str], list[str]]:
    """What turns texts that were read as `RAW` into what they say, and a note on it.

    `encoding` is that of the file, "" to find it: UTF-8, Korean (CP949) or Western European. Raises InputError where the
    texts are in none of these, or cannot be in `encoding`.
    """
    raw = sorted({text for text in texts if not text.isascii()})
    if not raw:
        return str, []
    if encoding:
        if not _decodes(raw, encoding):
            raise InputError(
                f"{path}: encoding = {encoding!r}: some texts of the file are in another encoding; leave it out, or try cp949"
            )
        return lambda text: text.encode(RAW).decode(encoding), []
    if _decodes(raw, "utf-8"):
        return lambda text: text.encode(RAW).decode("utf-8"), []
    if _is_korean(raw):
        found, name = "cp949", "Korean (CP949)"
    elif all(_WESTERN.fullmatch(text) for text in raw):
        found, name = "cp1252", "Western European (CP1252)"
    else:
        raise InputError(
            f"{path}: the file does not say how its texts are encoded; name it, such as --encoding=cp949 for Korean"
        )
    note = f"{path.name}: the file does not say how its texts are encoded; read as {name}, --encoding names another"
    return lambda text: text.encode(RAW).decode(found), [note]


def _decodes(raw: Iterable[str], encoding: str) -> bool:
    try:
        for text in raw:
            text.encode(RAW).decode(encoding)
    except UnicodeError:
        return False
    return True


def _is_korean(raw: list[str]) -> bool:
    """Whether the texts are such in EUC-KR or CP949, and nearly all of their letters Hangul."""
    if not _decodes(raw, "cp949"):
        return False
    text = "".join(text.encode(RAW).decode("cp949") for text in raw)
    letters = _EAST_ASIAN_LETTER.findall(text)
    common = [letter for letter in letters if _HANGUL.fullmatch(letter) and _in_euc_kr(letter)]
    return (
        bool(letters)
        and len(common) >= HANGUL_SHARE * len(letters)
        and len(letters) >= len(_BEYOND_ASCII.findall(text)) / 2
    )


def _in_euc_kr(letter: str) -> bool:
    """One of the 2,350 common syllables; the 8,822 others are hardly ever written, but come out of texts that are not Korean."""
    return len(letter.encode("euc_kr", "ignore")) == 2
