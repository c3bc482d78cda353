"""Random numbers keyed by what they are for, never by process, slot or order of calls.

Both backends take their randomness from here, as NumPy arrays made on the host, so the same (seed, step, question,
sample) means the same draw on a TPU, on a GPU and in a test.
"""

import hashlib

import numpy as np

Key = int | str


def generator(*key: Key) -> np.random.Generator:
    """A counter-based generator that depends on `key` alone, e.g. `generator(seed, "sample", step, question, 3)`."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def uniforms(length: int, *key: Key) -> np.ndarray:
    """`[length]` float32 numbers in [0, 1): one for each token that a completion may have."""
    return generator(*key).random(length, dtype=np.float32)
