"""Train a model with GRPO, and evaluate it before and after; started again, it goes on.

    creason train --config=configs/quickstart.py --workdir=runs/quickstart
    creason train --config=configs/quickstart.py --workdir=runs/other --config.seed=1 --config.grpo.beta=0.0
    creason train --config=configs/smoke.py --workdir=runs/recorded --config.store_trajectories=True
    creason train --config=configs/smoke.py --workdir=runs/again --config.store_trajectories=True --backend=torch \\
        --replay=runs/recorded

A run makes its questions, evaluates the policy, trains it, evaluates it again and writes a report, all in --workdir. Any field of
the config can be set on the command line. The fields are listed below the flags, and in docs/configuration.md with their sources.
torchrun and DeepSpeed start this program as a module: `--module launch.train` (docs/gpu.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from launch import app, backends, config_file
from shared.backend import Backend
from shared.config import RunConfig, check_backend, check_data_given, validate
from shared.errors import InputError
from shared.report import run_words
from shared.runs import dry_run, replay, run
from shared.runs.replay import Recording
from shared.runs.workdir import with_dtype_of, with_dtype_of_workdir
from shared.training.stopping import Stopped

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    config_file.define("config")
    flags.DEFINE_string("workdir", None, "Work directory of the run: all its files are written here.")
    backends.define_flags("Which backend trains and generates.")
    flags.DEFINE_integer("local_rank", 0, "Set by the DeepSpeed launcher: the number of this process on its machine.")
    flags.DEFINE_string(
        "replay", "", "Learn from the rollouts that the run in this work directory stored, and sample none."
    )
    flags.DEFINE_bool(
        "dry_run", False,
        "Check the config and print what the run would do and need (tokens, memory, disk), without running it. Needs no weights.",
    )  # fmt: skip
    flags.DEFINE_bool(
        "measure", False, "With --dry_run: estimate the run's time from a few steps, in a folder that is removed then."
    )
    flags.DEFINE_bool("progress", app.on_terminal(), "Show progress bars (default: on a terminal).")
    flags.DEFINE_bool(
        "show_examples", False, "Show completions in the report, even if they may be about real patients."
    )
    flags.DEFINE_integer(
        "stopped_exit_code",
        0,
        "Exit code after a SIGTERM; not 0 for a scheduler that starts a failed job again.",
    )
    flags.DEFINE_string("wandb_project", "", "Send metrics to this Weights & Biases project; off when empty.")


def main() -> None:
    """Start a run, or go on with one. Raises InputError for a bad flag, config or work directory."""
    if FLAGS.config is None:
        raise InputError("--config is needed, e.g. --config=configs/quickstart.py")
    overrides = config_file.overrides("config")
    check_backend(overrides, FLAGS.backend)
    if FLAGS.measure and not FLAGS.dry_run:
        raise InputError("--measure: goes with --dry_run; a run itself says its times as it goes")
    config = validate(FLAGS.config, overrides)
    check_data_given(overrides, config)
    if FLAGS.dry_run:
        tell(config)
        return
    if not FLAGS.workdir:
        raise InputError("--workdir is needed: the directory that this run may fill, e.g. --workdir=runs/mine")
    workdir = Path(FLAGS.workdir)
    recording = Recording.open(Path(FLAGS.replay)) if FLAGS.replay else None
    if recording is not None:
        recording.check(config)
        config = with_dtype_of(config, recording.config)  # a comparison: in the recording's own number format
    config = with_dtype_of_workdir(config, workdir)
    app.make_folder("workdir", workdir)
    app.goes_on()
    backend = backends.make_backend(config)
    try:
        message = replayed(config, backend, workdir, recording) if recording else trained(config, backend, workdir)
    except Stopped as stopped:
        if backend.process == 0:
            print(stopped)
        sys.exit(FLAGS.stopped_exit_code)
    if backend.process == 0:
        print(message)


def tell(config: RunConfig) -> None:
    """Say what the run would do and need. Raises InputError where it cannot fit."""
    print(run.config_line(config), flush=True)
    workdir = Path(FLAGS.workdir) if FLAGS.workdir else None
    config = config if workdir is None else with_dtype_of_workdir(config, workdir)
    backend = backends.make_backend(config)
    for line in dry_run.lines(config, backend, workdir, measure=FLAGS.measure):
        if backend.process == 0:
            print(line, flush=True)


def trained(config: RunConfig, backend: Backend, workdir: Path) -> str:
    """Do a whole run; returns the summary for the terminal, "" in processes other than 0."""
    summary = run.run(
        config,
        backend,
        workdir,
        progress=FLAGS.progress,
        show_examples=FLAGS.show_examples,
        wandb_project=FLAGS.wandb_project,
    )
    return run_words.terminal_summary(summary, workdir) if summary else ""


def replayed(config: RunConfig, backend: Backend, workdir: Path, recording: Recording) -> str:
    """Do a run that learns from a recorded one; returns the summary for the terminal, "" in processes other than 0."""
    results = replay.run(
        config, backend, workdir, recording, progress=FLAGS.progress, wandb_project=FLAGS.wandb_project
    )
    return replay.terminal_summary(results, workdir) if results else ""


if __name__ == "__main__":
    define_flags()
    app.run(main)
