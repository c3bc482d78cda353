"""The cohorts by name. The module of a cohort has the functions `read(source, cohort=...)` and `digests(source)`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shared.cohorts import custom, hospitalized, sepsis, stroke
from shared.cohorts.mimic3 import registry as mimic3
from shared.registry.build import RawRegistry


class Cohort(Protocol):
    """The functions that the module of a cohort must have."""

    def read(self, source: Path, *, cohort: str) -> RawRegistry:
        """Read the registry from the raw files in `source`. Raises InputError that names the wrong file or column."""
        ...

    def digests(self, source: Path) -> dict[str, str]:
        """The checksum of each raw file, by file name. Raises InputError that lists every missing file."""
        ...


COHORTS: dict[str, Cohort] = {
    "synthetic": sepsis,  # drawn in the sepsis registry's raw format
    "sepsis": sepsis,
    "hospitalized": hospitalized,
    "stroke": stroke,
    "mimic3": mimic3,
    "custom": custom,
}
