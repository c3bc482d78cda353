"""Accuracy by age band, sex and site; a group of few patients is not shown, since it may point at a person."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import pandas as pd

from shared.errors import InputError
from shared.evaluation.answers import Answer
from shared.evaluation.intervals import accuracy_interval
from shared.registry.patients import SUBGROUPS, UNKNOWN

FEWEST = 10  # patients; a group with fewer is suppressed


def subgroups(answers: Sequence[Answer], patients: pd.DataFrame, *, bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """One row for each group: `by` (age band, sex or site), `group`, `patients`, `n` questions, `accuracy`, `ci`, `suppressed`.

    A group of fewer than 10 patients has `suppressed` true and no figures. Where only one group would be suppressed, the next
    smallest is too: else the totals would tell its figures. Raises InputError where a patient is not in the table.
    """
    check_patients(patients, {answer.patient for answer in answers})
    known = patients.set_index("patient")
    table = pd.DataFrame({"patient": [a.patient for a in answers], "correct": [float(a.correct) for a in answers]})
    rows: list[dict[str, Any]] = []
    for by in SUBGROUPS:
        groups = table.assign(group=table["patient"].map(known[by].fillna(UNKNOWN))).groupby("group")
        sizes = groups["patient"].nunique().sort_values(kind="stable")
        if len(sizes) < 2:
            continue
        hidden = set(sizes.index[sizes < FEWEST])
        if len(hidden) == 1:
            hidden = set(sizes.index[:2])
        for group, part in groups:
            row: dict[str, Any] = {"by": by, "group": str(group), "suppressed": group in hidden}
            if group not in hidden:
                row |= {
                    "patients": int(sizes[group]),
                    "n": len(part),
                    "accuracy": float(part["correct"].mean()),
                    "ci": accuracy_interval(part["correct"], part["patient"], bootstrap, seed),
                }
            rows.append(row)
    return rows


def check_patients(patients: pd.DataFrame, asked: AbstractSet[str]) -> None:
    """Raise InputError unless each patient who is asked about is in the table of patients, and no patient has two rows."""
    missing = asked - set(patients["patient"])
    if missing:
        raise InputError(f"--patients: {len(missing)} patients of the answers are not in the file of patients; give the one "
                         "beside the questions")  # fmt: skip
    if patients["patient"].duplicated().any():
        raise InputError("--patients: some patients have more than one row; give the file beside the questions")
