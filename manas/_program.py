"""Conditions compiled to a program over blocks of ids.

A program is a list of instructions for a stack of block bitmaps (1024 ids each). Its parts are joined by AND, cheapest
first; after each part an empty block is left at once. When a part consists of short posting lists only, they drive:
blocks without any of their ids are never looked at.

The parts of most requests are those of earlier ones put together anew (this country, that device, up to that price),
and depend on nothing but a segment's lists and columns: their instructions are kept (`Fragment`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

import msgspec

from manas._bits import Bits
from manas._clauses import And, Clause, Funded, HasVector, InSchedule, Or, Range, Targets, Term
from manas._compiler import DRIVER, NARROW, ROW, Compiler, driving_lists
from manas._layer import Boost
from manas._postings import Posting
from manas._program_source import Source, estimate_ids
from manas.kernels.layout import Op

if TYPE_CHECKING:
    from manas._predicates import Bench

_FRAGMENT_BYTES = 1_024
"""What a fragment takes besides its lists."""


class Program(msgspec.Struct, frozen=True):
    """Instructions, the lists that drive, and what must stay in memory while they are used."""

    code: bytes
    driving: bytes
    keep: Sequence[Any]

    @property
    def drivers(self) -> int:
        """Number of lists that drive."""
        return len(self.driving) // DRIVER.size


class Fragment(msgspec.Struct, frozen=True):
    """The instructions of a clause of posting lists, as the first part of a program and as one to be joined to it.

    Of a wide range only the latter: it is compared where the other parts left something.
    """

    cost: int
    """An upper estimate of the ids."""
    first: bytes
    """Pushes what satisfies the clause."""
    later: bytes
    """Joins it to what is there."""
    driving: bytes
    """Its lists, if it may drive."""
    keep: tuple[Any, ...]


_cost = attrgetter("cost")


def compile_program(source: Source, clauses: Iterable[Clause]) -> Program:
    """Compile clauses that must all hold."""
    parts: list[Clause] = []
    fragments: list[Fragment] = []
    wide: list[Fragment] = []
    most: list[Bits] = []
    whole, kept = True, source.fragments
    for clause in clauses:
        if isinstance(clause, And):
            parts += clause.parts
        else:
            parts.append(clause)
    for part in parts:
        if isinstance(part, Funded):
            most.append(source.funded)
            continue
        if isinstance(part, InSchedule):
            most.append(source.scheduled(part.starts, part.ends, part.at_us))
            continue
        if isinstance(part, HasVector):
            having = source.with_vector(part.field)
            if having.count < source.count:
                most.append(having)
            continue
        fragment: Fragment | None = kept.get(part)
        if fragment is None:
            fragment = _compared(source, part) if isinstance(part, Range) else _fragment(source, part)
        if fragment is None:
            whole = False
        else:
            (wide if isinstance(part, Range) else fragments).append(fragment)
    fragments.sort(key=_cost)
    if not whole or not fragments:
        return _mixed(source, [part for part in parts if not _is_listed(part)], fragments)
    code = [fragment.later for fragment in fragments]
    code[0] = fragments[0].first
    if source.live.count != source.count:
        most.append(source.live)
    code += [ROW.pack(Op.AND_DENSE, bits.address, 0, 0) for bits in most]
    if wide:
        wide.sort(key=_cost)
        code += [fragment.later for fragment in wide]
    return Program(b"".join(code), fragments[0].driving, [*fragments, *most, *wide])


def _is_listed(clause: Clause) -> bool:
    """Tell whether a clause depends on posting lists alone."""
    match clause:
        case Term() | Targets():
            return True
        case Or(parts):
            return all(isinstance(part, Term) for part in parts)
    return False


def _fragment(source: Source, clause: Clause) -> Fragment | None:
    """Return what is to be kept of a clause from now on, None for one that depends on more than lists."""
    if not _is_listed(clause):
        return None
    first, later = Compiler(source), Compiler(source)
    first.push(clause)
    driving = driving_lists(first.rows, source.count)
    first.emit(Op.IF_EMPTY)
    later.join(clause)
    later.emit(Op.IF_EMPTY)
    postings = tuple(first.kept)
    cost = estimate_ids(source, clause)
    fragment = Fragment(cost, first.taken(), later.taken(), driving, postings)
    source.fragments.put(clause, fragment, _FRAGMENT_BYTES + sum(posting.held for posting in postings))
    return fragment


def _compared(source: Source, clause: Range) -> Fragment | None:
    """Return what is to be kept of a range that is compared id by id, None for a narrow one: that is a list of ids."""
    cost = estimate_ids(source, clause)
    if cost < source.count * NARROW:
        return None
    later = Compiler(source)
    later.emit(Op.IF_EMPTY)
    later.and_range(clause)
    fragment = Fragment(cost, b"", later.taken(), b"", tuple(later.kept))
    source.fragments.put(clause, fragment, _FRAGMENT_BYTES)
    return fragment


def _mixed(source: Source, others: Sequence[Clause], fragments: Sequence[Fragment]) -> Program:
    """Return the program of clauses that are no fragments, and of fragments, cheapest first."""
    compiler = Compiler(source)
    costs = [estimate_ids(source, part) for part in others]
    narrow = source.count * NARROW
    wide = [place for place, part in enumerate(others) if isinstance(part, Range) and costs[place] >= narrow]
    ranked: list[tuple[int, Fragment | Clause]] = [(fragment.cost, fragment) for fragment in fragments]
    ranked += [(costs[place], part) for place, part in enumerate(others) if place not in wide]
    ranked.sort(key=itemgetter(0))
    driving = b""
    benches: list[Bench] = []
    code: list[bytes] = []
    for order, (_, part) in enumerate(ranked):
        if isinstance(part, Fragment):
            compiler.kept.append(part)
            code.append(part.later if order else part.first)
            driving = driving if order else part.driving
            continue
        if order:
            compiler.join(part, benches)
        else:
            compiler.push(part, benches)
            driving = driving_lists(compiler.rows, source.count)
        compiler.emit(Op.IF_EMPTY)
        code.append(compiler.taken())
    compiler.emit(Op.AND_DENSE if ranked else Op.PUSH_DENSE, source.live.address)
    for place in sorted(wide, key=costs.__getitem__):
        compiler.emit(Op.IF_EMPTY)
        compiler.and_range(others[place])
    for bench in benches:  # dearest of all, so only what has passed everything else is judged
        compiler.emit(Op.IF_EMPTY)
        compiler.judge(bench)
    code.append(compiler.taken())
    return Program(b"".join(code), driving, compiler.kept)


def bonus_lists(source: Source, boosts: Sequence[Boost]) -> list[tuple[Posting, float]]:
    """Return the posting lists of weighted terms in the order in which their weights are added up."""
    lists = []
    for boost in boosts:
        if (posting := source.posting(boost.field, boost.term)) is not None:
            lists.append((posting, boost.weight))
    return lists
