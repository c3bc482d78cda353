"""MIMIC-III's preparation at growing sizes: CPU seconds, rows per second and peak memory of every stage, and an estimate for the
real tables that assumes costs in proportion to rows.

    python -m benchmarks.mimic3 --multiples=1,4,16,64 --folder=runs/mimic3

benchmarks/mimic3_tables.py draws random tables. Multiple 1 has 120 stays with about 1,260 rows of CHARTEVENTS each. The real
tables have 61,532 stays and 330,712,483 rows of CHARTEVENTS: that is multiple 513 by stays, and about 2,180 by those rows. Each
size runs in a process of its own, because peak memory is measured for a whole process.
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
BY_CHARTED = ("charted", *FROM_CHARTED)  # stages whose work grows with CHARTEVENTS; the others grow with stays

GROWING = ("charted", "ce", "labs_le", "uo", "fluid_mv", "mechvent", "first_windows", "stays", "second_windows",
           "cohort", "measurement", "mortality")  # fmt: skip


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_list("multiples", ["1", "4", "16", "64"], "Sizes, in units of 120 stays.")
    flags.DEFINE_string(
        "folder", None, "Folder for tables and results; tables that exist are used again.", required=True
    )
    flags.DEFINE_float("memory_limit", 2.0, "Memory limit in gigabytes.", lower_bound=1.0)
    flags.DEFINE_integer("threads", 1, "Threads of DuckDB.", lower_bound=1)
    flags.DEFINE_enum("ties", "stable", ["stable", "introsort"], "As in launch.prepare.")


class Watched(Stages):
    """Stages that record CPU seconds and peak resident memory of each stage (Linux only)."""

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
    """Draw the tables of one size, unless they exist."""
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
    """Measure every size and print the figures."""
    folder, multiples = Path(FLAGS.folder), [int(word) for word in FLAGS.multiples]
    folder.mkdir(parents=True, exist_ok=True)
    memory = int(FLAGS.memory_limit * GIGABYTE)
    figures_of_size = {}
    for multiple in multiples:
        in_new_process(draw, folder, multiple)
        figures_of_size[multiple] = in_new_process(measure, folder, multiple, memory, FLAGS.threads, FLAGS.ties)
        report(multiple, figures_of_size[multiple], memory)
    growth(figures_of_size)


def in_new_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call in a new process. In this one, the peak memory could be that of an earlier call."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(call, *arguments).result()


def report(multiple: int, figures: dict[str, dict[str, float]], memory: int) -> None:
    """Print one line for each stage of one size, with an estimate of the CPU time for the real tables."""
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
    """The rows to which a stage's work is proportional: those that it writes, or for some stages those that it reads."""
    read = {"charted": figures["tables"]["chartevents"], "stays": figures["first_windows"]["rows"]}
    return int(read.get(name, figures[name]["rows"]))


def growth(figures_of_size: dict[int, dict[str, dict[str, float]]]) -> None:
    """Print CPU milliseconds for each thousand rows at every size. They are constant if the cost is linear."""
    print("\nCPU milliseconds for each 1,000 rows")
    print(f"{'stage':<16}" + "".join(f"{multiple:>10}" for multiple in figures_of_size))
    for name in GROWING:
        costs = [1e6 * figures[name]["cpu"] / max(worked_on(name, figures), 1) for figures in figures_of_size.values()]
        print(f"{name:<16}" + "".join(f"{cost:>10.2f}" for cost in costs))


if __name__ == "__main__":
    define_flags()
    app.run(main)
