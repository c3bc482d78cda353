"""The order in which NumPy's portable `argsort` (introsort) leaves equal numbers; needed to take the original's ties.

NumPy with AVX-512, or from version 2, sorts ties in another order, so the algorithm is written out here: quicksort with
the median of three, insertion sort for short ranges, heapsort below a depth (numpy/_core/src/npysort/quicksort.cpp).
Only ranges that hold a key of interest are sorted at all; what happens elsewhere does not change their order.
"""

from __future__ import annotations

import numpy as np

SHORT = 15  # ranges whose ends are at most this far apart are sorted by insertion


def order_of(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`argsort(keys)` restricted to the positions whose key is one of `wanted`.

    keys: `[n]` without NaN; wanted: `[k]` distinct values, ascending. Returns positions, `[number of such keys]`.
    """
    order = np.arange(len(keys))
    stack = [(0, len(keys) - 1, 2 * (len(keys).bit_length() - 1))]
    while stack:
        left, right, depth = stack.pop()
        inside = keys[order[left : right + 1]]
        if right <= left or not _holds(wanted, inside.min(), inside.max()):
            continue
        if depth < 0:
            _heapsort(keys, order, left, right)
        elif right - left <= SHORT:
            # Insertion sort leaves equal keys in their order, as every stable sort does.
            order[left : right + 1] = order[left : right + 1][np.argsort(inside, kind="stable")]
        else:
            middle = _partition(keys, order, left, right)
            stack += [(left, middle - 1, depth - 1), (middle + 1, right, depth - 1)]
    return order[np.isin(keys[order], wanted)]


def _holds(wanted: np.ndarray, low: float, high: float) -> bool:
    return bool(np.searchsorted(wanted, low, "left") < np.searchsorted(wanted, high, "right"))


def _partition(keys: np.ndarray, order: np.ndarray, left: int, right: int) -> int:
    """One partition of `order[left : right + 1]` in place; returns where the pivot ends up.

    Two pointers walk towards each other, stop at keys not below and not above the pivot, and swap what they stand on.
    The k-th swap is of the k-th such key from the left with the k-th from the right, so all are made at once.
    """
    middle = left + ((right - left) >> 1)
    for low, high in ((left, middle), (middle, right), (left, middle)):
        if keys[order[high]] < keys[order[low]]:
            order[low], order[high] = order[high], order[low]
    pivot = keys[order[middle]]
    order[middle], order[right - 1] = order[right - 1], order[middle]
    inside = keys[order[left:right]]  # the pivot is its last
    rising = left + 1 + np.flatnonzero(inside[1:] >= pivot)
    falling = left + np.flatnonzero(inside[:-1] <= pivot)[::-1]
    length = min(len(rising), len(falling))
    swaps = int((rising[:length] < falling[:length]).sum())
    end = int(rising[swaps])
    if swaps:
        here, there = rising[:swaps], falling[:swaps]
        order[here], order[there] = order[there], order[here]
        end = min(end, int(there[-1]))
    order[end], order[right - 1] = order[right - 1], order[end]
    return end


def _heapsort(keys: np.ndarray, order: np.ndarray, left: int, right: int) -> None:
    heap = [int(position) for position in order[left : right + 1]]
    for root in range(len(heap) // 2 - 1, -1, -1):
        _sink(keys, heap, root, len(heap))
    for end in range(len(heap) - 1, 0, -1):
        heap[0], heap[end] = heap[end], heap[0]
        _sink(keys, heap, 0, end)
    order[left : right + 1] = heap


def _sink(keys: np.ndarray, heap: list[int], root: int, length: int) -> None:
    moving = heap[root]
    child = 2 * root + 1
    while child < length:
        if child + 1 < length and keys[heap[child]] < keys[heap[child + 1]]:
            child += 1
        if not keys[moving] < keys[heap[child]]:
            break
        heap[root] = heap[child]
        root, child = child, 2 * child + 1
    heap[root] = moving
