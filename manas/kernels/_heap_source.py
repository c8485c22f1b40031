"""The heap of the best candidates, for every kernel that keeps the best k."""

# mypy: ignore-errors
from __future__ import annotations

from numba import njit


@njit(inline="always")
def worse(score, tie, other_score, other_tie):
    """Tell whether the first candidate ranks behind the second."""
    return score < other_score or (score == other_score and tie > other_tie)


@njit(inline="always")
def put(scores, ties, numbers, size, k, score, tie, number):
    """Put a candidate into a heap of at most `k` whose worst is at its root; return the new size.

    In a full heap it takes the place of the root, which the caller knows to be worse.
    """
    grown = size
    if size < k:
        at = size
        grown = size + 1
        while at > 0:
            parent = (at - 1) >> 1
            if worse(score, tie, scores[parent], ties[parent]):
                scores[at] = scores[parent]
                ties[at] = ties[parent]
                numbers[at] = numbers[parent]
                at = parent
            else:
                break
    else:
        at = 0
        while True:
            child = 2 * at + 1
            if child >= k:
                break
            if child + 1 < k and worse(scores[child + 1], ties[child + 1], scores[child], ties[child]):
                child += 1
            if worse(scores[child], ties[child], score, tie):
                scores[at] = scores[child]
                ties[at] = ties[child]
                numbers[at] = numbers[child]
                at = child
            else:
                break
    scores[at] = score
    ties[at] = tie
    numbers[at] = number
    return grown
