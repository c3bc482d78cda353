"""Reading the sepsis registry's raw files: the data, its metadata and the Korean-English dictionary."""

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
    """The three files of a registry and their digests."""

    data: RawTable
    metadata: RawTable
    dictionary: dict[str, str]
    digests: dict[str, str]


def read(source: Path) -> RawFiles:
    """Read the raw files in `source`. Raises InputError listing every file that is missing, or naming a damaged one."""
    found = tables.find(source, FILES)
    return RawFiles(
        data=tables.read_table(found["data"]),
        metadata=tables.read_table(found["metadata"], merged=True),
        dictionary=tables.read_dictionary(found["dictionary"]),
        digests=digests(source),
    )


def digests(source: Path) -> dict[str, str]:
    """Digest of each raw file by its name. Raises InputError listing every file that is missing."""
    return {path.name: tables.digest(path) for path in tables.find(source, FILES).values()}
