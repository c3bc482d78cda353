"""The first ten minutes of a new user: runs the README's commands from a table to an evaluated model, exactly as written there.

python -m benchmarks.first_minutes --table=whas500.csv --model=DIR

Prints the seconds that each command takes. The table is a CSV file with one row for each patient; the model is a Hugging Face
directory. With --whas500 the table is WHAS500 (500 patients after a heart attack), read from the wheel of scikit-survival, which
is downloaded from the package index.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pandas as pd
from absl import app, flags
from scipy.io import arff

REPOSITORY = Path(__file__).resolve().parents[1]
HEADING = "## From your table to an evaluated model"
WHEEL, MEMBER = "scikit-survival", "sksurv/datasets/data/whas500.arff"

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Step:
    """A command of the README, the seconds that it took, and the text that it printed."""

    command: str
    seconds: float
    printed: str


def commands() -> list[str]:
    """The `creason` commands of the README's section, in order; a line that ends in a backslash continues on the next line."""
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.split(HEADING, 1)[1].split("\n## ", 1)[0]
    lines = section.replace("\\\n", " ").splitlines()
    return [" ".join(line.split()) for line in lines if line.startswith("    creason ")]


def walk(folder: Path, table: Path, model: Path) -> list[Step]:
    """Run the commands in `folder`, with the folders `my-registry` and `my-model` that the README names.

    Raises SystemExit at the first command that fails.
    """
    (folder / "my-registry").mkdir(parents=True)
    shutil.copy(table, folder / "my-registry" / "data.csv")
    (folder / "my-model").symlink_to(model.resolve())
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    steps = []
    for command in commands():
        words = [sys.executable, "-m", "launch", *shlex.split(command)[1:]]
        begin = time.perf_counter()
        ended = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise SystemExit(f"{command}: exit code {ended.returncode}\n{ended.stderr}")
        steps.append(Step(command, time.perf_counter() - begin, ended.stdout))
    return steps


def whas500(folder: Path) -> Path | None:
    """Write WHAS500 as a CSV file in `folder`, with a column `id`; None if the wheel cannot be downloaded."""
    ask = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(ask, capture_output=True, timeout=600, check=False).returncode:
        return None
    [wheel] = folder.glob("scikit_survival-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        source = Path(archive.extract(MEMBER, folder))
    records, _ = arff.loadarff(source)
    frame = pd.DataFrame(records)
    codes = frame.select_dtypes(object).columns
    frame[codes] = frame[codes].apply(lambda column: column.str.decode("ascii"))
    frame.insert(0, "id", range(1, len(frame) + 1))
    frame.to_csv(folder / "whas500.csv", index=False)
    return folder / "whas500.csv"


def main(_: list[str]) -> None:
    """Run the commands and print the seconds of each."""
    with tempfile.TemporaryDirectory() as temporary:
        table = whas500(Path(temporary)) if FLAGS.whas500 else Path(FLAGS.table)
        if table is None:
            raise SystemExit(f"no package index gives {WHEEL}; give a table of your own with --table")
        steps = walk(Path(temporary) / "walk", table, Path(FLAGS.model))
    for step in steps:
        print(f"{step.seconds:7.1f} s  {step.command}")
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"seconds": [round(step.seconds, 1) for step in steps], "machine": machine}))


if __name__ == "__main__":
    flags.DEFINE_string("table", "", "A CSV file with one row for each patient.")
    flags.DEFINE_bool("whas500", False, "Use WHAS500 instead of --table.")
    flags.DEFINE_string("model", None, "A Hugging Face model directory.", required=True)
    app.run(main)
