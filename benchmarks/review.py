"""The server of the review page: under load, and killed while raters click.

python -m benchmarks.review --kills=50 --raters=20 --cases=100

Prints one JSON line: the confirmed and the lost choices in both tests, and how quickly choices are confirmed.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from pathlib import Path

from absl import app, flags

from benchmarks import review_load

FLAGS = flags.FLAGS
flags.DEFINE_integer("kills", 50, "How often the server is killed.")
flags.DEFINE_integer("raters", 20, "Number of raters at the same time.")
flags.DEFINE_integer("cases", 100, "Number of cases of each rater.")
flags.DEFINE_integer("seed", 1, "Seed of the random times of the kills and of the clicks.")
flags.DEFINE_string(
    "folder", None, "Folder for the files, on the disk to measure; default: the system's temporary folder."
)


def main(_: list[str]) -> None:
    """Measure, and print the JSON line."""
    raters = [f"r{number:02}" for number in range(1, FLAGS.raters + 1)]
    with tempfile.TemporaryDirectory(dir=FLAGS.folder) as folder:
        folders = {name: Path(folder) / name for name in ("killed", "together")}
        reviews = {
            name: review_load.write_review(review_folder, raters, FLAGS.cases)
            for name, review_folder in folders.items()
        }
        killed = review_load.lost_after_kills(reviews["killed"], raters[:4], FLAGS.cases, FLAGS.kills, FLAGS.seed)
        together = review_load.all_at_once(reviews["together"], raters, FLAGS.cases)
    machine = {"cores": os.cpu_count(), "python": platform.python_version()}
    print(json.dumps({"killed": killed, "together": together, "machine": machine}))


if __name__ == "__main__":
    app.run(main)
