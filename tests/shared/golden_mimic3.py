"""The original's MIMIC-III outputs on synthetic tables, and ours from the same input, made once for all tests."""

import functools
import os
import tempfile
from pathlib import Path

import pandas as pd
import pytest

from shared import preparation_mimic3
from shared.cohorts.mimic3.cohort import Options
from shared.preparation_mimic3 import Settings

GOLDEN = Path(os.environ.get("CREASON_GOLDEN", Path(__file__).resolve().parents[2].parent / "shared" / "golden"))
FOLDER = GOLDEN / "mimic3"
needs_golden = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no golden data at {FOLDER}")
FINAL = "sepsis_final_data_RAW_withTimes.csv.gz"


@functools.cache
def prepared(ties="stable", **settings) -> Path:
    """A folder with everything made from the golden input."""
    out = Path(tempfile.mkdtemp(prefix="mimic3-"))
    options = Settings(options=Options(ties=ties), salt="s", threads=1, **settings)
    preparation_mimic3.prepare(FOLDER / "input", out, options, progress=False)
    return out


def golden_files(folder):
    """The files found there, by name."""
    return sorted(path.name for path in (FOLDER / folder).glob("*.gz"))


def read(folder, name, **options):
    """A golden table."""
    return pd.read_csv(FOLDER / folder / name, **options)
