"""Generated vectors that cluster well or hardly, and filters that know nothing of them or depend on them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

CLUSTERED, WEAK = 0.8, 1.6
"""Length of the noise around a centre of length 1."""
SHARES = (0.0001, 0.001, 0.01, 0.1, 0.3, 0.6, 1.0)


def vectors(count: int, noise: float, *, dims: int = 64, centres: int = 100, seed: int = 1, draw: int = 0) -> Matrix:
    """Return unit vectors; another `draw` from the same centres gives queries that are none of the vectors."""
    middle = np.random.default_rng(seed).standard_normal((centres, dims))
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    rng = np.random.default_rng((seed, draw))
    rows = middle[rng.integers(0, centres, count)] + rng.standard_normal((count, dims)) * (noise / np.sqrt(dims))
    return unit(rows)


def unit(rows: npt.NDArray[np.floating]) -> Matrix:
    """Return rows at length 1."""
    scaled: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def filters(matrix: Matrix, query: Matrix, share: float, seed: int = 5) -> Iterator[tuple[str, Mask]]:
    """Yield filters that let a share pass: at random, by side of a plane, near the query, and far from it."""
    count = len(matrix)
    passing = max(1, round(share * count))
    rng = np.random.default_rng(seed)
    for kind, key in (
        ("random", rng.random(count)),
        ("plane", matrix @ (matrix[rng.integers(count)] - matrix[rng.integers(count)])),
        ("near", -(matrix @ query)),
        ("far", matrix @ query),
    ):
        mask = np.zeros(count, bool)
        mask[np.argpartition(key, passing - 1)[:passing]] = True
        yield kind, mask
