"""Clauses as instructions for a stack of block bitmaps (`_program` puts them together)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from catalog.targeting import accept_term, any_term, exclude_term
from manas._bits import Bits, Words
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
    Targets,
    Term,
)
from manas._postings import Posting
from manas._program_source import Source
from manas.kernels.layout import Op

if TYPE_CHECKING:
    from manas._predicates import Bench

_DRIVE_BELOW = 1 / 64
"""Short lists drive while they hold less than this share of the ids: with more, most blocks have one of them anyway."""
NARROW = 1 / 32
"""Ranges that hold less than this share of the ids become a posting list of their own; wider ones are compared id by
id, and only where the other parts left something."""
ROW, DRIVER = struct.Struct("<4q"), struct.Struct("<3q")
"""An instruction; and a list that drives: address, ids, how far it has been read."""
_RANGES = {
    "|u1": (Op.AND_RANGE_U8, False),
    "<u2": (Op.AND_RANGE_U16, False),
    "<u4": (Op.AND_RANGE_U32, False),
    "<i8": (Op.AND_RANGE_INT, False),
    "<f4": (Op.AND_RANGE_F32, True),
    "<f8": (Op.AND_RANGE_FLOAT, True),
}
"""Type of what a column stores -> the instruction that compares it, and whether with floats."""


class Compiler:
    """Emits instructions of clauses, and keeps what must stay in memory while they are used."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.rows: list[tuple[int, int, int, int]] = []
        self.kept: list[Any] = []

    def taken(self) -> bytes:
        """Return the instructions emitted since the last call."""
        rows, self.rows = self.rows, []
        return b"".join(ROW.pack(*row) for row in rows)

    # ---- emitting ----

    def emit(self, op: int, a: int = 0, b: int = 0, c: int = 0) -> None:
        """Add an instruction."""
        self.rows.append((op, a, b, c))

    def _bits(self, op: int, bits: Bits) -> None:
        self.kept.append(bits)
        self.emit(op, bits.address)

    def _words(self, op: int, words: Words) -> None:
        self.kept.append(words)
        self.emit(op, words.ctypes.data)

    def _posting(self, posting: Posting, dense: int, split: int) -> None:
        self.kept.append(posting)
        if posting.dense is not None:
            self.emit(dense, posting.address)
        else:
            self.emit(split, posting.address, posting.count)

    def _or(self, postings: Sequence[Posting | None]) -> None:
        first = True
        for posting in postings:
            if posting is not None:
                op = (Op.PUSH_DENSE, Op.PUSH_SPLIT) if first else (Op.OR_DENSE, Op.OR_SPLIT)
                self._posting(posting, *op)
                first = False
        if first:
            self.emit(Op.PUSH_NONE)

    def judge(self, bench: Bench) -> None:
        """Keep what a bench says that it holds for."""
        self.kept.append(bench)
        self.emit(Op.AND_PREDICATE, bench.address)

    def join(self, clause: Clause, later: list[Bench] | None = None) -> None:
        """Join a part to what is on the stack."""
        match clause:
            case Not(Term(name, term)):
                if (posting := self._source.posting(name, term)) is not None:
                    self._posting(posting, Op.ANDNOT_DENSE, Op.ANDNOT_SPLIT)
            case Not(Is(document_id)):
                if (internal := self._source.internal(document_id)) is not None:
                    self._posting(_single(internal), Op.ANDNOT_DENSE, Op.ANDNOT_SPLIT)
            case Not(part):
                self.push(part)
                self.emit(Op.ANDNOT)
            case Term(name, term):
                posting = self._source.posting(name, term)
                if posting is None or posting.dense is None:
                    self.push(clause)
                    self.emit(Op.AND)
                else:
                    self._posting(posting, Op.AND_DENSE, Op.AND_DENSE)
            case Funded():
                self.emit(Op.AND_DENSE, self._source.funded.address)
            case InSchedule(starts, ends, at_us):
                self._bits(Op.AND_DENSE, self._source.scheduled(starts, ends, at_us))
            case HasVector(name):
                self._bits(Op.AND_DENSE, self._source.with_vector(name))
            case _:
                self.push(clause, later)
                self.emit(Op.AND)

    def push(self, clause: Clause, later: list[Bench] | None = None) -> None:
        """Push what satisfies a part; with `later`, what is to be judged at the end goes there."""
        source = self._source
        match clause:
            case Term(name, term):
                self._or([source.posting(name, term)])
            case Range():
                self._push_range(clause)
            case And(parts):
                self.push(parts[0])
                for part in parts[1:]:
                    self.join(part)
            case Or(parts):
                self._push_or(parts)
            case Not(part):
                self.push(part)
                self.emit(Op.NOT)
            case Targets(name, dimension, values):
                accepted = [any_term(dimension), *(accept_term(dimension, value) for value in values)]
                self._or([source.posting(name, term) for term in accepted])
                for value in values:
                    if (posting := source.posting(name, exclude_term(dimension, value))) is not None:
                        self._posting(posting, Op.ANDNOT_DENSE, Op.ANDNOT_SPLIT)
            case InSchedule(starts, ends, at_us):
                self._bits(Op.PUSH_DENSE, source.scheduled(starts, ends, at_us))
            case Funded():
                self.emit(Op.PUSH_DENSE, source.funded.address)
            case HasVector(name):
                self._bits(Op.PUSH_DENSE, source.with_vector(name))
            case Is(document_id):
                internal = source.internal(document_id)
                self._or([None if internal is None else _single(internal)])
            case Meets() | Inside() | Near() | Runs():
                found = source.special(clause)
                self._or(found.postings)
                if found.bench is not None:
                    if later is None:
                        self.judge(found.bench)
                    else:
                        later.append(found.bench)

    def _push_or(self, parts: Sequence[Clause]) -> None:
        terms = [part for part in parts if isinstance(part, Term)]
        others = [part for part in parts if not isinstance(part, Term)]
        if terms:
            self._or([self._source.posting(term.field, term.term) for term in terms])
        for place, part in enumerate(others):
            self.push(part)
            if terms or place:
                self.emit(Op.OR)

    def _push_range(self, clause: Range) -> None:
        column = self._source.column(clause.field)
        if column is None:
            self.emit(Op.PUSH_NONE)
            return
        found = column.slice(clause.low, clause.high)
        count = found.stop - found.start
        if count < self._source.count * NARROW:
            self._or([Posting.of(np.sort(column.order[found]))])
            return
        self.emit(Op.PUSH_DENSE, self._source.live.address)
        self.and_range(clause)

    def and_range(self, clause: Clause) -> None:
        """Keep what is in a range, compared id by id."""
        if not isinstance(clause, Range):
            raise TypeError(f"a range is expected, got {clause}")
        column = self._source.column(clause.field)
        if column is None:
            self.emit(Op.PUSH_NONE)
            self.emit(Op.AND)
            return
        if column.present is not None:
            self._words(Op.AND_DENSE, column.present)
        self.kept.append(column.stored)
        op, floating = _RANGES[column.stored.dtype.str]
        if floating:
            low = float_bits(-np.inf if clause.low is None else float(clause.low))
            high = float_bits(np.inf if clause.high is None else float(clause.high))
        else:
            low, high = column.packing.within(clause.low, clause.high)
        self.emit(op, column.address, low, high)


def _single(internal: int) -> Posting:
    return Posting.of(np.array([internal], np.uint32))


def driving_lists(rows: Sequence[tuple[int, int, int, int]], count: int) -> bytes:
    """Return the lists of instructions that are about few ids and nothing else, as the kernels read them."""
    if not rows or any(op not in (Op.PUSH_SPLIT, Op.OR_SPLIT, Op.ANDNOT_SPLIT) for op, *_ in rows):
        return b""
    lists = [(address, size) for op, address, size, _ in rows if op != Op.ANDNOT_SPLIT]
    few = sum(size for _, size in lists) < count * _DRIVE_BELOW
    return b"".join(DRIVER.pack(address, size, 0) for address, size in lists) if few else b""


def float_bits(value: float) -> int:
    """Return the 64 bits of a float as an integer."""
    return int(struct.unpack("<q", struct.pack("<d", value))[0])
