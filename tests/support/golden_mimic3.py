"""The original's MIMIC-III outputs on synthetic tables, and ours from the same input, made once for all tests."""

import functools
import json
import tempfile
from pathlib import Path

import pandas as pd

from shared.cohorts.mimic3.options import Mimic3Config
from shared.config import DataConfig
from shared.preparation.prepare import prepare
from shared.questions.record import Question, read_questions
from shared.registry.patients import pseudonym
from tests.support import golden_folder
from tests.support.golden_folder import GOLDEN

FOLDER = GOLDEN / "mimic3"
needs_golden = golden_folder.needs("mimic3")
FINAL = "sepsis_final_data_RAW_withTimes.csv.gz"


VALID_PATIENTS = 10


@functools.cache
def cache(ties: str) -> Path:
    """A folder for the intermediate files of preparations with these ties."""
    return Path(tempfile.mkdtemp(prefix=f"mimic3-{ties}-"))


@functools.cache
def prepared(task="measurement", ties="stable") -> Path:
    """A folder with everything made from the golden input, as many stays asked about as the original did."""
    out = Path(tempfile.mkdtemp(prefix="mimic3-"))
    own = Mimic3Config(ties=ties, threads=1, stays=meta()[f"{task}_stays"], cache=str(cache(ties)))
    data = DataConfig(
        cohort="mimic3",
        task=task,
        source=str(FOLDER / "input"),
        valid_patients=VALID_PATIENTS,
        valid_questions=10_000,
        mimic3=own,
    )
    prepare(data, out, seed=1, progress=False, salt="s")
    return out


@functools.cache
def meta() -> dict[str, int]:
    """How many stays the golden questions are about at most, and how many were left out."""
    return dict(json.loads((FOLDER / "questions" / "meta.json").read_text()))


def final_table(out: Path) -> pd.DataFrame:
    """The final table of a prepared folder as the original has it."""
    table = pd.read_parquet(out / "registry" / "timeline.parquet").reset_index(drop=True)
    return table[[name for name in table.columns if name != "m:died_in_hosp"]]


def both_splits(out: Path) -> list[Question]:
    """The questions of both splits together, in the order of the final table's stays, as the original has them."""
    made = [q for split in ("train", "valid") for q in read_questions(out / "questions" / f"{split}.parquet")]
    stays = final_table(out)["m:icustayid"].astype(int).unique()
    place = {pseudonym("s", str(stay)): number for number, stay in enumerate(stays)}
    return sorted(made, key=lambda question: place[question.id.split("-")[2]])


def golden_files(folder, begin=""):
    """A parameter for each file found there whose name begins so: its name."""
    names = sorted(path.name for path in (FOLDER / folder).glob(f"{begin}*.gz"))
    return golden_folder.parameters(names, FOLDER / folder, lambda _, name: name)


def read(folder, name, **options):
    """A golden table."""
    return pd.read_csv(FOLDER / folder / name, **options)
