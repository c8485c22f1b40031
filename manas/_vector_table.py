"""Vectors in memory or mapped, their clustering and graph, and the calls of the nearest-neighbour kernels over them."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from manas import kernels
from manas._bits import Words
from manas._layer import Ids
from manas._schema import Floats
from manas.kernels.vector_layout import Near

SEED_LISTS = 2
"""Lists that a walk takes its first candidates from: some hundred vectors, which hold a good part of the answer."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a kernel found, in no order, with float64 similarities, and what it took."""

    ids: Ids
    scores: npt.NDArray[np.float64]
    looked: int
    """Bits of the filter that were tested one by one."""
    compared: int
    """Vectors compared with the query."""
    visits: int
    """Lists scanned, or steps of a walk."""
    finished: bool
    """False: the walk did not start or gave up, and what was found is to be thrown away."""


@dataclass(frozen=True, slots=True)
class Lists:
    """A clustering: rows of one list are neighbours in the matrix."""

    starts: npt.NDArray[np.int64]
    """First row of each list, and the end."""
    centroids: Floats
    spread: Floats
    """By list: standard deviation of (similarity of a member - similarity of the centroid) for a random query."""

    def __len__(self) -> int:
        return len(self.spread)


@dataclass(frozen=True, slots=True)
class VectorTable:
    """Unit vectors as rows, with ways to their neighbours. Safe for threads as long as nobody changes the matrix."""

    dims: int
    matrix: Floats
    rows: Ids | None = None
    """Row by id; None: the row is the id."""
    ids: Ids | None = None
    """Id by row."""
    lists: Lists | None = None
    links: npt.NDArray[np.uint32] | None = None
    """Neighbours of each row in the graph, padded with NO_ROW."""
    _fixed: npt.NDArray[np.int64] = field(init=False)
    _longest: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        p = np.zeros(Near.COUNT, np.int64)
        p[Near.DIMS], p[Near.MATRIX_AT] = self.dims, self.matrix.ctypes.data
        for place, values in ((Near.ROWS_AT, self.rows), (Near.IDS_AT, self.ids), (Near.LINKS_AT, self.links)):
            p[place] = 0 if values is None else values.ctypes.data
        if self.links is not None:
            p[Near.DEGREE] = self.links.shape[1]
        if self.lists is not None:
            p[Near.LISTS], p[Near.STARTS_AT] = len(self.lists), self.lists.starts.ctypes.data
            p[Near.CENTROIDS_AT], p[Near.SPREAD_AT] = self.lists.centroids.ctypes.data, self.lists.spread.ctypes.data
            object.__setattr__(self, "_longest", int(np.diff(self.lists.starts).max(initial=0)))
        object.__setattr__(self, "_fixed", p)

    def similarities(self, query: Floats, ids: Ids) -> npt.NDArray[np.float64]:
        """Return the float64 similarities of `ids`, the same as every other method gives."""
        work = np.empty(Near.COUNT + 2 * len(ids), np.int64)
        address = work.ctypes.data
        work[: Near.COUNT] = self._fixed
        work[Near.QUERY_AT], work[Near.SIZE] = query.ctypes.data, len(ids)
        work[Near.SCORES_AT] = address + 8 * Near.COUNT
        work[Near.HEAP_IDS_AT] = address + 8 * (Near.COUNT + len(ids))
        work[Near.COUNT + len(ids) :] = ids
        kernels.load().score_near(address)
        return work[Near.COUNT : Near.COUNT + len(ids)].view(np.float64)

    def scan(self, query: Floats, words: Words, k: int, ties: npt.NDArray[np.int64] | None = None) -> Found:
        """Return the `k` > 0 nearest of the ids in `words`, which all must have a vector."""
        return self._call(kernels.load().scan_near, query, words, k, ties, {}, {})

    def probe(
        self,
        query: Floats,
        words: Words,
        survivors: int,
        k: int,
        reach: float,
        further: float,
        ties: npt.NDArray[np.int64] | None = None,
    ) -> Found:
        """Return the nearest of the ids in `words` list by list, as many as there are up to `k` > 0.

        `reach`: a list is passed over when its centroid's similarity plus so many spreads is below the worst of `k`;
        `further`: the same where the filter turns out to depend on the vectors.
        """
        if self.lists is None:
            raise ValueError("these vectors are not clustered")
        room = {
            Near.BOUNDS_AT: len(self.lists) // 2 + 1,
            Near.ORDER_AT: len(self.lists),
            Near.BUFFER_AT: self._longest + 1,
        }
        share = survivors / len(self.matrix)
        given = {Near.REACH: _bits(reach), Near.FURTHER: _bits(further), Near.EXPECTED: _bits(share)}
        return self._call(kernels.load().probe_near, query, words, k, ties, room, given)

    def walk(
        self,
        query: Floats,
        words: Words,
        width: int,
        *,
        two_hops: bool,
        least_local: float,
        budget: int,
        ties: npt.NDArray[np.int64] | None = None,
        without: int | None = None,
    ) -> Found:
        """Return up to `width` near ids of `words` by a walk over the graph with a beam of that width.

        The walk does not start when less than `least_local` of the vectors around the query pass the filter, and
        gives up after `budget` comparisons. It goes on as if the row `without` were not there.
        """
        if self.links is None or self.lists is None:
            raise ValueError("these vectors have no graph")
        degree = self.links.shape[1]
        step = degree * (degree + 1) + 1
        visited = np.zeros(len(self.matrix) // 64 + 1, np.uint64)
        if without is not None:
            visited[without >> 6] |= np.uint64(1) << np.uint64(without & 63)
        room = {
            Near.BOUNDS_AT: len(self.lists) // 2 + 1,
            Near.ORDER_AT: len(self.lists),
            Near.BUFFER_AT: step,
            Near.QUEUE_SCORES_AT: (budget + step) // 2 + 1,
            Near.QUEUE_ROWS_AT: budget + step,
        }
        given = {
            Near.VISITED_AT: visited.ctypes.data,
            Near.SEEDS: SEED_LISTS,
            Near.BUDGET: budget,
            Near.TWO_HOPS: int(two_hops),
            Near.LEAST_LOCAL: _bits(least_local),
        }
        return self._call(kernels.load().walk_near, query, words, width, ties, room, given)

    def _call(
        self,
        kernel: Any,
        query: Floats,
        words: Words,
        k: int,
        ties: npt.NDArray[np.int64] | None,
        room: Mapping[int, int],
        given: Mapping[int, int],
    ) -> Found:
        """Run a kernel with its parameters, its heap and its scratch in one piece of memory."""
        heap = Near.COUNT + 3 * k
        work = np.empty(heap + sum(room.values()), np.int64)
        address = work.ctypes.data
        work[: Near.COUNT] = self._fixed
        work[Near.QUERY_AT], work[Near.WORDS_AT] = query.ctypes.data, words.ctypes.data
        work[Near.WORDS], work[Near.K] = len(words), k
        work[Near.TIES_AT] = 0 if ties is None else ties.ctypes.data
        at = address + 8 * Near.COUNT
        work[Near.SCORES_AT], work[Near.HEAP_TIES_AT], work[Near.HEAP_IDS_AT] = at, at + 8 * k, at + 16 * k
        at = address + 8 * heap
        for place, size in room.items():
            work[place] = at
            at += 8 * size
        for place, value in given.items():
            work[place] = value
        kernel(address)
        kernels.load().score_near(address)
        size = int(work[Near.SIZE])
        first = Near.COUNT
        return Found(
            work[first + 2 * k : first + 2 * k + size].astype(np.uint32),
            work[first : first + size].view(np.float64).copy(),
            int(work[Near.LOOKED]),
            int(work[Near.COMPARED]),
            int(work[Near.VISITS]),
            not work[Near.STATUS],
        )


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
