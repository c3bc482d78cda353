"""The original's MIMIC-III outputs on synthetic tables, and ours from the same input, made once for all tests."""

import functools
import json
import tempfile
from pathlib import Path

import pandas as pd

from shared.cohorts.mimic3.cohort import Options
from shared.preparation import mimic3
from shared.preparation.mimic3 import Settings
from tests.support import golden_folder
from tests.support.golden_folder import GOLDEN

FOLDER = GOLDEN / "mimic3"
needs_golden = golden_folder.needs("mimic3")
FINAL = "sepsis_final_data_RAW_withTimes.csv.gz"


@functools.cache
def prepared(ties="stable", **settings) -> Path:
    """A folder with everything made from the golden input."""
    out = Path(tempfile.mkdtemp(prefix="mimic3-"))
    options = Settings(options=Options(ties=ties), salt="s", threads=1, **settings)
    mimic3.prepare(FOLDER / "input", out, options, progress=False)
    return out


@functools.cache
def meta() -> dict[str, int]:
    """How many stays the golden questions are about at most, and how many were left out."""
    return dict(json.loads((FOLDER / "questions" / "meta.json").read_text()))


def as_the_original() -> Path:
    """What `prepared` makes with the original's ties and as many stays asked about."""
    sizes = {name: meta()[name] for name in ("measurement_stays", "mortality_stays")}
    return prepared("introsort", **sizes)


def golden_files(folder, begin=""):
    """A parameter for each file found there whose name begins so: its name."""
    names = sorted(path.name for path in (FOLDER / folder).glob(f"{begin}*.gz"))
    return golden_folder.parameters(names, FOLDER / folder, lambda _, name: name)


def read(folder, name, **options):
    """A golden table."""
    return pd.read_csv(FOLDER / folder / name, **options)
