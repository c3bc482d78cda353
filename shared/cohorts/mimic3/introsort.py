"""Reproduces the order that NumPy's portable `argsort` (introsort) gives to equal numbers; the original depends on it for ties.

NumPy with AVX-512, and NumPy from version 2 on, give ties another order. So the algorithm is implemented here: quicksort with
the median of three, insertion sort for short ranges, heapsort beyond a depth (numpy/_core/src/npysort/quicksort.cpp). Only
ranges that contain a wanted key are sorted; the others do not change the order of the wanted ones.
"""

from __future__ import annotations

import numpy as np

SHORT = 15  # a range whose ends are at most so far apart is sorted by insertion


def order_of(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """`argsort(keys)` with only the positions whose key is in `wanted`.

    keys: `[n]` without NaN; wanted: `[k]` distinct values in ascending order. Returns positions `[number of such keys]`.
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
            # Insertion sort is stable, so any stable sort gives the same order.
            order[left : right + 1] = order[left : right + 1][np.argsort(inside, kind="stable")]
        else:
            middle = _partition(keys, order, left, right)
            stack += [(left, middle - 1, depth - 1), (middle + 1, right, depth - 1)]
    return order[np.isin(keys[order], wanted)]


def _holds(wanted: np.ndarray, low: float, high: float) -> bool:
    return bool(np.searchsorted(wanted, low, "left") < np.searchsorted(wanted, high, "right"))


def _partition(keys: np.ndarray, order: np.ndarray, left: int, right: int) -> int:
    """Partition `order[left : right + 1]` in place, as quicksort does. Returns the final position of the pivot.

    In NumPy two pointers move towards each other. The left one stops at keys that are not below the pivot, the right one at
    keys that are not above it; then the two keys are swapped. The k-th swap exchanges the k-th such key from the left with the
    k-th from the right, so all swaps can be made at once.
    """
    middle = left + ((right - left) >> 1)
    for low, high in ((left, middle), (middle, right), (left, middle)):
        if keys[order[high]] < keys[order[low]]:
            order[low], order[high] = order[high], order[low]
    pivot = keys[order[middle]]
    order[middle], order[right - 1] = order[right - 1], order[middle]
    inside = keys[order[left:right]]  # the pivot is the last
    rising = left + 1 + np.flatnonzero(inside[1:] >= pivot)
    falling = left + np.flatnonzero(inside[:-1] <= pivot)[::-1]
    length = min(len(rising), len(falling))
    swaps = int((rising[:length] < falling[:length]).sum())
    end = int(rising[swaps])
    if swaps:
        from_left, from_right = rising[:swaps], falling[:swaps]
        order[from_left], order[from_right] = order[from_right], order[from_left]
        end = min(end, int(from_right[-1]))
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
