"""Vectors in memory or mapped, their clustering and graph, and the calls of the nearest-neighbour kernels over them."""

from __future__ import annotations

import ctypes
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from manas import kernels
from manas._bits import Words
from manas._layer import Ids
from manas._schema import Floats
from manas._vector_codes import Codes
from manas._vector_scratch import Room, ScratchPool
from manas.kernels.vector_layout import GROUP, PAUSED, RING, Near

SEED_LISTS = 2
"""Lists that a walk takes its first candidates from: some hundred vectors, which hold a good part of the answer."""
SLICE = 16_384
"""Rows met between two looks at the clock when there is a deadline: some tens of microseconds of work, a millisecond
where the vectors have to come from a disk."""
_FOREVER = (1 << 63) - 1
_SCAN_ROOM = Room({Near.BUFFER_AT: 2 * RING})


class Found(msgspec.Struct, frozen=True):
    """What a kernel found, best first, with float64 similarities, and what it took."""

    ids: Ids
    scores: npt.NDArray[np.float64]
    looked: int
    """Rows met: tested one by one, or compared by their codes."""
    compared: int
    """Vectors compared with the query."""
    visits: int
    """Lists scanned, or steps of a walk."""
    finished: bool
    """False: the walk did not start or gave up, and what was found is to be thrown away."""
    complete: bool = True
    """False: the deadline came first, and this is the best until then."""
    ranked: bool = False
    """Ties are in the order of the table's `ties`, else in that of ids."""


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
    codes: Codes | None = None
    ties: npt.NDArray[np.int64] | None = None
    """By id: the smaller one wins between equal similarities; None: the id does."""
    slice_rows: int = SLICE
    _fixed: npt.NDArray[np.int64] = field(init=False)
    _centroids: Floats = field(init=False)
    _codes_at: int = field(init=False, default=0)
    _room: Room = field(init=False)
    """What lists take."""
    _pool: ScratchPool = field(init=False, default_factory=ScratchPool)

    def __post_init__(self) -> None:
        p = np.zeros(Near.COUNT, np.int64)
        p[Near.DIMS], p[Near.MATRIX_AT] = self.dims, self.matrix.ctypes.data
        for place, values in (
            (Near.ROWS_AT, self.rows),
            (Near.IDS_AT, self.ids),
            (Near.LINKS_AT, self.links),
            (Near.TIES_AT, self.ties),
        ):
            p[place] = 0 if values is None else values.ctypes.data
        if self.links is not None:
            p[Near.DEGREE] = self.links.shape[1]
        room, turned = {}, np.empty(0, np.float32)
        if self.lists is not None:
            turned = _by_groups(self.lists.centroids)
            p[Near.LISTS], p[Near.STARTS_AT] = len(self.lists), self.lists.starts.ctypes.data
            p[Near.CENTROIDS_AT], p[Near.SPREAD_AT] = turned.ctypes.data, self.lists.spread.ctypes.data
            groups = _groups_of(len(self.lists))
            p[Near.TOPS] = _groups_of(_groups_of(groups))
            bounds = GROUP * (groups + _groups_of(groups) + int(p[Near.TOPS]))
            longest = int(np.diff(self.lists.starts).max(initial=0))
            room = {Near.BOUNDS_AT: -(-bounds // 2), Near.BUFFER_AT: longest + 1}
        if self.codes is not None:
            p[Near.SCALES_AT], p[Near.FOURS] = self.codes.scales.ctypes.data, self.codes.fours
            p[Near.POWER] = _bits(self.codes.power)
            object.__setattr__(self, "_codes_at", self.codes.codes.ctypes.data)
            room |= {Near.WEIGHTS_AT: -(-4 * self.codes.fours // 8), Near.NUMBERS_AT: 2}
        object.__setattr__(self, "_centroids", turned)
        object.__setattr__(self, "_room", Room(room))
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

    def scan(
        self,
        query: Floats,
        words: Words,
        k: int,
        deadline: float | None = None,
    ) -> Found:
        """Return the `k` > 0 nearest of the ids in `words`, which all must have a vector."""
        return self._call("scan_near", query, words, k, _SCAN_ROOM, {}, {}, deadline)

    def probe(
        self,
        query: Floats,
        words: Words,
        survivors: int,
        k: int,
        reach: float,
        further: float,
        *,
        by_codes: bool = False,
        deadline: float | None = None,
    ) -> Found:
        """Return the nearest of the ids in `words` list by list, as many as there are up to `k` > 0.

        `reach`: a list is passed over when its centroid's similarity plus so many spreads is below the worst of `k`;
        `further`: the same where the filter turns out to depend on the vectors. `by_codes`: a list's rows are compared
        by their codes, all of them, and then tested where they are near; else they are tested, and then compared.
        """
        if self.lists is None or (by_codes and self.codes is None):
            raise ValueError("these vectors are not clustered, or have no codes")
        numbers = {Near.REACH: reach, Near.FURTHER: further, Near.EXPECTED: survivors / len(self.matrix)}
        given = {Near.CODES_AT: self._codes_at if by_codes else 0}
        return self._call("probe_near", query, words, k, self._room, given, numbers, deadline)

    def walk(
        self,
        query: Floats,
        words: Words,
        width: int,
        *,
        two_hops: bool,
        least_local: float,
        budget: int,
        without: int | None = None,
        deadline: float | None = None,
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
        own = {
            Near.BUFFER_AT: step,
            Near.QUEUE_SCORES_AT: (budget + step) // 2 + 1,
            Near.QUEUE_ROWS_AT: budget + step,
        }
        room = Room({**self._room.places, **own})
        given = {
            Near.VISITED_AT: visited.ctypes.data,
            Near.SEEDS: min(SEED_LISTS, len(self.lists)),
            Near.BUDGET: budget,
            Near.TWO_HOPS: int(two_hops),
        }
        return self._call("walk_near", query, words, width, room, given, {Near.LEAST_LOCAL: least_local}, deadline)

    def _call(
        self,
        name: str,
        query: Floats,
        words: Words,
        k: int,
        room: Room,
        given: dict[int, int],
        numbers: Mapping[int, float],
        deadline: float | None,
    ) -> Found:
        """Run a kernel. With a `deadline` (of the monotonic clock) it runs in slices, at least one."""
        code = kernels.load()
        kernel = getattr(code, name)
        scratch = self._pool.take(name, self._fixed, k, room)
        given[Near.WORDS_AT], given[Near.WORDS] = _address_of(words), len(words)
        given[Near.UNTIL] = _FOREVER if deadline is None else self.slice_rows
        scratch.start(query, given, numbers)
        address, p = scratch.address, scratch.parameters
        kernel(address)
        while p[Near.STATUS] == PAUSED and deadline is not None and time.monotonic() < deadline:
            p[Near.UNTIL] += self.slice_rows
            kernel(address)
        code.score_near(address)
        size, status = p[Near.SIZE], p[Near.STATUS]
        found = Found(
            scratch.ids[:size].astype(np.uint32),
            scratch.scores[:size].copy(),
            p[Near.LOOKED],
            p[Near.COMPARED],
            p[Near.VISITS],
            status in (0, PAUSED),
            status != PAUSED,
            self.ties is not None,
        )
        self._pool.give(name, k, room, scratch)
        return found


def _groups_of(count: int) -> int:
    return -(-count // GROUP)


def _by_groups(centroids: Floats) -> Floats:
    """Return for every group of centroids and every dimension the values of the group, filled up with zeros."""
    count, dims = centroids.shape
    padded = np.zeros((_groups_of(count) * GROUP, dims), np.float32)
    padded[:count] = centroids
    return np.ascontiguousarray(padded.reshape(-1, GROUP, dims).transpose(0, 2, 1))


def _address_of(words: Words) -> int:
    """Return where words are; of an array that may be written that is found three times as fast."""
    if words.flags.writeable:
        return ctypes.addressof(ctypes.c_char.from_buffer(words.data))
    return int(words.ctypes.data)


def _bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
