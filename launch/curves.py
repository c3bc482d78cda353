"""Lay finished runs over each other: a figure of accuracy and learning curves, and a table.

python -m launch.curves --workdirs=runs/study-1,runs/study-2,runs/study-3 --out=runs/study.png
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import app
from shared import files, plots
from shared.errors import InputError
from shared.metrics import METRICS_FILE, read_metrics
from shared.report import SUMMARY_FILE, interval, percent, points

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_list("workdirs", None, "Work directories of finished runs, separated by commas.", required=True)
    flags.DEFINE_string("out", None, "The figure, a PNG file.", required=True)


def main() -> None:
    """Write the figure and print the table. Raises InputError for a folder that holds no finished run."""
    runs = {}
    for name in FLAGS.workdirs:
        workdir = Path(name)
        summary = files.read_json(workdir / SUMMARY_FILE)
        if not (summary.get("before") and summary.get("after")):
            raise InputError(f"{workdir}: its run has not finished; run it to its end first")
        label = f"{summary['environment']['backend']}, seed {summary['seed']}"
        if label in runs:
            raise InputError(f"--workdirs: {workdir} is a second run of {label}; give each run once")
        runs[label] = summary, read_metrics(workdir / METRICS_FILE)
    plots.write_png(plots.runs_figure(runs), Path(FLAGS.out))
    print(f"{'run':<16}{'before':>8}{'after':>8}{'Bayes':>8}  {'gain, 95% interval':<34}{'of the distance':>15}")
    for label, (summary, _) in runs.items():
        before, after, gain = summary["before"]["accuracy"], summary["after"]["accuracy"], summary["gain"]
        bayes = summary.get("bayes_accuracy")
        closed = "" if bayes is None else percent((after - before) / (bayes - before))
        change = f"{points(gain['value'])} ({interval(gain['ci'], points)})"
        known = "" if bayes is None else percent(bayes)
        print(f"{label:<16}{percent(before):>8}{percent(after):>8}{known:>8}  {change:<34}{closed:>15}")
    print(f"\nfigure   {FLAGS.out}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
