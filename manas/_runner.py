"""Programs run over the blocks of a segment: the best k, or the bitmap of all matches."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from manas import kernels
from manas._bits import Words
from manas._compiler import float_bits
from manas._layer import Ids
from manas._postings import Posting
from manas._program import Program
from manas._static_scores import StaticScores
from manas.kernels import Kernel
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, Bonus, Code, Param

_SLICE_BLOCKS = 64
"""Blocks between two looks at the clock when a deadline is given, and with the interpreter's lock kept: some tens of
microseconds of work."""
_DEPTH = 40
"""Of the stack of block bitmaps: filter trees are at most 32 deep."""
_FIRST_ROOM = 1_024
"""Of the heap and of tables: enough for nearly every request."""


class Best(msgspec.Struct, frozen=True):
    """The best candidates in order; `matched` counts all when counting, else what was met before the run stopped."""

    ids: Ids
    scores: npt.NDArray[np.float64]
    ties: npt.NDArray[np.int64]
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
        entries = kernels.load()
        self._top_k, self._match = (entries.top_k, entries.brief.top_k), (entries.match, entries.brief.match)
        stack, bonus_buffer = np.zeros(_DEPTH * BLOCK_WORDS, np.uint64), np.zeros(BLOCK_IDS, np.float64)
        masks = np.zeros(BLOCK_WORDS, np.uint64)
        self._keep = (stack, bonus_buffer, masks)
        parameters = np.zeros(Param.COUNT, np.int64)
        self._address: int = parameters.ctypes.data
        self._p = parameters.data
        self._code, self._driving = _Buffer(), _Buffer()
        self._fresh = np.zeros(Param.COUNT, np.int64)
        """Parameters that are the same for every call."""
        self._fresh[Param.STACK], self._fresh[Param.BONUS_BUFFER] = stack.ctypes.data, bonus_buffer.ctypes.data
        self._fresh[Param.MASKS] = masks.ctypes.data
        self._aimed = self._fresh.data
        """The same, and where `_scores` are."""
        self._scores: StaticScores | None = None
        self._table = np.empty((0, Bonus.WIDTH), np.int64)
        self._resize(_FIRST_ROOM)

    def _resize(self, room: int) -> None:
        self._room = room
        heap = np.empty((3, room), np.int64)
        self._heap_scores, self._heap_ties, self._heap_ids = heap[0].view(np.float64), heap[1], heap[2]
        self._fresh[[Param.HEAP_SCORES, Param.HEAP_TIES, Param.HEAP_IDS]] = heap.ctypes.data + 8 * room * np.arange(3)
        self._scores = None

    def _aim(self, scores: StaticScores) -> None:
        aimed = self._fresh.copy()
        aimed[[Param.STATIC, Param.TIES, Param.BLOCK_MAX, Param.SUFFIX_MAX]] = scores.addresses
        if scores.codes is not None:
            aimed[[Param.CODES, Param.WORD_CODES, Param.LEVELS, Param.RANKS]] = scores.codes.addresses
        aimed[Param.SHORT_TIES], aimed[Param.TIES_RISE] = scores.ties.dtype == np.uint32, scores.ordered
        aimed[Param.BLOCKS] = aimed[Param.UNTIL] = scores.blocks
        self._aimed, self._scores = aimed.data, scores

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
        self._begin(program, scores, k, bonuses, counting=counting)
        p, skipped = self._p, 0
        if after is not None:
            p[Param.AFTER], p[Param.AFTER_SCORE], p[Param.AFTER_TIE] = 1, float_bits(after[0]), after[1]
            if scores.ordered and not bonuses and not counting:
                # Ids follow the score: whatever comes before this block ranks before `after`.
                skipped = p[Param.BLOCK] = scores.first_below(after[0])
        elif scores.codes is not None and not counting and deadline is None and not program.driving:
            p[Param.GUESS] = 1
        complete = self._run(self._top_k, scores.blocks, deadline)
        if p[Param.MISSED]:
            self._begin(program, scores, k, bonuses, counting=counting)
            complete = self._run(self._top_k, scores.blocks, deadline)
        size = p[Param.HEAP_SIZE]
        counted = complete and (counting or (not p[Param.STOPPED] and size < k and not skipped))
        return Best(
            self._heap_ids[:size].astype(np.uint32),
            self._heap_scores[:size].copy(),
            self._heap_ties[:size].copy(),
            p[Param.MATCHED],
            complete,
            counted,
            p[Param.EVALUATED],
        )

    def _begin(
        self,
        program: Program,
        scores: StaticScores,
        k: int,
        bonuses: Sequence[tuple[Posting, float]],
        *,
        counting: bool,
    ) -> None:
        if k > self._room:
            self._resize(k)
        if scores is not self._scores:
            self._aim(scores)
        p = self._p
        p[:] = self._aimed
        self._load(program)
        p[Param.COUNTING], p[Param.K] = counting, k
        if bonuses:
            self._table = _bonus_table(bonuses)
            p[Param.BONUSES], p[Param.BONUS_TABLE] = len(bonuses), self._table.ctypes.data

    def match(self, program: Program, blocks: int, deadline: float | None = None) -> tuple[Words, int, bool]:
        """Return the bitmap of all matches, their number, and whether these are all: no `deadline` came first."""
        p = self._p
        p[:] = self._fresh.data
        p[Param.BLOCKS] = p[Param.UNTIL] = blocks
        self._load(program)
        out = np.zeros(blocks * BLOCK_WORDS, np.uint64)
        p[Param.OUT] = out.ctypes.data
        complete = self._run(self._match, blocks, deadline)
        return out, p[Param.MATCHED], complete

    def _load(self, program: Program) -> None:
        """Set the parameters of a program. It is copied: instructions and drivers hold how far lists have been read."""
        p = self._p
        p[Param.CODE], p[Param.CODE_LENGTH] = self._code.take(program.code), len(program.code) // (8 * Code.WIDTH)
        if driving := program.driving:
            p[Param.DRIVERS], p[Param.DRIVER_TABLE] = program.drivers, self._driving.take(driving)

    def _run(self, kernel: tuple[Kernel, Kernel], blocks: int, deadline: float | None) -> bool:
        """Call a kernel until all blocks are done; return False when the deadline came first.

        The first slice, after which most runs for the best are done, keeps the interpreter's lock: a folded segment is
        no larger, and waiting for the lock afterwards takes longer than a slice where another thread wants it too.
        """
        p, address = self._p, self._address
        releasing, brief = kernel
        if deadline is None:
            if p[Param.GUESS]:  # a sample of all blocks comes first
                brief = releasing
            elif blocks > _SLICE_BLOCKS:
                p[Param.UNTIL] = min(blocks, p[Param.BLOCK] + _SLICE_BLOCKS)
                brief(address)
                if not p[Param.STOPPED]:
                    p[Param.UNTIL], brief = blocks, releasing
            p[Param.FINISH] = 1
            brief(address)
            return True
        complete, call = True, brief
        while p[Param.BLOCK] < blocks and not p[Param.STOPPED]:
            if time.monotonic() >= deadline:
                complete = False
                break
            p[Param.UNTIL] = min(blocks, p[Param.BLOCK] + _SLICE_BLOCKS)
            call(address)
            call = releasing
        p[Param.UNTIL], p[Param.FINISH] = p[Param.BLOCK], 1
        brief(address)
        return complete


class _Buffer:
    """Memory that tables are copied into, call after call."""

    def __init__(self) -> None:
        self._resize(_FIRST_ROOM)

    def _resize(self, room: int) -> None:
        rows = np.empty(room, np.uint8)
        self._view, self._address = rows.data, int(rows.ctypes.data)

    def take(self, table: bytes) -> int:
        """Copy a table and return its address."""
        size = len(table)
        if size > len(self._view):
            self._resize(2 * size)
        self._view[:size] = table
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
