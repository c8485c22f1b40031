"""Memory of one nearest-neighbour call: parameters, query, heap and scratch in one piece, kept for the next call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from manas._schema import Floats
from manas.kernels.vector_layout import Near

_KINDS = 32
"""Kernels and sizes of heaps for which memory is kept; calls of further kinds allocate theirs."""


class Room:
    """Scratch that a kernel takes."""

    __slots__ = ("places", "words")

    def __init__(self, places: Mapping[int, int]) -> None:
        """`places`: words by the place of their address in the parameters."""
        self.places = places
        self.words = sum(places.values())


class Scratch:
    """The memory of one call at a time. Looking up an array's address takes longer than many a search."""

    __slots__ = ("_floats", "_query", "_template", "address", "ids", "parameters", "scores", "work")

    def __init__(self, fixed: npt.NDArray[np.int64], k: int, room: Room) -> None:
        """`fixed` parameters, a heap of `k`, and `room`."""
        dims = int(fixed[Near.DIMS])
        heap = Near.COUNT + -(-dims // 2)
        self.work = np.empty(heap + 3 * k + room.words, np.int64)
        self.address = self.work.ctypes.data
        self._query: Any = self.work[Near.COUNT : heap].view(np.float32)[:dims].data
        self.scores = self.work[heap : heap + k].view(np.float64)
        self.ids = self.work[heap + 2 * k : heap + 3 * k]
        template = fixed.copy()
        template[Near.K], template[Near.ORDERED] = k, 1
        places = {Near.SCORES_AT: k, Near.HEAP_TIES_AT: k, Near.HEAP_IDS_AT: k, **room.places}
        at = self.address + 8 * heap
        for place, size in places.items():
            template[place] = at
            at += 8 * size
        template[Near.QUERY_AT] = self.address + 8 * Near.COUNT
        self._template = template.data
        self.parameters = self.work[: Near.COUNT].data
        """Read and written one by one, a third as dear as through an array."""
        self._floats: Any = self.work[: Near.COUNT].view(np.float64).data

    def start(self, query: Floats, given: Mapping[int, int], numbers: Mapping[int, float]) -> None:
        """Set the parameters of a call; of `numbers` the kernels read the bits."""
        parameters, floats = self.parameters, self._floats
        parameters[:] = self._template
        self._query[:] = query.data
        for place, value in given.items():
            parameters[place] = value
        for place, number in numbers.items():
            floats[place] = number


class ScratchPool:
    """Memory that is not in use, by kernel and size of the heap. Safe for threads."""

    def __init__(self) -> None:
        self._free: dict[tuple[str, int, int], list[Scratch]] = {}

    def take(self, kernel: str, fixed: npt.NDArray[np.int64], k: int, room: Room) -> Scratch:
        """Return memory for a call. Calls of one kernel with one `k` and as much room have the same `fixed`."""
        try:
            return self._free[kernel, k, room.words].pop()
        except (KeyError, IndexError):
            return Scratch(fixed, k, room)

    def give(self, kernel: str, k: int, room: Room, scratch: Scratch) -> None:
        """Take memory back."""
        kind = kernel, k, room.words
        if len(self._free) < _KINDS or kind in self._free:
            self._free.setdefault(kind, []).append(scratch)
