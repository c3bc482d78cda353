"""Rebuild the HTML report of a run from the files in its work directory.

creason report --workdir=runs/quickstart
creason report --workdir=runs/quickstart --show_examples
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import app
from shared.config import CONFIG_FILE
from shared.report import run_page, run_words
from shared.storage import files

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags. Not done at import, so that several programs can be imported together."""
    flags.DEFINE_string("workdir", None, "Work directory of a run: the report is made from its files.", required=True)
    flags.DEFINE_bool(
        "show_examples",
        False,
        "Show example completions of real patients too; those of synthetic records are always shown.",
    )


def main() -> None:
    """Write the report, and print the result and the report's path. Raises InputError for a folder that holds no run."""
    workdir = Path(FLAGS.workdir)
    config = run_page.optional_json(workdir / CONFIG_FILE, {})
    page = run_page.write_report(workdir, show_examples=run_page.examples_allowed(config, FLAGS.show_examples))
    if (workdir / run_words.SUMMARY_FILE).is_file():
        print(run_words.terminal_summary(files.read_json(workdir / run_words.SUMMARY_FILE), workdir))
    else:
        print(f"report   {page}\nThe run has not finished, so there is no result yet.")


if __name__ == "__main__":
    define_flags()
    app.run(main)
