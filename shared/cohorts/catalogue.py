"""The cohorts by name. A cohort's module offers `read(source, cohort=...)` and `digests(source)`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from shared.cohorts import custom, hospitalized, sepsis, stroke
from shared.cohorts.mimic3 import registry as mimic3
from shared.registry.build import RawRegistry


class Cohort(Protocol):
    """What a cohort's module offers."""

    def read(self, source: Path, *, cohort: str) -> RawRegistry:
        """The registry from the raw files in `source`. Raises InputError naming the file or the column that is wrong."""
        ...

    def digests(self, source: Path) -> dict[str, str]:
        """Digest of each raw file, by its name. Raises InputError listing every file that is missing."""
        ...


COHORTS: dict[str, Cohort] = {
    "synthetic": sepsis,  # drawn in the sepsis registry's raw format
    "sepsis": sepsis,
    "hospitalized": hospitalized,
    "stroke": stroke,
    "mimic3": mimic3,
    "custom": custom,
}
