"""Programs run over the blocks of a segment: the best k, or the bitmap of all matches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from manas import kernels
from manas._bits import Words
from manas._layer import Ids
from manas._postings import Posting
from manas._program import Program, float_bits
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, Bonus, Param

_SLICE_BLOCKS = 64
"""Blocks between two looks at the clock when a deadline is given: some tens of microseconds of work."""
_DEPTH = 40
"""Of the stack of block bitmaps: filter trees are at most 32 deep."""
_FIRST_ROOM = 1_024
"""Of the heap and of tables: enough for nearly every request."""


@dataclass(frozen=True, slots=True)
class Best:
    """The best candidates in order; `matched` counts all when counting, else what was met before the run stopped."""

    ids: Ids
    scores: npt.NDArray[np.float64]
    matched: int
    complete: bool
    """Every block was looked at, or skipped because it could hold nothing better."""
    counted: bool
    """`matched` is the exact number of matches."""
    blocks: int
    """Blocks evaluated."""


class Runner:
    """Runs programs over one segment's arrays; buffers are its own, so each thread has its own runner."""

    def __init__(self) -> None:
        self._kernels = kernels.load()
        stack, bonus_buffer = np.zeros(_DEPTH * BLOCK_WORDS, np.uint64), np.zeros(BLOCK_IDS, np.float64)
        self._keep = (stack, bonus_buffer)
        self._p = np.zeros(Param.COUNT, np.int64)
        self._address = self._p.ctypes.data
        self._fresh = self._p.copy()
        """Parameters that are the same for every call."""
        self._fresh[Param.STACK], self._fresh[Param.BONUS_BUFFER] = stack.ctypes.data, bonus_buffer.ctypes.data
        self._code = _Buffer()
        self._drivers = _Buffer()
        self._resize(_FIRST_ROOM)

    def _resize(self, room: int) -> None:
        self._room = room
        self._scores, self._ties, self._ids = np.empty(room), np.empty(room, np.int64), np.empty(room, np.int64)
        fresh = self._fresh
        fresh[Param.HEAP_SCORES], fresh[Param.HEAP_TIES] = self._scores.ctypes.data, self._ties.ctypes.data
        fresh[Param.HEAP_IDS] = self._ids.ctypes.data

    def best(
        self,
        program: Program,
        scores: StaticScores,
        k: int,
        bonuses: Sequence[tuple[Posting, float]] = (),
        *,
        counting: bool,
        deadline: float | None = None,
        after: tuple[float, int] | None = None,
    ) -> Best:
        """Return the best `k` > 0 by static score plus weight x payload of the bonus lists an id is in.

        `deadline` is a time of the monotonic clock; what was found until then is returned as not complete. Only what
        ranks behind `after` (score, tie key) is returned, if given; all matches are counted nevertheless.
        """
        if k > self._room:
            self._resize(k)
        p = self._parameters(program, scores.blocks)
        p[Param.STATIC], p[Param.TIES], p[Param.BLOCK_MAX], p[Param.SUFFIX_MAX] = scores.addresses
        p[Param.SHORT_TIES] = scores.ties.dtype == np.uint32
        p[Param.TIES_RISE], p[Param.COUNTING], p[Param.K] = scores.ordered, counting, k
        if bonuses:
            table = _bonus_table(bonuses)
            p[Param.BONUSES], p[Param.BONUS_TABLE] = len(bonuses), table.ctypes.data
        skipped = 0
        if after is not None:
            p[Param.AFTER], p[Param.AFTER_SCORE], p[Param.AFTER_TIE] = 1, float_bits(after[0]), after[1]
            if scores.ordered and not bonuses and not counting:
                # Ids follow the score: whatever comes before this block ranks before `after`.
                skipped = p[Param.BLOCK] = scores.first_below(after[0])
        complete = self._run(self._kernels.top_k, scores.blocks, deadline)
        size = int(p[Param.HEAP_SIZE])
        if scores.ordered and not bonuses:  # ids follow the rank
            ids = np.sort(self._ids[:size]).astype(np.uint32)
            found = scores.values[ids]
        else:
            order = np.lexsort((self._ties[:size], -self._scores[:size]))
            ids, found = self._ids[:size][order].astype(np.uint32), self._scores[:size][order]
        counted = complete and (bool(counting) or (not p[Param.STOPPED] and size < k and not skipped))
        return Best(ids, found, int(p[Param.MATCHED]), complete, counted, int(p[Param.EVALUATED]))

    def match(self, program: Program, blocks: int, deadline: float | None = None) -> tuple[Words, int, bool]:
        """Return the bitmap of all matches, their number, and whether these are all: no `deadline` came first."""
        p = self._parameters(program, blocks)
        out = np.zeros(blocks * BLOCK_WORDS, np.uint64)
        p[Param.OUT] = out.ctypes.data
        complete = self._run(self._kernels.match, blocks, deadline)
        return out, int(p[Param.MATCHED]), complete

    def _parameters(self, program: Program, blocks: int) -> npt.NDArray[np.int64]:
        p = self._p
        p[:] = self._fresh
        p[Param.BLOCKS] = p[Param.UNTIL] = blocks
        # Both are copies: instructions and drivers hold how far their lists have been read.
        p[Param.CODE], p[Param.CODE_LENGTH] = self._code.take(program.code), len(program.code)
        p[Param.DRIVERS], p[Param.DRIVER_TABLE] = len(program.drivers), self._drivers.take(program.drivers)
        return p

    def _run(self, kernel: Any, blocks: int, deadline: float | None) -> bool:
        """Call a kernel until all blocks are done; return False when the deadline came first."""
        p, address = self._p, self._address
        if deadline is None:
            kernel(address)
            return True
        while p[Param.BLOCK] < blocks:
            if time.monotonic() >= deadline:
                return False
            p[Param.UNTIL] = min(blocks, int(p[Param.BLOCK]) + _SLICE_BLOCKS)
            kernel(address)
            if p[Param.STOPPED]:
                break
        return True


