"""Conditions as values, and their evaluation to a bitmap over one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from pyroaring import BitMap

from catalog.targeting import accept_term, any_term, exclude_term
from manas._layer import LayerView


@dataclass(frozen=True, slots=True)
class Term:
    """The field has the term."""

    field: str
    term: str


@dataclass(frozen=True, slots=True)
class Range:
    """The field's number lies in the closed interval; None is open."""

    field: str
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class And:
    """All parts hold."""

    parts: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Some part holds."""

    parts: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Clause


@dataclass(frozen=True, slots=True)
class Targets:
    """The ad's targeting accepts the request in one dimension. No values: the request does not say."""

    field: str
    dimension: str
    values: tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class InSchedule:
    """starts <= at < ends; a missing end is open."""

    starts: str
    ends: str
    at_us: int


@dataclass(frozen=True, slots=True)
class Funded:
    """The budget that the document spends from has something left."""


@dataclass(frozen=True, slots=True)
class HasVector:
    """The document has a vector to compare with."""

    field: str


@dataclass(frozen=True, slots=True)
class Is:
    """The document itself."""

    document_id: str


Clause: TypeAlias = Term | Range | And | Or | Not | Targets | InSchedule | Funded | HasVector | Is


@dataclass(frozen=True, slots=True)
class Condition:
    """A named clause of a request with the words to explain it by."""

    name: str
    clause: Clause
    words: str


def evaluate(clause: Clause, view: LayerView) -> BitMap:
    """Return the ids that satisfy the clause, perhaps with dead ones. The bitmap may be shared: do not change it."""
    layer = view.layer
    match clause:
        case Term(field, term):
            return layer.postings(field, term)
        case Range(field, low, high):
            return layer.within(field, low, high)
        case And(parts):
            return intersection([evaluate(p, view) for p in parts])
        case Or(parts):
            return BitMap.union(*[evaluate(p, view) for p in parts])
        case Not(part):
            return view.live - evaluate(part, view)
        case Targets(field, dimension, values):
            accepted = [layer.postings(field, any_term(dimension))]
            accepted += [layer.postings(field, accept_term(dimension, v)) for v in values]
            excluded = [layer.postings(field, exclude_term(dimension, v)) for v in values]
            found = BitMap.union(*accepted)
            return found.difference(*excluded) if excluded else found
        case InSchedule(starts, ends, at_us):
            # The ads outside their schedule are the few: subtract them instead of adding up the many.
            return view.live - layer.within(starts, at_us + 1, None) - layer.within(ends, None, at_us)
        case Funded():
            return view.funded
        case HasVector(field):
            store = layer.vectors(field)
            return store.ids if store is not None else BitMap()
        case Is(document_id):
            internal = layer.internal(document_id)
            return BitMap() if internal is None else BitMap([internal])


def estimate(clause: Clause, view: LayerView) -> int:
    """Return an upper estimate of how many ids satisfy the clause, from counts alone."""
    layer = view.layer
    match clause:
        case Term(field, term):
            return layer.document_frequency(field, term)
        case Range(field, low, high):
            return layer.count_within(field, low, high)
        case And(parts):
            return min(estimate(p, view) for p in parts)
        case Or(parts):
            return min(len(view.live), sum(estimate(p, view) for p in parts))
        case Not(part):
            return max(0, len(view.live) - estimate(part, view))
        case Targets(field, dimension, values):
            terms = [any_term(dimension), *(accept_term(dimension, v) for v in values)]
            return min(len(view.live), sum(layer.document_frequency(field, t) for t in terms))
        case InSchedule(starts, ends, at_us):
            outside = layer.count_within(starts, at_us + 1, None) + layer.count_within(ends, None, at_us)
            return max(0, len(view.live) - outside)
        case Funded():
            return len(view.funded)
        case HasVector(field):
            store = layer.vectors(field)
            return len(store.ids) if store is not None else 0
        case Is():
            return 1


def intersection(bitmaps: list[BitMap]) -> BitMap:
    """Return what all bitmaps have, smallest first."""
    smallest, *rest = sorted(bitmaps, key=len)
    return smallest.intersection(*rest) if rest else smallest
