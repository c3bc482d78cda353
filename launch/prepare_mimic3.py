"""The part of `creason prepare` that is only for MIMIC-III: its flags and its preparation."""

from __future__ import annotations

import os
import re
from pathlib import Path

from absl import flags

from shared.cohorts.mimic3 import fixes
from shared.cohorts.mimic3.cohort import Options
from shared.cohorts.mimic3.neighbours import TIES
from shared.errors import InputError
from shared.preparation.mimic3 import Settings, prepare

FLAGS = flags.FLAGS
COHORT = "mimic3"
ALSO = ("cohort", "source", "out", "salt", "progress", "show")  # flags of other cohorts that this cohort uses too
OWN = ("fix", "ties", "csv", "measurement_stays", "mortality_stays", "memory_limit", "threads")
UNITS = {"MB": 10**6, "GB": 10**9, "MIB": 2**20, "GIB": 2**30}


def define_flags() -> None:
    """Define the flags that only this cohort has."""
    settings = Settings()
    flags.DEFINE_string(
        "fix", "", f"mimic3: faults of the original to correct: all, or names from {', '.join(fixes.FIXES)}."
    )
    flags.DEFINE_enum(
        "ties",
        "stable",
        TIES,
        "mimic3: which row to take among equally near ones: the first, or the one that the original takes (its numbers).",
    )
    flags.DEFINE_bool("csv", False, "mimic3: also write the final table as a CSV file, as the original does.")
    flags.DEFINE_integer(
        "measurement_stays",
        settings.measurement_stays,
        "mimic3: how many stays the questions on measurements are about.",
        lower_bound=1,
    )
    flags.DEFINE_integer(
        "mortality_stays",
        settings.mortality_stays,
        "mimic3: how many stays the questions on mortality are about.",
        lower_bound=1,
    )
    flags.DEFINE_string("memory_limit", "4GB", "mimic3: most memory to use; what does not fit is kept on disk.")
    flags.DEFINE_integer("threads", os.cpu_count() or 1, "mimic3: threads that read the files.", lower_bound=1)


def check_flags(cohort: str) -> None:
    """Raise InputError for a flag on the command line that has no effect for `cohort`."""
    defined_flags = FLAGS.flags_by_module_dict()[str(FLAGS.find_module_defining_flag("out"))]
    unused = [flag.name for flag in defined_flags if flag.name not in ALSO] if cohort == COHORT else OWN
    for name in unused:
        if FLAGS[name].present:
            raise InputError(f"--{name} means nothing for --cohort={cohort}; leave it out")


def main(out: Path) -> str:
    """Prepare the cohort into the folder `out`; returns a summary. Raises InputError for a bad flag or file."""
    if not FLAGS.source:
        raise InputError("--source is needed: the folder with MIMIC-III's CSV files")
    settings = Settings(
        options=Options(ties=FLAGS.ties, fixes=fixes.parse(FLAGS.fix)),
        measurement_stays=FLAGS.measurement_stays,
        mortality_stays=FLAGS.mortality_stays,
        csv=FLAGS.csv,
        salt=FLAGS.salt or None,
        memory=size(FLAGS.memory_limit),
        threads=FLAGS.threads,
    )
    return prepare(Path(FLAGS.source), out, settings, progress=FLAGS.progress)


def size(text: str) -> int:
    """The number of bytes of a size such as 4GB or 512MiB. Raises InputError for any other text."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]i?B)", text.strip(), re.IGNORECASE)
    if not parts:
        raise InputError(f"--memory_limit={text}: not a size; write it like 4GB or 1500MB")
    return int(float(parts[1]) * UNITS[parts[2].upper()])
