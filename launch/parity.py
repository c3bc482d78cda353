"""Run the same batches through both backends, and show how far their results differ.

    creason parity --config=configs/parity.py --workdir=runs/parity
    creason parity --config=configs/parity.py --workdir=runs/fault --rungs=optimizer --inject=eps_inside_root

Each check gives the difference between the backends, and the difference of each from float64. The exit code is 0 if every check
is within its bound, else 1; then the worst check and the one to look at first are named. With --inject, a known fault is put into
the JAX side, to show that the suite finds it; then the exit code is 1.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from absl import flags

from launch import app, config_file
from shared.errors import InputError
from shared.storage import files

FLAGS = flags.FLAGS
EIGHT_DEVICES = "--xla_force_host_platform_device_count=8"


def define_flags() -> None:
    """Define this program's flags."""
    config_file.define("config", sections=None, documented=_documented)
    flags.DEFINE_string("workdir", None, "Directory for models, table, parity.json and report.")
    flags.DEFINE_list("rungs", None, "Rungs (groups of checks) to run (default: those of the config, else all).")
    flags.DEFINE_list("families", None, "Model families to check (default: those of the config, else all).")
    flags.DEFINE_list("dtypes", None, "Compute dtypes: float32, bfloat16 (default: those of the config, else both).")
    flags.DEFINE_enum(
        "device", None, ["cpu", "cuda"], "The device on which both backends compute (default: that of the config)."
    )
    flags.DEFINE_string("inject", "", "Fault to put into the JAX side, e.g. layer_swapped; see parity/faults.py.")
    flags.DEFINE_bool("progress", app.on_terminal(), "Show a progress bar (default: on a terminal).")


def main() -> None:
    """Run the checks and write the report. Raises InputError for a bad flag or config."""
    if FLAGS.config is None:
        raise InputError("--config is needed: --config=configs/parity.py")
    if not FLAGS.workdir:
        raise InputError("--workdir is needed: the directory for models and report, e.g. --workdir=runs/parity")
    chosen = ("rungs", "families", "dtypes", "device")
    overrides = {name: FLAGS[name].value for name in chosen if FLAGS[name].value is not None}
    values = FLAGS.config.to_dict() | overrides
    if values.get("device") != "cuda":
        # Set before jax is imported: eight CPU devices, which one rung needs.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {EIGHT_DEVICES}".strip()
    workdir = Path(FLAGS.workdir)
    app.make_folder("workdir", workdir)

    from creason_torch import zero
    from parity import report, runner
    from parity.config import validate

    app.ENDS.append(zero.end_process)

    config = validate(values)
    files.remove(workdir / "models")
    checks, world = runner.run(config, workdir, inject=FLAGS.inject, progress=FLAGS.progress)
    report.write(workdir, checks, world, inject=FLAGS.inject)
    print(report.table(checks))
    print(f"\n{report.verdict(checks)}\nreport   {workdir / report.REPORT_FILE}")
    if not all(check.passed for check in checks):
        sys.exit(app.EXIT_STOPPED)


def _documented() -> type:
    from parity.config import ParityConfig  # imported here, because it loads jax, and `main` chooses the devices before

    return ParityConfig


if __name__ == "__main__":
    define_flags()
    app.run(main)
