"""The two global random generators of the original, as one object that is passed to all functions that draw."""

from __future__ import annotations

import random

import numpy as np

SEED = 42


class Draws:
    """NumPy's and Python's generator with the same seed. Each draw changes their state, so the order of draws matters."""

    def __init__(self, seed: int = SEED) -> None:
        self.np = np.random.RandomState(seed)
        self.py = random.Random(seed)
