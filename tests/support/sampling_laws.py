"""What a draw must follow: the laws of temperature and filters in float64."""

from __future__ import annotations

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(np.asarray(logits, np.float64) - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def filtered_law(logits: np.ndarray, temperature: float, top_k: int, top_p: float, min_p: float) -> np.ndarray:
    """Probabilities of one row after top-k, then top-p, then min-p, each renormalised; float64."""
    law = softmax(logits / np.float64(temperature))
    order = np.argsort(-law)
    if top_k:
        law[order[top_k:]] = 0
        law /= law.sum()
    if top_p < 1:
        reached = np.cumsum(law[order])
        count = np.searchsorted(reached, top_p) + 1  # the token that reaches top_p is the last one kept
        law[order[count:]] = 0
        law /= law.sum()
    law[law < min_p * law.max()] = 0
    return law / law.sum()


def assert_frequencies(found: np.ndarray, logits: np.ndarray, temperature: float) -> None:
    """Draws by one evenly spaced grid of uniforms: each token as often as its probability, to one draw at each end."""
    frequency = np.bincount(found, minlength=len(logits)) / len(found)
    np.testing.assert_allclose(frequency, softmax(logits / temperature), rtol=0, atol=2.1 / len(found))


def chi_square(found: np.ndarray, logits: np.ndarray) -> float:
    """Pearson's statistic of draws at temperature 1."""
    expected = len(found) * softmax(logits)
    return float(((np.bincount(found, minlength=len(logits)) - expected) ** 2 / expected).sum())
