"""How MIMIC-III is read: the part of the config's section `data` that is for cohort = "mimic3" alone."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any, Literal

from shared.cohorts.mimic3 import fixes
from shared.errors import InputError

RULES = 2  # raised whenever the same files and options would make something else
UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}
GIGABYTE = UNITS["GB"]
LEAST_MEMORY = GIGABYTE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mimic3Config:
    """How MIMIC-III is read and asked about; for cohort = "mimic3" alone (docs/mimic3.md)."""

    fix: str = ""  # corrections of the original: all, or names separated by commas; empty: none
    # which of several equally near rows fills a missing value: the lowest, or the original's, with its numbers
    ties: Literal["stable", "introsort"] = "stable"
    stays: int = 1_000  # ICU stays asked about at most, of both splits together; drawn as the original draws them
    memory_limit: str = "4GB"  # memory to stay below; more than that goes to disk
    threads: int = 0  # number of threads that read the files; 0: one for each processor
    cache: str = (
        ""  # folder of intermediate files, which several preparations may share; empty: `cache` beside the questions
    )

    def __post_init__(self) -> None:
        fixes.parse(self.fix)
        if self.stays < 1:
            raise InputError(f"stays = {self.stays}: must be at least 1")
        if self.threads < 0:
            raise InputError(f"threads = {self.threads}: must be at least 0")
        if self.memory_bytes < LEAST_MEMORY:
            raise InputError(f"memory_limit = {self.memory_limit!r}: is too little; give 1GB or more")

    @property
    def memory_bytes(self) -> int:
        """The memory limit. Raises InputError where it is not written like 4GB or 1500MiB."""
        parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]i?B)", self.memory_limit.strip(), re.IGNORECASE)
        if not parts:
            raise InputError(f"memory_limit = {self.memory_limit!r}: not a size; write it like 4GB or 1500MB")
        return int(float(parts[1]) * UNITS[parts[2].upper()])

    @property
    def processors(self) -> int:
        """Threads that read the files."""
        return self.threads or os.cpu_count() or 1

    def deciding(self) -> dict[str, Any]:
        """What decides the cohort and its questions, as the record of a preparation holds it."""
        corrections = ",".join(sorted(fixes.parse(self.fix)))
        return {"rules": RULES, "fix": corrections, "ties": self.ties, "stays": self.stays}
