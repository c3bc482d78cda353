"""The original's sepsis data, read once for all tests of a process."""

import functools
import os
from pathlib import Path

import pandas as pd
import pytest

from shared.cohorts import sepsis

GOLDEN = Path(os.environ.get("CREASON_GOLDEN", Path(__file__).resolve().parents[2].parent / "shared" / "golden"))
FOLDER = GOLDEN / "registry"
needs_golden = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden data at {FOLDER}")


@functools.cache
def registry():
    """The prepared registry of the original's raw files, 1,000 of 1,600 patients held out."""
    return sepsis.prepare(FOLDER / "sepsis" / "raw", valid_patients=1000, seed=1, salt="s")


def everybody():
    """The values of all patients in the order of the raw file: what the original's statistics are from."""
    prepared = registry()
    return pd.concat([prepared.train, prepared.valid]).sort_index()
