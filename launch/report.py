"""Rebuild the HTML report of a run from the files in its work directory.

creason report --workdir=runs/quickstart
creason report --workdir=runs/quickstart --show_examples
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import app
from shared import files, report

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags; apart from importing it, so that several programs can be imported together."""
    flags.DEFINE_string("workdir", None, "Work directory of a run: the report is made from its files.", required=True)
    flags.DEFINE_bool(
        "show_examples", False, "Show example completions of real patients too; those of drawn records always show."
    )


def main() -> None:
    """Write the report, say what came out and where it is. Raises InputError for a folder that holds no run."""
    workdir = Path(FLAGS.workdir)
    config = report.optional_json(workdir / "config.json", {})
    page = report.write_report(workdir, show_examples=report.examples_allowed(config, FLAGS.show_examples))
    if (workdir / report.SUMMARY_FILE).is_file():
        print(report.terminal_summary(files.read_json(workdir / report.SUMMARY_FILE), workdir))
    else:
        print(f"report   {page}\nThe run has not finished, so there is no result yet.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
