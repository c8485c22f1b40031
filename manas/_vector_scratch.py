"""Memory of one nearest-neighbour call: parameters, query, heap and scratch in one piece, kept for the next call."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from manas._schema import Floats
from manas.kernels.vector_layout import Near

_KINDS = 32
"""Kernels and sizes of heaps for which memory is kept; calls of further kinds allocate theirs."""


class Scratch:
    """The memory of one call at a time. Looking up an array's address takes longer than many a search."""

    __slots__ = ("_template", "address", "ids", "query", "scores", "work")

    def __init__(self, fixed: npt.NDArray[np.int64], k: int, room: Mapping[int, int]) -> None:
        """`fixed` parameters, a heap of `k`, and `room`: words of scratch by the place of their address."""
        dims = int(fixed[Near.DIMS])
        heap = Near.COUNT + -(-dims // 2)
        self.work = np.empty(heap + 3 * k + sum(room.values()), np.int64)
        self.address = self.work.ctypes.data
        self.query: Floats = self.work[Near.COUNT : heap].view(np.float32)[:dims]
        self.scores = self.work[heap : heap + k].view(np.float64)
        self.ids = self.work[heap + 2 * k : heap + 3 * k]
        template = fixed.copy()
        template[Near.K] = k
        places = {Near.SCORES_AT: k, Near.HEAP_TIES_AT: k, Near.HEAP_IDS_AT: k, **room}
        at = self.address + 8 * heap
        for place, size in places.items():
            template[place] = at
            at += 8 * size
        template[Near.QUERY_AT] = self.address + 8 * Near.COUNT
        self._template = template

    def start(self, query: Floats, given: Mapping[int, int]) -> None:
        """Set the parameters of a call."""
        work = self.work
        work[: Near.COUNT] = self._template
        self.query[:] = query
        for place, value in given.items():
            work[place] = value


class ScratchPool:
    """Memory that is not in use, by kernel and size of the heap. Safe for threads."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, int, int], list[Scratch]] = {}

    def take(self, kernel: str, fixed: npt.NDArray[np.int64], k: int, room: Mapping[int, int]) -> Scratch:
        """Return memory for a call. Calls of one kernel with one `k` and as much room have the same `fixed`."""
        try:
            return self._free[kernel, k, sum(room.values())].pop()
        except (KeyError, IndexError):
            return Scratch(fixed, k, room)

    def give(self, kernel: str, k: int, room: Mapping[int, int], scratch: Scratch) -> None:
        """Take memory back."""
        kind = kernel, k, sum(room.values())
        if len(self._free) < _KINDS or kind in self._free:
            self._free.setdefault(kind, []).append(scratch)
