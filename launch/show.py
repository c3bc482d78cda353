"""Show whole questions with their right answers, or the answers that a run generated.

    creason show --questions=prepared/questions/valid.parquet --n=2 --feature=lactate
    creason show --workdir=runs/quickstart
    creason show --workdir=runs/recorded --step=0 --n=1

The output may contain records of real patients: nothing of it is logged or stored. For a run it shows the examples of its
evaluations, before and after training, and, if the run recorded its steps (--config.store_trajectories), completions with their
rewards. It also shows a folder of `creason evaluate --completions`. Records are shown whole, as wide as the terminal.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from launch import app, usage
from shared.errors import InputError
from shared.questions.record import read_questions
from shared.runs import showing
from shared.runs.showing import Selection

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    flags.DEFINE_list("questions", [], "Question files (Parquet), separated by commas; addresses such as gs:// too.")
    flags.DEFINE_string("workdir", "", "Work directory of a run, or --out of an evaluation with --completions.")
    flags.DEFINE_integer("step", None, "Show what the run generated at this step, from 0 (default: the newest recorded).",
                         lower_bound=0)  # fmt: skip
    flags.DEFINE_integer("n", 3, "The most questions to show.", lower_bound=1)
    flags.DEFINE_string("feature", "", "Only questions that ask for this feature (the name of its column).")
    flags.DEFINE_string("section", "", "Only questions from sections whose name contains this text.")
    flags.DEFINE_integer("seed", 0, "Seed for drawing the questions to show; another seed shows others.")


def main() -> None:
    """Print the questions or answers. Raises InputError for a bad flag or file, and if there is nothing to show."""
    if bool(FLAGS.questions) == bool(FLAGS.workdir):
        raise InputError("give --questions=FILE or --workdir=RUN, one of the two")
    selection = Selection(count=FLAGS.n, feature=FLAGS.feature, section=FLAGS.section, seed=FLAGS.seed)
    if FLAGS.workdir:
        from shared.runs import showing_runs  # imported here, because it loads tokenizers, which questions do not need

        for line in showing_runs.lines(Path(FLAGS.workdir), selection, step=FLAGS.step, width=usage.width()):
            print(line)
        return
    if FLAGS.step is not None:
        raise InputError("--step: goes with --workdir; questions have no steps")
    questions = [question for path in FLAGS.questions for question in read_questions(path)]
    chosen, fitting = selection.of(questions), selection.fitting(questions)
    for number, question in enumerate(chosen, 1):
        print("\n".join(["", showing.numbered("question", number, len(chosen), usage.width()),
                         *showing.question_lines(question, usage.width())]))  # fmt: skip
    if len(chosen) < len(fitting):
        print(f"\nshown {len(chosen)} of {len(fitting):,} questions; --n shows more, --seed others")


if __name__ == "__main__":
    define_flags()
    app.run(main)