class _Buffer:
    """Memory that tables are copied into, call after call."""

    def __init__(self) -> None:
        self._rows = np.empty(_FIRST_ROOM, np.int64)
        self._address = self._rows.ctypes.data

    def take(self, table: npt.NDArray[np.int64]) -> int:
        """Copy a table and return its address."""
        if table.size > len(self._rows):
            self._rows = np.empty(2 * table.size, np.int64)
            self._address = self._rows.ctypes.data
        self._rows[: table.size] = table.reshape(-1)
        return self._address


def _bonus_table(bonuses: Sequence[tuple[Posting, float]]) -> npt.NDArray[np.int64]:
    table = np.zeros((len(bonuses), Bonus.WIDTH), np.int64)
    for row, (posting, weight) in zip(table, bonuses, strict=True):
        row[Bonus.DENSE], row[Bonus.ADDRESS] = posting.dense is not None, posting.address
        row[Bonus.COUNT], row[Bonus.WEIGHT] = posting.count, float_bits(weight)
        if (payloads := posting.payloads) is not None:
            row[Bonus.PAYLOAD], row[Bonus.BOUNDS] = payloads.values.ctypes.data, payloads.bounds.ctypes.data
            row[Bonus.SUFFIX] = payloads.suffix.ctypes.data
            row[Bonus.RANKS] = 0 if payloads.ranks is None else payloads.ranks.ctypes.data
    return table


@dataclass(frozen=True, slots=True)
class StaticScores:
    """Scores that do not depend on the request, by id and bounded per block."""

    values: npt.NDArray[np.float64]
    ties: npt.NDArray[np.int64] | npt.NDArray[np.uint32]
    """What decides between equal scores: the smaller one."""
    block_max: npt.NDArray[np.float64]
    suffix_max: npt.NDArray[np.float64]
    ordered: bool
    """Ids follow (score descending, tie key ascending)."""
    addresses: tuple[int, int, int, int] = field(init=False)
    """Of the four arrays."""

    def __post_init__(self) -> None:
        arrays = (self.values, self.ties, self.block_max, self.suffix_max)
        object.__setattr__(self, "addresses", tuple(array.ctypes.data for array in arrays))

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_max)

    def first_below(self, score: float) -> int:
        """Return a block before which no score is `score` or below; for ordered scores only."""
        return max(0, int(np.searchsorted(-self.block_max, -score, side="left")) - 1)

    @classmethod
    def of(
        cls,
        values: npt.NDArray[np.float64],
        ties: npt.NDArray[np.int64] | npt.NDArray[np.uint32],
        *,
        ordered: bool,
    ) -> StaticScores:
        """Compute the bounds. Both arrays are padded to whole blocks, scores with -inf."""
        block_max = values.reshape(-1, BLOCK_IDS).max(axis=1) if len(values) else np.empty(0)
        suffix = np.maximum.accumulate(block_max[::-1])[::-1].copy()
        return cls(values, ties, block_max, suffix, ordered)
