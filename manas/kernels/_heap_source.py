"""The heap of the best candidates, for every kernel that keeps the best k."""

# mypy: ignore-errors
from __future__ import annotations

from numba import njit


@njit(inline="always")
def worse(score, tie, other_score, other_tie):
    """Tell whether the first candidate ranks behind the second."""
    return score < other_score or (score == other_score and tie > other_tie)


@njit(inline="always")
def sink(scores, ties, numbers, size, score, tie, number):
    """Put a candidate in the place of the root of a heap of `size`."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and worse(scores[child + 1], ties[child + 1], scores[child], ties[child]):
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
        scores[at] = score
        ties[at] = tie
        numbers[at] = number
    else:
        sink(scores, ties, numbers, k, score, tie, number)
    return grown


@njit(inline="always")
def settle(scores, ties, numbers, size):
    """Put a heap into order, best first. It is a heap no more."""
    last = size - 1
    while last > 0:
        score = scores[last]
        tie = ties[last]
        number = numbers[last]
        scores[last] = scores[0]
        ties[last] = ties[0]
        numbers[last] = numbers[0]
        sink(scores, ties, numbers, last, score, tie, number)
        last -= 1
