"""Conditions compiled to a program over blocks of ids.

A program is a list of instructions for a stack of block bitmaps (1024 ids each). Its parts are joined by AND, cheapest
first; after each part an empty block is left at once. When a part consists of short posting lists only, they drive:
blocks without any of their ids are never looked at.

The parts of most requests are those of earlier ones put together anew (this country, that device), and depend on
nothing but a segment's lists: their instructions are kept (`Fragment`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from catalog.targeting import accept_term, any_term, exclude_term
from manas._bits import Words
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
from manas._lately import Lately
from manas._layer import Boost
from manas._number_column import Column
from manas._postings import Posting
from manas.kernels.layout import Code, Op

if TYPE_CHECKING:
    from manas._predicates import Bench
    from manas._special import Found

_DRIVE_BELOW = 1 / 64
"""Short lists drive while they hold less than this share of the ids: with more, most blocks have one of them anyway."""
_NARROW = 1 / 32
"""Ranges that hold less than this share of the ids become a posting list of their own; wider ones are compared id by
id, and only where the other parts left something."""
_FRAGMENT_BYTES = 1_024
"""What a fragment takes besides its lists."""
_ROW, _DRIVER = struct.Struct("<4q"), struct.Struct("<3q")
"""An instruction; and a list that drives: address, ids, how far it has been read."""
_AND, _IF_EMPTY = _ROW.pack(Op.AND, 0, 0, 0), _ROW.pack(Op.IF_EMPTY, 0, 0, 0)
_RANGES = {
    "|u1": (Op.AND_RANGE_U8, False),
    "<u2": (Op.AND_RANGE_U16, False),
    "<u4": (Op.AND_RANGE_U32, False),
    "<i8": (Op.AND_RANGE_INT, False),
    "<f4": (Op.AND_RANGE_F32, True),
    "<f8": (Op.AND_RANGE_FLOAT, True),
}
"""Type of what a column stores -> the instruction that compares it, and whether with floats."""


class Source(Protocol):
    """What a program reads of a segment and of its mutable state."""

    count: int
    fragments: Lately
    """Clause -> its fragment; of this segment only."""

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


@dataclass(slots=True)
class Program:
    """Instructions, the lists that drive, and what must stay in memory while they are used."""

    code: npt.NDArray[np.int64]
    drivers: npt.NDArray[np.int64]
    keep: list[Any] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fragment:
    """The instructions that push what satisfies a clause of posting lists."""

    cost: int
    """An upper estimate of the ids."""
    code: bytes
    drivers: bytes
    """Its lists, if it may drive."""
    keep: tuple[Posting, ...]


def compile_program(source: Source, clauses: Sequence[Clause]) -> Program:
    """Compile clauses that must all hold."""
    return _Compiler(source).program(clauses)


class _Compiler:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._rows: list[tuple[int, int, int, int]] = []
        self._keep: list[Any] = []

    def program(self, clauses: Sequence[Clause]) -> Program:
        source = self._source
        parts: list[Clause] = []
        for clause in clauses:
            parts += clause.parts if isinstance(clause, And) else (clause,)
        fragments = [self._fragment(part) for part in parts]
        costs = [
            estimate_ids(source, part) if fragment is None else fragment.cost
            for part, fragment in zip(parts, fragments, strict=True)
        ]
        ranked = sorted(range(len(parts)), key=costs.__getitem__)
        wide = [place for place in ranked if self._is_wide(parts[place], costs[place])]
        rest = [place for place in ranked if place not in wide] if wide else ranked
        drivers = b""
        benches: list[Bench] = []
        code: list[bytes] = []
        for order, place in enumerate(rest):
            if (fragment := fragments[place]) is not None:
                self._keep.append(fragment)
                code.append(fragment.code)
                if order:
                    code.append(_AND)
                else:
                    drivers = fragment.drivers
            elif order:
                self._and(parts[place], benches)
            else:
                self._push(parts[place], benches)
                drivers = _drivers(self._rows, source.count)
            if self._rows:
                code.append(self._taken())
            code.append(_IF_EMPTY)
        self._words(Op.AND_DENSE if rest else Op.PUSH_DENSE, source.live)
        for place in wide:
            self._emit(Op.IF_EMPTY)
            self._and_range(parts[place])
        for bench in benches:  # dearest of all, so only what has passed everything else is judged
            self._emit(Op.IF_EMPTY)
            self._judge(bench)
        code.append(self._taken())
        table = np.frombuffer(b"".join(code), np.int64).reshape(-1, Code.WIDTH)
        return Program(table, np.frombuffer(drivers, np.int64).reshape(-1, _DRIVER.size // 8), self._keep)

    def _fragment(self, clause: Clause) -> Fragment | None:
        """Return what is kept of a clause, None for one that depends on more than lists."""
        if not isinstance(clause, Targets | Term):
            return None
        kept = self._source.fragments
        fragment: Fragment | None = kept.get(clause)
        if fragment is None:
            own = _Compiler(self._source)
            own._push(clause)
            drivers = _drivers(own._rows, self._source.count)
            postings = tuple(own._keep)
            fragment = Fragment(estimate_ids(self._source, clause), own._taken(), drivers, postings)
            kept.put(clause, fragment, _FRAGMENT_BYTES + sum(posting.held for posting in postings))
        return fragment

    def _is_wide(self, clause: Clause, cost: int) -> bool:
        return isinstance(clause, Range) and cost >= self._source.count * _NARROW

    def _taken(self) -> bytes:
        """Return the instructions emitted since the last call."""
        rows, self._rows = self._rows, []
        return b"".join(_ROW.pack(*row) for row in rows)

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
            self._emit(split, posting.address, posting.count)

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
        self._keep.append(column.stored)
        op, floating = _RANGES[column.stored.dtype.str]
        if floating:
            low = float_bits(-np.inf if clause.low is None else float(clause.low))
            high = float_bits(np.inf if clause.high is None else float(clause.high))
        else:
            low, high = column.packing.within(clause.low, clause.high)
        self._emit(op, column.address, low, high)


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


def bonus_lists(source: Source, boosts: Sequence[Boost]) -> list[tuple[Posting, float]]:
    """Return the posting lists of weighted terms in the order in which their weights are added up."""
    lists = []
    for boost in boosts:
        if (posting := source.posting(boost.field, boost.term)) is not None:
            lists.append((posting, boost.weight))
    return lists


def _single(internal: int) -> Posting:
    return Posting.of(np.array([internal], np.uint32))


def _drivers(rows: Sequence[tuple[int, int, int, int]], count: int) -> bytes:
    """Return the lists of instructions that are about few ids and nothing else."""
    if not rows or any(op not in (Op.PUSH_SPLIT, Op.OR_SPLIT, Op.ANDNOT_SPLIT) for op, *_ in rows):
        return b""
    lists = [(address, size) for op, address, size, _ in rows if op != Op.ANDNOT_SPLIT]
    few = sum(size for _, size in lists) < count * _DRIVE_BELOW
    return b"".join(_DRIVER.pack(address, size, 0) for address, size in lists) if few else b""


def float_bits(value: float) -> int:
    """Return the 64 bits of a float as an integer."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
