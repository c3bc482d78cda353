"""The two global random generators of the original, as one object that is passed along."""

from __future__ import annotations

import random

import numpy as np

SEED = 42


class Draws:
    """NumPy's and Python's generators, both seeded alike. Every draw moves them on: the order of draws is the result."""

    def __init__(self, seed: int = SEED) -> None:
        self.np = np.random.RandomState(seed)
        self.py = random.Random(seed)
