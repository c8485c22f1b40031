"""Vectors of one field of the delta: always compared exactly, because folding keeps them few."""

from __future__ import annotations

import numpy as np
from pyroaring import BitMap

from manas._bits import Words
from manas._schema import Floats, normalized
from manas._vector_plan import Way
from manas._vector_store import Neighbours, exact
from manas._vector_table import VectorTable

_FIRST_CAPACITY = 1024


class DeltaVectors:
    """Rows by slot."""

    def __init__(self, dims: int) -> None:
        self._table = VectorTable(dims, np.zeros((_FIRST_CAPACITY, dims), np.float32))
        self.ids = BitMap()
        """Slots that have a vector."""

    def set(self, slot: int, raw: bytes | None) -> None:
        """Store the vector of a slot, None for none."""
        if raw is None:
            self.ids.discard(slot)
            return
        matrix = self._table.matrix
        while slot >= len(matrix):
            matrix = np.concatenate([matrix, np.zeros_like(matrix)])
        if matrix is not self._table.matrix:
            self._table = VectorTable(self._table.dims, matrix)
        matrix[slot] = normalized(raw)
        self.ids.add(slot)

    def nearest(
        self,
        query: Floats,
        words: Words,
        survivors: int,
        k: int,
        *,
        exact_survivors: int,
        only: Way | None = None,
        deadline: float | None = None,
    ) -> Neighbours:
        """Return the `k` (0: all) nearest of the slots in `words`, and what ties with the last of them.

        `deadline` is a time of the monotonic clock; what was found until then is returned as not complete.
        """
        ids, scores, complete = exact(self._table, query, words, survivors, k, deadline)
        return Neighbours(ids, scores, Way.EXACT, survivors, complete=complete)
