"""Compare runs in one figure: accuracy and learning curves, or any metrics step by step.

    creason curves --workdirs=runs/quickstart,runs/other --out=runs/seeds.png
    creason curves --workdirs=runs/recorded,runs/again --metrics=loss,reward,grad_norm --out=runs/again.png

The second form draws metrics of runs, which need not be finished: for example of a run and its replays. It also prints how far
the metrics of each run are from those of the first.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import app
from shared.errors import InputError
from shared.report import plots
from shared.report.run_words import SUMMARY_FILE
from shared.report.words import interval, percent, points
from shared.storage import files
from shared.training.metrics_log import METRICS_FILE, differences, differences_table, read_metrics

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_list("workdirs", None, "Work directories of finished runs, separated by commas.", required=True)
    flags.DEFINE_list(
        "metrics", [], "Draw these fields of metrics.jsonl, and print how far the runs differ in each field."
    )
    flags.DEFINE_string("out", None, "File of the figure (PNG).", required=True)


def main() -> None:
    """Write the figure and print the table. Raises InputError for a folder without a finished run."""
    replaced = app.check_result("out", Path(FLAGS.out), files.begins_as_png)
    if FLAGS.metrics:
        lay_over([Path(name) for name in FLAGS.workdirs], FLAGS.metrics)
        print(f"figure   {FLAGS.out}{replaced}")
        return
    runs = {}
    for name in FLAGS.workdirs:
        workdir = Path(name)
        summary = files.read_json(workdir / SUMMARY_FILE)
        if not isinstance(summary, dict):
            raise InputError(f"{workdir / SUMMARY_FILE}: not what a run writes there; give a run's work directory")
        if not (summary.get("before") and summary.get("after")):
            raise InputError(f"{workdir}: its run has not finished; run it to its end first")
        label = f"{summary['environment']['backend']}, seed {summary['seed']}"
        if label in runs:
            raise InputError(f"--workdirs: {workdir} is a second run of {label}; give each run once")
        runs[label] = summary, read_metrics(workdir / METRICS_FILE)
        if "reward" not in runs[label][1]:
            raise InputError(f"{workdir / METRICS_FILE}: no step of it has a reward; give a run's work directory")
    plots.write_png(plots.runs_figure(runs), Path(FLAGS.out))
    print(f"{'run':<16}{'before':>8}{'after':>8}{'Bayes':>8}  {'gain, 95% interval':<34}{'of the distance':>15}")
    for label, (summary, _) in runs.items():
        before, after, gain = summary["before"]["accuracy"], summary["after"]["accuracy"], summary["gain"]
        bayes = summary.get("bayes_accuracy")
        closed = "" if bayes is None else percent((after - before) / (bayes - before))
        change = f"{points(gain['value'])} ({interval(gain['ci'], points)})"
        bayes_text = "" if bayes is None else percent(bayes)
        print(f"{label:<16}{percent(before):>8}{percent(after):>8}{bayes_text:>8}  {change:<34}{closed:>15}")
    print(f"\nfigure   {FLAGS.out}{replaced}")


def lay_over(workdirs: list[Path], names: list[str]) -> None:
    """Draw the metrics `names` of all runs in one figure, and print the differences of each run from the first one.

    Raises InputError for fewer than two runs, and for a metric that a run does not have.
    """
    runs = {str(workdir): read_metrics(workdir / METRICS_FILE) for workdir in workdirs}
    if len(runs) < 2 or len(runs) < len(workdirs):
        raise InputError("--workdirs: give two runs or more, each once, to lay over each other")
    for workdir, metrics in runs.items():
        missing = [name for name in names if name not in metrics.columns]
        if missing:
            raise InputError(f"--metrics: {workdir} has no {missing[0]}; it has {', '.join(map(str, metrics.columns))}")
    first, *others = runs
    differences_of = {label: differences(runs[first], runs[label]) for label in others}
    plots.write_png(plots.overlay_figure(runs, names), Path(FLAGS.out))
    for label, rows in differences_of.items():
        print(f"{label} against {first}\n\n{differences_table(rows.to_dict('records'))}\n")


if __name__ == "__main__":
    define_flags()
    app.run(main)
