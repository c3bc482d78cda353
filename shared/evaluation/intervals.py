"""How sure a mean over questions is: 95% intervals that resample patients.

Questions of one patient share a record, so they are not independent. Every interval therefore resamples patients, never
questions. Where all answers are right, or all are wrong, it counts patients.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from shared.questions.intervals import CONFIDENCE
from shared.randomness import generator

RESAMPLES_AT_ONCE = 128  # bounds the memory of the bootstrap: this many rows, an integer for each patient


def accuracy_interval(correct: pd.Series, patients: pd.Series, bootstrap: int, seed: int) -> list[float] | None:
    """95% interval of an accuracy; None for a single patient. `correct` and `patients`: one entry for each question.

    It is that of `interval_of`, but Wilson's where all answers are right or all are wrong: every resample is equal then, and
    the bootstrap's interval would have no width. Wilson's interval counts patients, not questions, since how much the
    questions of one patient depend on each other cannot be seen then. Source: Wilson, JASA 1927; computed by SciPy.
    """
    count = patients.nunique()
    if count > 1 and correct.nunique() == 1:
        wilson = binomtest(count if correct.iloc[0] else 0, count).proportion_ci(CONFIDENCE, method="wilson")
        return [float(wilson.low), float(wilson.high)]
    return interval_of(correct, patients, bootstrap, seed)


def interval_of(values: pd.Series, patients: pd.Series, bootstrap: int, seed: int) -> list[float] | None:
    """95% percentile interval of the mean of `values`, by a bootstrap of patients; None for a single patient.

    `values` and `patients`: one entry for each question; `bootstrap`: the number of resamples. Equal seeds give equal
    resamples, so the intervals of two policies on the same questions can be compared.
    """
    by_patient = values.astype(float).groupby(patients.to_numpy())
    sums = np.stack([by_patient.sum(), by_patient.count()], axis=1)  # [patients, (sum, questions)]
    if len(sums) < 2:
        return None
    random = generator(seed, "bootstrap")
    blocks = []
    for start in range(0, bootstrap, RESAMPLES_AT_ONCE):
        size = (min(RESAMPLES_AT_ONCE, bootstrap - start), len(sums))
        blocks.append(sums[random.integers(len(sums), size=size)].sum(axis=1))
    resampled = np.concatenate(blocks)  # [bootstrap, (sum, questions)]
    tail = (1 - CONFIDENCE) / 2
    return [float(bound) for bound in np.quantile(resampled[:, 0] / resampled[:, 1], [tail, 1 - tail])]
