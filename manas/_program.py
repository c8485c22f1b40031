"""Conditions compiled to a program over blocks of ids, and its running: the best k, or the bitmap of all matches.

A program is a list of instructions for a stack of block bitmaps (1024 ids each). Its parts are joined by AND, cheapest
first; after each part an empty block is left at once. When a part consists of short posting lists only, they drive:
blocks without any of their ids are never looked at.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from catalog.targeting import accept_term, any_term, exclude_term
from manas import kernels
from manas._bits import Words, ids_of
from manas._clauses import (
    And,
    Clause,
    Funded,
    HasVector,
    InSchedule,
    Inside,
    Is,
    Meets,
    Near,
    Not,
    Or,
    Range,
    Runs,
    Special,
    Targets,
    Term,
)
from manas._layer import Boost, Ids
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, Bonus, Code, Op, Param

if TYPE_CHECKING:
    from manas._predicates import Bench
    from manas._special import Found

_DRIVE_BELOW = 1 / 64
"""Short lists drive while they hold less than this share of the ids: with more, most blocks have one of them anyway."""
_NARROW = 1 / 32
"""Ranges that hold less than this share of the ids become a posting list of their own; wider ones are compared id by
id, and only where the other parts left something."""
_SLICE_BLOCKS = 64
"""Blocks between two looks at the clock when a deadline is given: some tens of microseconds of work."""
_DEPTH = 40
"""Of the stack of block bitmaps: filter trees are at most 32 deep."""


@dataclass(frozen=True, slots=True)
class Payloads:
    """The numbers that a posting list carries: one for each id, aligned with the ids in ascending order."""

    values: npt.NDArray[np.float32]
    bounds: npt.NDArray[np.float32]
    """The largest of each block (dense list) or of each BOUND_IDS ids (split list)."""
    suffix: npt.NDArray[np.float32]
    """The largest from there on."""
    ranks: Ids | None
    """Of a dense list: how many of its ids come before each block."""

    @classmethod
    def of(cls, values: npt.NDArray[np.float32], bounds: npt.NDArray[np.float32], ranks: Ids | None = None) -> Payloads:
        """Compute the suffix maxima."""
        return cls(values, bounds, np.maximum.accumulate(bounds[::-1])[::-1].copy(), ranks)


@dataclass(frozen=True, slots=True)
class Posting:
    """A posting list in memory or mapped: `dense` words, or ascending `split` ids, and perhaps payloads."""

    count: int
    address: int
    dense: Words | None = None
    split: Ids | None = None
    payloads: Payloads | None = None

    @property
    def ids(self) -> Ids:
        """The ids, ascending."""
        if self.split is not None:
            return self.split
        return ids_of(self.dense) if self.dense is not None else np.empty(0, np.uint32)

    @classmethod
    def of(cls, ids: Ids) -> Posting:
        """Return a split list of ascending ids."""
        return cls(len(ids), ids.ctypes.data, split=ids)

    def payloads_of(self, ids: Ids) -> npt.NDArray[np.float64]:
        """Return the payload of each of `ids` (in any order): 0 where the list does not have it, 1 without payloads."""
        if self.dense is not None:
            words, bits = self.dense[ids >> np.uint32(6)], (ids & np.uint32(63)).astype(np.uint64)
            has: npt.NDArray[np.bool_] = (words >> bits) & np.uint64(1) != 0
            if self.payloads is None or self.payloads.ranks is None:
                return has.astype(np.float64)
            found = ids[has]
            blocks = found // np.uint32(BLOCK_IDS)
            places = self.payloads.ranks[blocks].astype(np.int64)
            # Within the block: the whole words before the id's own, and the bits before it.
            own = self.dense.reshape(-1, BLOCK_WORDS)[blocks]
            word = (found >> np.uint32(6)) & np.uint32(BLOCK_WORDS - 1)
            earlier = np.arange(BLOCK_WORDS, dtype=np.uint32) < word[:, None]
            places += (np.bitwise_count(own) * earlier).sum(axis=1, dtype=np.int64)
            below = (np.uint64(1) << bits[has]) - np.uint64(1)
            places += np.bitwise_count(words[has] & below)
        else:
            own_ids = self.ids
            at = np.searchsorted(own_ids, ids)
            has = np.zeros(len(ids), bool)
            inside = at < len(own_ids)
            has[inside] = own_ids[at[inside]] == ids[inside]
            if self.payloads is None:
                return has.astype(np.float64)
            places = at[has]
        result = np.zeros(len(ids))
        result[has] = self.payloads.values[places]
        return result


class Source(Protocol):
    """What a program reads of a segment and of its mutable state."""

    count: int

    def posting(self, field: str, term: str) -> Posting | None:
        """Return the posting list of a term, None when no document has it."""

    def column(self, field: str) -> Column | None:
        """Return a numeric column."""

    @property
    def live(self) -> Words:
        """Ids that are not hidden by newer layers."""

    @property
    def funded(self) -> Words:
        """Ids whose budget has something left."""

    def scheduled(self, starts: str, ends: str, at_us: int) -> Words:
        """Return the ids whose schedule has the instant."""

    def with_vector(self, field: str) -> Words:
        """Return the ids that have a vector."""

    def internal(self, document_id: str) -> int | None:
        """Return the internal id of a document."""

    def special(self, clause: Special) -> Found:
        """Return the lists of a predicate, circles, points or weekly hours."""


@dataclass(frozen=True, slots=True)
class Column:
    """A numeric column: values by id (padded), its sorted order, and who has a value (None: everybody)."""

    values: npt.NDArray[Any]
    sorted: npt.NDArray[Any]
    order: Ids
    present: Words | None

    def slice(self, low: float | None, high: float | None) -> slice:
        """Return the place of the closed interval in `sorted`."""
        start = 0 if low is None else int(np.searchsorted(self.sorted, low, side="left"))
        stop = len(self.sorted) if high is None else int(np.searchsorted(self.sorted, high, side="right"))
        return slice(start, max(start, stop))


@dataclass(slots=True)
class Program:
    """Instructions, the lists that drive, and what must stay in memory while they are used."""

    code: npt.NDArray[np.int64]
    cursors: int
    drivers: npt.NDArray[np.int64]
    keep: list[Any] = field(default_factory=list)


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


def compile_program(source: Source, clauses: Sequence[Clause]) -> Program:
    """Compile clauses that must all hold."""
    return _Compiler(source).program(clauses)


class _Compiler:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows: list[tuple[int, int, int, int]] = []
        self._cursors = 0
        self._keep: list[Any] = []

    def program(self, clauses: Sequence[Clause]) -> Program:
        source = self._source
        parts: list[Clause] = []
        for clause in clauses:
            parts += clause.parts if isinstance(clause, And) else (clause,)
        ranked = sorted((self._cost(part), place) for place, part in enumerate(parts))
        wide = [place for _, place in ranked if self._is_wide(parts[place])]
        rest = [place for _, place in ranked if not self._is_wide(parts[place])]
        drivers: list[tuple[int, int, int]] = []
        benches: list[Bench] = []
        started = False
        for order, place in enumerate(rest):
            part = parts[place]
            if not started:
                before = len(self._rows)
                self._push(part, benches)
                if order == 0:
                    drivers = self._driving(before)
                started = True
            else:
                self._and(part, benches)
            self._emit(Op.IF_EMPTY, -1)
        if not started:
            self._words(Op.PUSH_DENSE, source.live)
        else:
            self._words(Op.AND_DENSE, source.live)
        for place in wide:
            self._emit(Op.IF_EMPTY, -1)
            self._and_range(parts[place])
        for bench in benches:  # dearest of all, so only what has passed everything else is judged
            self._emit(Op.IF_EMPTY, -1)
            self._judge(bench)
        end = len(self._rows)
        code = np.array(self._rows, np.int64).reshape(-1, Code.WIDTH)
        code[(code[:, 0] == Op.IF_EMPTY) & (code[:, 1] == -1), 1] = end
        return Program(code, self._cursors, np.array(drivers, np.int64).reshape(-1, 3), self._keep)

    # ---- costs and kinds ----

    def _cost(self, clause: Clause) -> int:
        return estimate_ids(self._source, clause)

    def _is_wide(self, clause: Clause) -> bool:
        if not isinstance(clause, Range):
            return False
        return self._cost(clause) >= self._source.count * _NARROW

    def _driving(self, before: int) -> list[tuple[int, int, int]]:
        rows = self._rows[before:]
        if not rows or any(op not in (Op.PUSH_SPLIT, Op.OR_SPLIT, Op.ANDNOT_SPLIT) for op, *_ in rows):
            return []
        lists = [(address, count, cursor) for op, address, count, cursor in rows if op != Op.ANDNOT_SPLIT]
        return lists if sum(count for _, count, _ in lists) < self._source.count * _DRIVE_BELOW else []

    # ---- emitting ----

    def _emit(self, op: int, a: int = 0, b: int = 0, c: int = 0) -> None:
        self._rows.append((op, a, b, c))

    def _words(self, op: int, words: Words) -> None:
        self._keep.append(words)
        self._emit(op, words.ctypes.data)

    def _posting(self, posting: Posting, dense: int, split: int) -> None:
        self._keep.append(posting)
        if posting.dense is not None:
            self._emit(dense, posting.address)
        else:
            self._emit(split, posting.address, posting.count, self._cursors)
            self._cursors += 1

    def _or(self, postings: Sequence[Posting | None]) -> None:
        first = True
        for posting in postings:
            if posting is not None:
                op = (Op.PUSH_DENSE, Op.PUSH_SPLIT) if first else (Op.OR_DENSE, Op.OR_SPLIT)
                self._posting(posting, *op)
                first = False
        if first:
            self._emit(Op.PUSH_NONE)

    def _judge(self, bench: Bench) -> None:
        self._keep.append(bench)
        self._emit(Op.AND_PREDICATE, bench.address)

    def _and(self, clause: Clause, later: list[Bench] | None = None) -> None:
        """Join a part to what is on the stack."""
        match clause:
            case Not(Term(name, term)):
                if (posting := self._source.posting(name, term)) is not None:
                    self._posting(posting, Op.ANDNOT_DENSE, Op.ANDNOT_SPLIT)
            case Not(Is(document_id)):
                if (internal := self._source.internal(document_id)) is not None:
                    self._posting(_single(internal), Op.ANDNOT_DENSE, Op.ANDNOT_SPLIT)
            case Not(part):
                self._push(part)
                self._emit(Op.ANDNOT)
            case Funded():
                self._words(Op.AND_DENSE, self._source.funded)
            case InSchedule(starts, ends, at_us):
                self._words(Op.AND_DENSE, self._source.scheduled(starts, ends, at_us))
            case HasVector(name):
                self._words(Op.AND_DENSE, self._source.with_vector(name))
            case _:
                self._push(clause, later)
                self._emit(Op.AND)

    def _push(self, clause: Clause, later: list[Bench] | None = None) -> None:
        """Push what satisfies a part; with `later`, what is to be judged at the end goes there."""
        source = self._source
        match clause:
            case Term(name, term):
                self._or([source.posting(name, term)])
            case Range():
                self._push_range(clause)
            case And(parts):
                self._push(parts[0])
                for part in parts[1:]:
                    self._and(part)
            case Or(parts):
                self._push_or(parts)
            case Not(part):
                self._push(part)
                self._emit(Op.NOT)
            case Targets(name, dimension, values):
                accepted = [any_term(dimension), *(accept_term(dimension, value) for value in values)]
                self._or([source.posting(name, term) for term in accepted])
                for value in values:
                    if (posting := source.posting(name, exclude_term(dimension, value))) is not None:
                        self._posting(posting, Op.ANDNOT_DENSE, Op.ANDNOT_SPLIT)
            case InSchedule(starts, ends, at_us):
                self._words(Op.PUSH_DENSE, source.scheduled(starts, ends, at_us))
            case Funded():
                self._words(Op.PUSH_DENSE, source.funded)
            case HasVector(name):
                self._words(Op.PUSH_DENSE, source.with_vector(name))
            case Is(document_id):
                internal = source.internal(document_id)
                self._or([None if internal is None else _single(internal)])
            case Meets() | Inside() | Near() | Runs():
                found = source.special(clause)
                self._or(found.postings)
                if found.bench is not None:
                    if later is None:
                        self._judge(found.bench)
                    else:
                        later.append(found.bench)

    def _push_or(self, parts: Sequence[Clause]) -> None:
        terms = [part for part in parts if isinstance(part, Term)]
        others = [part for part in parts if not isinstance(part, Term)]
        if terms:
            self._or([self._source.posting(term.field, term.term) for term in terms])
        for place, part in enumerate(others):
            self._push(part)
            if terms or place:
                self._emit(Op.OR)

    def _push_range(self, clause: Range) -> None:
        column = self._source.column(clause.field)
        if column is None:
            self._emit(Op.PUSH_NONE)
            return
        found = column.slice(clause.low, clause.high)
        count = found.stop - found.start
        if count < self._source.count * _NARROW:
            self._or([Posting.of(np.sort(column.order[found]))])
            return
        self._words(Op.PUSH_DENSE, self._source.live)
        self._and_range(clause)

    def _and_range(self, clause: Clause) -> None:
        if not isinstance(clause, Range):
            raise TypeError(f"a range is expected, got {clause}")
        column = self._source.column(clause.field)
        if column is None:
            self._emit(Op.PUSH_NONE)
            self._emit(Op.AND)
            return
        if column.present is not None:
            self._words(Op.AND_DENSE, column.present)
        self._keep.append(column.values)
        if column.values.dtype == np.float64:
            low = _float_bits(-np.inf if clause.low is None else float(clause.low))
            high = _float_bits(np.inf if clause.high is None else float(clause.high))
            self._emit(Op.AND_RANGE_FLOAT, column.values.ctypes.data, low, high)
        else:
            low = -(1 << 63) if clause.low is None else int(clause.low)
            high = (1 << 63) - 1 if clause.high is None else int(clause.high)
            self._emit(Op.AND_RANGE_INT, column.values.ctypes.data, low, high)


def estimate_ids(source: Source, clause: Clause) -> int:
    """Return an upper estimate of how many ids satisfy the clause, from counts alone."""

    def frequency(name: str, term: str) -> int:
        posting = source.posting(name, term)
        return 0 if posting is None else posting.count

    match clause:
        case Term(name, term):
            return frequency(name, term)
        case Range(name, low, high):
            column = source.column(name)
            if column is None:
                return 0
            found = column.slice(low, high)
            return int(found.stop - found.start)
        case And(parts):
            return min(estimate_ids(source, part) for part in parts)
        case Or(parts):
            return min(source.count, sum(estimate_ids(source, part) for part in parts))
        case Targets(name, dimension, values):
            terms = [any_term(dimension), *(accept_term(dimension, value) for value in values)]
            return min(source.count, sum(frequency(name, term) for term in terms))
        case Is():
            return 1
        case Not(part):
            return max(0, source.count - estimate_ids(source, part))
        case Meets() | Inside() | Near() | Runs():
            return source.special(clause).estimate
    return source.count


class Runner:
    """Runs programs over one segment's arrays; buffers are its own, so each thread has its own runner."""

    def __init__(self) -> None:
        self._kernels = kernels.load()
        self._stack = np.zeros(_DEPTH * BLOCK_WORDS, np.uint64)
        self._bonus_buffer = np.zeros(BLOCK_IDS, np.float64)

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
        p, cursors = self._parameters(program, scores.blocks)
        p[Param.STATIC], p[Param.TIES] = scores.values.ctypes.data, scores.ties.ctypes.data
        p[Param.BLOCK_MAX], p[Param.SUFFIX_MAX] = scores.block_max.ctypes.data, scores.suffix_max.ctypes.data
        p[Param.TIES_RISE], p[Param.COUNTING], p[Param.K] = scores.ordered, counting, k
        heap_scores, heap_ties = np.empty(k, np.float64), np.empty(k, np.int64)
        heap_ids = np.empty(k, np.int64)
        p[Param.HEAP_SCORES], p[Param.HEAP_TIES] = heap_scores.ctypes.data, heap_ties.ctypes.data
        p[Param.HEAP_IDS] = heap_ids.ctypes.data
        table = np.zeros((len(bonuses), Bonus.WIDTH), np.int64)
        for row, (posting, weight) in zip(table, bonuses, strict=True):
            row[Bonus.DENSE], row[Bonus.ADDRESS] = posting.dense is not None, posting.address
            row[Bonus.COUNT], row[Bonus.WEIGHT] = posting.count, _float_bits(weight)
            if (payloads := posting.payloads) is not None:
                row[Bonus.PAYLOAD], row[Bonus.BOUNDS] = payloads.values.ctypes.data, payloads.bounds.ctypes.data
                row[Bonus.SUFFIX] = payloads.suffix.ctypes.data
                row[Bonus.RANKS] = 0 if payloads.ranks is None else payloads.ranks.ctypes.data
        p[Param.BONUSES], p[Param.BONUS_TABLE] = len(bonuses), table.ctypes.data
        p[Param.BONUS_BUFFER] = self._bonus_buffer.ctypes.data
        skipped = 0
        if after is not None:
            p[Param.AFTER], p[Param.AFTER_SCORE], p[Param.AFTER_TIE] = 1, _float_bits(after[0]), after[1]
            if scores.ordered and not bonuses and not counting:
                # Ids follow the score: whatever comes before this block ranks before `after`.
                skipped = p[Param.BLOCK] = scores.first_below(after[0])
        complete = self._run(self._kernels.top_k, p, scores.blocks, deadline)
        size = int(p[Param.HEAP_SIZE])
        order = np.lexsort((heap_ties[:size], -heap_scores[:size]))
        counted = complete and (bool(counting) or (not p[Param.STOPPED] and size < k and not skipped))
        del cursors
        return Best(
            heap_ids[:size][order].astype(np.uint32),
            heap_scores[:size][order],
            int(p[Param.MATCHED]),
            complete,
            counted,
            int(p[Param.EVALUATED]),
        )

    def match(self, program: Program, blocks: int) -> tuple[Words, int]:
        """Return the bitmap of all matches and their number."""
        p, cursors = self._parameters(program, blocks)
        out = np.zeros(blocks * BLOCK_WORDS, np.uint64)
        p[Param.OUT] = out.ctypes.data
        self._run(self._kernels.match, p, blocks, None)
        del cursors
        return out, int(p[Param.MATCHED])

    def _parameters(self, program: Program, blocks: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        p = np.zeros(Param.COUNT, np.int64)
        cursors = np.zeros(max(1, program.cursors), np.int64)
        p[Param.BLOCKS], p[Param.UNTIL] = blocks, blocks
        p[Param.CODE], p[Param.CODE_LENGTH] = program.code.ctypes.data, len(program.code)
        p[Param.CURSORS], p[Param.STACK] = cursors.ctypes.data, self._stack.ctypes.data
        p[Param.DRIVERS], p[Param.DRIVER_TABLE] = len(program.drivers), program.drivers.ctypes.data
        return p, cursors

    @staticmethod
    def _run(kernel: Any, p: npt.NDArray[np.int64], blocks: int, deadline: float | None) -> bool:
        """Call a kernel until all blocks are done; return False when the deadline came first."""
        address = p.ctypes.data
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


@dataclass(frozen=True, slots=True)
class StaticScores:
    """Scores that do not depend on the request, by id and bounded per block."""

    values: npt.NDArray[np.float64]
    ties: npt.NDArray[np.int64]
    block_max: npt.NDArray[np.float64]
    suffix_max: npt.NDArray[np.float64]
    ordered: bool
    """Ids follow (score descending, tie key ascending)."""

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_max)

    def first_below(self, score: float) -> int:
        """Return a block before which no score is `score` or below; for ordered scores only."""
        return max(0, int(np.searchsorted(-self.block_max, -score, side="left")) - 1)

    @classmethod
    def of(cls, values: npt.NDArray[np.float64], ties: npt.NDArray[np.int64], *, ordered: bool) -> StaticScores:
        """Compute the bounds. Both arrays are padded to whole blocks, scores with -inf."""
        block_max = values.reshape(-1, BLOCK_IDS).max(axis=1) if len(values) else np.empty(0)
        suffix = np.maximum.accumulate(block_max[::-1])[::-1].copy()
        return cls(values, ties, block_max, suffix, ordered)


def bonus_lists(source: Source, boosts: Sequence[Boost]) -> list[tuple[Posting, float]]:
    """Return the posting lists of weighted terms in the order in which their weights are added up."""
    lists = []
    for boost in boosts:
        if (posting := source.posting(boost.field, boost.term)) is not None:
            lists.append((posting, boost.weight))
    return lists


def _single(internal: int) -> Posting:
    return Posting.of(np.array([internal], np.uint32))


def _float_bits(value: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
