"""MIMIC-III's preparation at growing sizes: CPU seconds, rows a second and peak memory of every stage, and what the real
tables would take if cost goes on growing in proportion to rows.

    python -m benchmarks.mimic3 --multiples=1,4,16,64 --folder=runs/mimic3

Tables are drawn at random by benchmarks/mimic3_tables.py: 120 stays at multiple 1, with about 1,260 rows of CHARTEVENTS
each. The real tables have 61,532 stays and 330,712,483 such rows: multiple 513 by stays, about 2,180 by those rows. Each
size runs in a process of its own, which is what a peak of memory means.
"""

from __future__ import annotations

import multiprocessing
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

from absl import app, flags

from benchmarks import mimic3_tables
from shared.cohorts.mimic3.extracts import FROM_CHARTED
from shared.cohorts.mimic3.options import GIGABYTE, Mimic3Config
from shared.cohorts.mimic3.registry import read
from shared.cohorts.mimic3.stages import Done, Stages
from shared.questions.record import Question, write_questions
from shared.registry.build import build
from shared.storage import files
from shared.tasks.catalogue import task

FLAGS = flags.FLAGS
T = TypeVar("T")
Ties = Literal["stable", "introsort"]
EVERY = 10**9  # more questions than there are
ROWS = "rows.json"  # of each table, beside them
REAL_STAYS, REAL_CHARTED = 61_532, 330_712_483
BY_CHARTED = ("charted", *FROM_CHARTED)  # stages whose work is set by CHARTEVENTS; all others go by stays

GROWING = ("charted", "ce", "labs_le", "uo", "fluid_mv", "mechvent", "first_windows", "stays", "second_windows",
           "cohort", "measurement", "mortality")  # fmt: skip


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_list("multiples", ["1", "4", "16", "64"], "Sizes, in units of 120 stays.")
    flags.DEFINE_string("folder", None, "Where tables and results go; tables drawn before are used.", required=True)
    flags.DEFINE_float("memory_limit", 2.0, "Gigabytes.", lower_bound=1.0)
    flags.DEFINE_integer("threads", 1, "Threads of DuckDB.", lower_bound=1)
    flags.DEFINE_enum("ties", "stable", ["stable", "introsort"], "As in launch.prepare.")


class Watched(Stages):
    """Stages that note CPU seconds and the peak of resident memory of each (Linux only)."""

    figures: dict[str, dict[str, float]] = {}  # noqa: RUF012 (one process, one run)

    def run(self, name: str, key: str, write: Any, **options: Any) -> Done:
        """As in Stages."""
        return noted(name, lambda: super(Watched, self).run(name, key, write, **options), lambda done: done.rows)


def noted(name: str, call: Callable[[], T], rows: Callable[[T], int]) -> T:
    """What the call returns; notes its rows, CPU seconds and peak of memory as those of a stage."""
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    begin, started = time.process_time(), time.perf_counter()
    done = call()
    seconds, wall = time.process_time() - begin, time.perf_counter() - started
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    Watched.figures[name] = {"rows": rows(done), "cpu": seconds, "wall": wall, "peak": peak}
    return done


def draw(folder: Path, multiple: int) -> None:
    """Draw one size's tables, unless they are there."""
    source = folder / f"tables_{multiple}"
    if not (source / ROWS).is_file():
        files.write_json(source / ROWS, mimic3_tables.write(source, mimic3_tables.STAYS * multiple))


def measure(folder: Path, multiple: int, memory: int, threads: int, ties: Ties) -> dict[str, dict[str, float]]:
    """Prepare one size from nothing; figures by stage."""
    source, out = folder / f"tables_{multiple}", folder / f"out_{multiple}"
    files.remove(out)
    options = Mimic3Config(ties=ties, memory_limit=f"{memory // 10**6}MB", threads=threads)
    raw = read(source, options=options, cache=out, make_stages=Watched)
    registry = build(raw, valid_patients=1, seed=1, salt="s")
    for name in ("measurement", "mortality"):

        def make(name: str = name) -> list[Question]:
            made = task(name).questions(registry, "train", EVERY, {"stays": options.stays, "ties": ties}, seed=1)
            write_questions(out / f"{name}.parquet", made)
            return made

        noted(name, make, len)
    shutil.rmtree(out)
    return Watched.figures | {"tables": files.read_json(source / ROWS)}


def main(_: list[str]) -> None:
    """Measure every size and print what was found."""
    folder, multiples = Path(FLAGS.folder), [int(word) for word in FLAGS.multiples]
    folder.mkdir(parents=True, exist_ok=True)
    memory = int(FLAGS.memory_limit * GIGABYTE)
    found = {}
    for multiple in multiples:
        apart(draw, folder, multiple)
        found[multiple] = apart(measure, folder, multiple, memory, FLAGS.threads, FLAGS.ties)
        report(multiple, found[multiple], memory)
    growth(found)


def apart(call: Callable[..., Any], *arguments: Any) -> Any:
    """The call in a fresh process: memory once taken is rarely given back, and a peak would be an earlier one's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def report(multiple: int, figures: dict[str, dict[str, float]], memory: int) -> None:
    """One line for each stage of one size, and the real tables' CPU time in proportion."""
    rows = figures["tables"]
    by_charted, by_stays = REAL_CHARTED / rows["chartevents"], REAL_STAYS / rows["icustays"]
    print(f"\nmultiple {multiple}: {rows['icustays']:,} stays, {rows['chartevents']:,} rows of CHARTEVENTS")
    print(f"{'stage':<16}{'rows':>12}{'CPU s':>9}{'wall s':>9}{'rows/CPU s':>13}{'peak MB':>9}{'real, CPU min':>15}")
    stages = {name: stage for name, stage in figures.items() if name != "tables"}
    total, real = 0.0, 0.0
    for name, stage in stages.items():
        scaled = stage["cpu"] * (by_charted if name in BY_CHARTED else by_stays)
        worked = worked_on(name, figures)
        total, real = total + stage["cpu"], real + scaled
        print(f"{name:<16}{worked:>12,}{stage['cpu']:>9.2f}{stage['wall']:>9.2f}{worked / max(stage['cpu'], 1e-3):>13,.0f}"
              f"{stage['peak'] / 1e6:>9.0f}{scaled / 60:>15.1f}")  # fmt: skip
    peak = max(stage["peak"] for stage in stages.values())
    print(f"{'all':<16}{'':>12}{total:>9.2f}{'':>22}{peak / 1e6:>9.0f}{real / 60:>15.1f}")
    print(f"peak memory {peak / 1e9:.2f} GB, limit {memory / 1e9:.2f} GB", flush=True)


def worked_on(name: str, figures: dict[str, dict[str, float]]) -> int:
    """Rows that a stage's work is in proportion to: those it makes, unless it makes something else of what it reads."""
    read = {"charted": figures["tables"]["chartevents"], "stays": figures["first_windows"]["rows"]}
    return int(read.get(name, figures[name]["rows"]))


def growth(found: dict[int, dict[str, dict[str, float]]]) -> None:
    """CPU seconds for each thousand rows of every size: constant where cost is linear."""
    print("\nCPU milliseconds for each 1,000 rows")
    print(f"{'stage':<16}" + "".join(f"{multiple:>10}" for multiple in found))
    for name in GROWING:
        costs = [1e6 * figures[name]["cpu"] / max(worked_on(name, figures), 1) for figures in found.values()]
        print(f"{name:<16}" + "".join(f"{cost:>10.2f}" for cost in costs))


if __name__ == "__main__":
    define_flags()
    app.run(main)
