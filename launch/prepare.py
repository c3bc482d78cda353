"""Raw registry files to a prepared registry and question files.

python -m launch.prepare --cohort=synthetic|sepsis|mimic3 --source=DIR --out=DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

from absl import flags

from launch import app, prepare_mimic3
from shared.config import DataConfig
from shared.preparation import prepare, summary

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Define this program's flags."""
    default = DataConfig()
    flags.DEFINE_enum("cohort", default.cohort, ["synthetic", "sepsis", "mimic3"], "Which registry.")
    flags.DEFINE_string("source", default.source, "Folder of the raw files; without it, synthetic is drawn.")
    flags.DEFINE_string("out", None, "Folder for the prepared registry and the questions.", required=True)
    flags.DEFINE_integer("patients", default.patients, "Patients to draw, for synthetic only.")
    flags.DEFINE_integer("valid_patients", default.valid_patients, "Patients held out for validation.")
    flags.DEFINE_integer("train_questions", default.train_questions, "Questions about the other patients.")
    flags.DEFINE_integer("valid_questions", default.valid_questions, "Questions about those held out.")
    flags.DEFINE_integer("num_choices", default.num_choices, "Options of a question, 2 to 5.")
    flags.DEFINE_float("difficulty", default.difficulty, "Standard deviations between numeric options.")
    flags.DEFINE_float("mi_cutoff", default.mi_cutoff, "Features that share more nats with the masked one are hidden.")
    flags.DEFINE_integer("core_features", default.core_features, "Keep only the most informative; 0: all features.")
    flags.DEFINE_enum("option_order", default.option_order, ["shuffled", "sorted"], "Order of the options.")
    flags.DEFINE_enum("core_kind", default.core_kind, ["any", "category", "number"], "Kind of the features kept.")
    flags.DEFINE_integer(
        "context_features", default.context_features, "Features shown, at random; 0: the whole record."
    )
    flags.DEFINE_integer("seed", 42, "Decides the split and every question.")
    flags.DEFINE_string("salt", "", "Goes into patients' pseudonyms; random for a real cohort if left out.")
    flags.DEFINE_bool("progress", sys.stderr.isatty(), "Show progress bars (default: on a terminal).")
    prepare_mimic3.define_flags()


def main() -> None:
    """Prepare, then say what was written. Raises InputError for a bad flag or raw file."""
    prepare_mimic3.check_flags(FLAGS.cohort)
    if FLAGS.cohort == prepare_mimic3.COHORT:
        app.make_folder("out", Path(FLAGS.out))
        print(prepare_mimic3.main(Path(FLAGS.out)))
        return
    data = DataConfig(
        cohort=FLAGS.cohort,
        source=FLAGS.source,
        patients=FLAGS.patients,
        valid_patients=FLAGS.valid_patients,
        train_questions=FLAGS.train_questions,
        valid_questions=FLAGS.valid_questions,
        num_choices=FLAGS.num_choices,
        difficulty=FLAGS.difficulty,
        mi_cutoff=FLAGS.mi_cutoff,
        core_features=FLAGS.core_features,
        core_kind=FLAGS.core_kind,
        option_order=FLAGS.option_order,
        context_features=FLAGS.context_features,
    )
    out = Path(FLAGS.out)
    app.make_folder("out", out)
    prepare(data, out, seed=FLAGS.seed, progress=FLAGS.progress, salt=FLAGS.salt or None)
    print(summary(out))


if __name__ == "__main__":
    define_flags()
    app.run(main)
