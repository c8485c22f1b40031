"""Cluster unit vectors by Lloyd's algorithm, so that the vectors near a query are in few lists."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from manas._schema import Floats
from manas._vector_table import Lists

_ROUNDS = 6
"""Rounds of Lloyd's algorithm: more move the borders of lists, and hardly the number that a query has to scan."""
_SAMPLE_PER_LIST = 64
"""Vectors per list that the rounds look at."""
_CHUNK = 4_096


def list_count(vectors: int) -> int:
    """Return how many lists to make: about 2 x sqrt(vectors), a power of two."""
    return int(2 ** round(math.log2(max(1.0, 2.0 * math.sqrt(vectors)))))


def cluster(matrix: Floats, lists: int, seed: int = 1) -> tuple[npt.NDArray[np.int64], Lists]:
    """Return the order of rows that puts lists together, and the lists over rows in that order.

    The same vectors in the same order give the same lists.
    """
    rng = np.random.default_rng(seed)
    count = len(matrix)
    sample = matrix
    if count > lists * _SAMPLE_PER_LIST:
        sample = matrix[np.sort(rng.choice(count, lists * _SAMPLE_PER_LIST, replace=False))]
    centroids = sample[rng.choice(len(sample), lists, replace=len(sample) < lists)].copy()
    for _ in range(_ROUNDS):
        places = _nearest(sample, centroids)
        sizes = np.bincount(places, minlength=lists)
        order = np.argsort(places, kind="stable")
        filled = np.flatnonzero(sizes)
        sums = np.add.reduceat(sample[order].astype(np.float64), (np.cumsum(sizes) - sizes)[filled], axis=0)
        centroids[filled] = (sums / sizes[filled, None]).astype(np.float32)
        empty = np.flatnonzero(sizes == 0)
        centroids[empty] = sample[rng.choice(len(sample), len(empty))]
    places = _nearest(matrix, centroids)
    order = np.argsort(places, kind="stable")
    starts = np.zeros(lists + 1, np.int64)
    np.cumsum(np.bincount(places, minlength=lists), out=starts[1:])
    return order, Lists(starts, centroids, _spread(matrix, places, centroids, starts))


def _nearest(matrix: Floats, centroids: Floats) -> npt.NDArray[np.int64]:
    """Return the place of the nearest centroid of every row."""
    half = (centroids.astype(np.float64) ** 2).sum(axis=1).astype(np.float32) / 2
    turned = np.ascontiguousarray(centroids.T)
    parts = [(matrix[at : at + _CHUNK] @ turned - half).argmax(axis=1) for at in range(0, len(matrix), _CHUNK)]
    return np.concatenate(parts) if parts else np.empty(0, np.int64)


def _spread(matrix: Floats, places: npt.NDArray[np.int64], centroids: Floats, starts: npt.NDArray[np.int64]) -> Floats:
    """Return the root mean square distance of each list's members from its centroid, per dimension.

    For a query in a random direction that is the standard deviation of a member's similarity.
    """
    squares = np.zeros(len(centroids))
    for at in range(0, len(matrix), _CHUNK):
        own = places[at : at + _CHUNK]
        distance = ((matrix[at : at + _CHUNK] - centroids[own]) ** 2).sum(axis=1)
        np.add.at(squares, own, distance.astype(np.float64))
    sizes = np.maximum(1, np.diff(starts))
    spread: Floats = np.sqrt(squares / sizes / matrix.shape[1]).astype(np.float32)
    return spread
