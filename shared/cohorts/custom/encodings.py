"""Recognises the encoding of texts in files that do not state it."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from shared.errors import InputError

RAW = "latin-1"  # such texts are first read in this encoding: each byte is one letter, so nothing is lost
HANGUL_SHARE = 0.9  # a text is Korean if at least this share of its East Asian letters is Hangul

# Letters with accents stand alone or in pairs between ASCII characters.
_WESTERN = re.compile("[\x00-\x7f]*(?:[\xa0-\xff]{1,2}(?:[\x00-\x7f]+|$))*")
_HANGUL = re.compile("[가-힣]")
_BEYOND_ASCII = re.compile("[^\x00-\x7f]")
_EAST_ASIAN_LETTER = re.compile("[가-힣ㄱ-ㆎ一-鿿豈-﫿]")


def check_encoding(name: str) -> None:
    """Raise InputError if Python does not know the encoding `name`."""
    try:
        codecs.lookup(name or "utf-8")
    except LookupError:
        raise InputError(
            f"encoding = {name!r}: no encoding of that name; cp949 is Korean, cp1252 Western European"
        ) from None


def decoder(path: Path, texts: Iterable[str], encoding: str) -> tuple[Callable[[str], str], list[str]]:
    """A function that decodes texts which were read with the encoding `RAW`, and notes on the encoding.

    `encoding` is that of the file; if it is "", it is recognised: UTF-8, Korean (CP949) or Western European (CP1252). Raises
    InputError if the texts are in none of these, or cannot be in `encoding`.
    """
    not_ascii = sorted({text for text in texts if not text.isascii()})
    if not not_ascii:
        return str, []
    if encoding:
        if not _decodes(not_ascii, encoding):
            raise InputError(
                f"{path}: encoding = {encoding!r}: some texts of the file are in another encoding; leave it out, or try cp949"
            )
        return lambda text: text.encode(RAW).decode(encoding), []
    if _decodes(not_ascii, "utf-8"):
        return lambda text: text.encode(RAW).decode("utf-8"), []
    if _is_korean(not_ascii):
        recognised, name = "cp949", "Korean (CP949)"
    elif all(_WESTERN.fullmatch(text) for text in not_ascii):
        recognised, name = "cp1252", "Western European (CP1252)"
    else:
        raise InputError(
            f"{path}: the file does not say how its texts are encoded; name it, such as --encoding=cp949 for Korean"
        )
    note = f"{path.name}: the file does not say how its texts are encoded; read as {name}, --encoding names another"
    return lambda text: text.encode(RAW).decode(recognised), [note]


def _decodes(raw: Iterable[str], encoding: str) -> bool:
    try:
        for text in raw:
            text.encode(RAW).decode(encoding)
    except UnicodeError:
        return False
    return True


def _is_korean(raw: list[str]) -> bool:
    """Whether the texts are valid in CP949, and nearly all of their letters are common Hangul syllables."""
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
    """Whether a syllable is one of the 2,350 of EUC-KR.

    The other 8,822 of CP949 are very rare in Korean texts, but appear when texts in other encodings are decoded as CP949.
    """
    return len(letter.encode("euc_kr", "ignore")) == 2
