"""The original's sepsis data, read once for all tests of a process."""

import functools

import pandas as pd

from shared.cohorts import sepsis
from tests.support.golden_registry import FOLDER, patients


@functools.cache
def registry():
    """The prepared registry of the original's raw files, as many patients held out as there."""
    return sepsis.prepare(FOLDER / "sepsis" / "raw", valid_patients=patients("sepsis")["valid"], seed=1, salt="s")


def everybody():
    """The values of all patients in the order of the raw file: what the original's statistics are from."""
    prepared = registry()
    return pd.concat([prepared.train, prepared.valid]).sort_index()
