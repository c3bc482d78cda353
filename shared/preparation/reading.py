"""The raw files of a cohort, read with the options that it alone has."""

from __future__ import annotations

from pathlib import Path

from shared.cohorts import custom
from shared.cohorts.catalogue import COHORTS
from shared.cohorts.mimic3 import registry as mimic3
from shared.preparation.section import DataConfig
from shared.registry.build import RawRegistry


def source_digests(data: DataConfig, out: Path) -> dict[str, str]:
    """Digest of each raw file, by its name. Raises InputError listing every file that is missing.

    Those of MIMIC-III, which are large, are kept in its cache.
    """
    source = Path(data.source)
    if data.cohort == "mimic3":
        return mimic3.digests(source, cache=cache_of(data, out))
    return COHORTS[data.cohort].digests(source)


def read(data: DataConfig, source: Path, out: Path, *, progress: bool) -> RawRegistry:
    """The registry from the raw files in `source`. Raises InputError naming the file or the column that is wrong."""
    if data.cohort == "mimic3":
        return mimic3.read(source, options=data.mimic3, cache=cache_of(data, out), progress=progress)
    if data.cohort == "custom":
        how = {"encoding": data.encoding, "delimiter": data.delimiter, "decimal": data.decimal}
        return custom.read(source, **how, exclude=data.exclude)
    return COHORTS[data.cohort].read(source, cohort=data.cohort)


def cache_of(data: DataConfig, out: Path) -> Path:
    """Where MIMIC-III's intermediate files are."""
    return Path(data.mimic3.cache) if data.mimic3.cache else out / mimic3.CACHE
