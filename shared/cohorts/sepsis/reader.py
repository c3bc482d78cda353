"""Reads the raw files of the sepsis registry: the data, the metadata and the Korean-English dictionary."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from shared.cohorts import tables
from shared.cohorts.tables import RawTable

FILES = {
    "data": ("data.xlsx", "data.csv", "data.parquet"),
    "metadata": ("metadata.xlsx", "metadata.csv"),
    "dictionary": ("kor_to_eng.json", "dictionary.json"),
}


@dataclasses.dataclass(frozen=True)
class RawFiles:
    """The content of the three raw files, and their checksums by file name."""

    data: RawTable
    metadata: RawTable
    dictionary: dict[str, str]
    digests: dict[str, str]


def read(source: Path) -> RawFiles:
    """Read the raw files in `source`. Raises InputError that lists every missing file, or names a damaged one."""
    paths = tables.find(source, FILES)
    return RawFiles(
        data=tables.read_table(paths["data"]),
        metadata=tables.read_table(paths["metadata"], merged=True),
        dictionary=tables.read_dictionary(paths["dictionary"]),
        digests=digests(source),
    )


def digests(source: Path) -> dict[str, str]:
    """The checksum of each raw file, by file name. Raises InputError that lists every missing file."""
    return {path.name: tables.digest(path) for path in tables.find(source, FILES).values()}
