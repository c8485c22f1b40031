"""The delta with what of it has budget left: conditions evaluated to roaring bitmaps, scores by numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import Serving
from catalog.targeting import ANY, accept_term, any_term, exclude_term
from catalog.values import datetime_of
from manas._bits import Words, words_of
from manas._clauses import (
    And,
    Clause,
    Condition,
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
from manas._delta import Delta
from manas._geo import cells_at
from manas._layer import After, Boost, Candidates, Counts, Ids, id_array
from manas._predicates import EVERY, request_terms
from manas._schema import MICROS
from manas._special import user_zone

_NOBODY = Candidates(np.empty(0, np.uint32), np.empty(0), 0, True, True, "score all 0 survivors")


class DeltaView:
    """Answers conditions over the delta. Not safe for threads: its owner locks."""

    def __init__(self, layer: Delta) -> None:
        self.layer = layer
        self.funded = BitMap()

    @property
    def live(self) -> BitMap:
        """Slots in use."""
        return self.layer.live

    def fund(self, field: str, keys: Iterable[str], funded: bool) -> None:
        """Note that budgets have something left, or nothing any more."""
        for key in keys:
            if funded:
                self.funded |= self.layer.postings(field, key)
            else:
                self.funded -= self.layer.postings(field, key)

    def __len__(self) -> int:
        return len(self.layer.live)

    def __contains__(self, internal: int) -> bool:
        return internal in self.layer.live

    def holders(self, field: str, term: str) -> BitMap:
        """Return the slots whose field has the term."""
        return self.layer.postings(field, term)

    def live_frequency(self, field: str, term: str) -> int:
        """Return how many live documents have the term."""
        return self.layer.postings(field, term).intersection_cardinality(self.layer.live)

    def holds(self, clause: Clause, internal: int) -> bool:
        """Tell whether one slot satisfies a clause."""
        return internal in evaluate(clause, self)

    def counts(self, conditions: Sequence[Condition], deadline: float | None = None) -> Counts:
        """Return how many live slots satisfy each condition, the cheapest first, and all; the deadline never comes."""
        remaining, rows = self.live, list[dict[str, Any]]()
        ranked = sorted(((estimate(c.clause, self), c) for c in conditions), key=lambda pair: pair[0])
        for expected, condition in ranked:
            found = evaluate(condition.clause, self)
            remaining = remaining & found
            matched = found.intersection_cardinality(self.live)
            row = {"clause": condition.name, "words": condition.words, "estimate": expected}
            rows.append({**row, "matched": matched, "remaining": len(remaining)})
        return Counts(rows, len(remaining), True)

    def matching(self, conditions: Sequence[Condition], deadline: float | None = None) -> tuple[Words, int, bool]:
        """Return the live slots that satisfy all conditions as words, and their number; the deadline never comes."""
        ids = self._survivors(conditions)
        return words_of(ids, self.layer.slots), len(ids), True

    def _survivors(self, conditions: Sequence[Condition]) -> Ids:
        """Return the live slots that satisfy all conditions; numbers are looked at last, where the rest holds."""
        remaining, numbers, others = self.live, list[Range | InSchedule](), list[Clause]()
        for condition in conditions:
            clause = condition.clause
            for part in clause.parts if isinstance(clause, And) else (clause,):
                if isinstance(part, (Range, InSchedule)):
                    numbers.append(part)
                else:
                    others.append(part)
        if len(others) > 1:
            others.sort(key=lambda clause: estimate(clause, self))
        for clause in others:
            if not remaining:
                break
            remaining = remaining & evaluate(clause, self)
        ids = id_array(remaining)
        for number in numbers:
            if isinstance(number, Range):
                ids = self.layer.keep_within(ids, number.field, number.low, number.high)
            else:
                ids = self.layer.keep_without(ids, number.starts, number.at_us + 1, None)
                ids = self.layer.keep_without(ids, number.ends, None, number.at_us)
        return ids

    def best(
        self,
        conditions: Sequence[Condition],
        boosts: Sequence[Boost],
        serving: Serving,
        limit: int,
        *,
        counting: bool = True,
        deadline: float | None = None,
        after: After | None = None,
    ) -> Candidates:
        """Score all survivors and keep the best `limit` and whatever ties with the last of them.

        The delta is small: it is always counted, and never cut by the deadline.
        """
        if not self.layer.live:  # nothing came since, or all of it is folded
            return _NOBODY
        ids = self._survivors(conditions)
        scores = self._static(serving, ids)
        if boosts:
            bonus, survivors = np.zeros(len(ids)), BitMap(ids)
            for boost in boosts:
                holders = id_array(self.layer.postings(boost.field, boost.term) & survivors)
                carried = self.layer.payloads(boost.field, boost.term, holders)
                bonus[np.searchsorted(ids, holders)] += boost.weight * carried
            scores = scores + bonus
        matched = len(ids)
        if after is not None:
            behind = scores < after.score
            tied = np.flatnonzero(scores == after.score)
            if len(tied):
                keys = self.layer.keys(ids[tied], int_keys=isinstance(after.key, int))
                behind[tied] = keys > after.key
            ids, scores = ids[behind], scores[behind]
        if limit and len(scores) > limit:
            keep = scores >= np.partition(scores, len(scores) - limit)[len(scores) - limit]
            ids, scores = ids[keep], scores[keep]
        return Candidates(ids, scores, matched, True, True, f"score all {matched} survivors")

    def _static(self, serving: Serving, ids: Ids) -> npt.NDArray[np.float64]:
        if serving.bid is not None:
            scores = self.layer.numbers(serving.bid, ids)[0] / MICROS
        elif serving.score is not None:
            scores = self.layer.numbers(serving.score, ids)[0]
        else:
            scores = np.ones(len(ids))
        if serving.quality is not None:
            quality, has = self.layer.numbers(serving.quality, ids)
            scores = scores * np.where(has, quality, 1.0)
        return scores

    def numbers(self, field: str, ids: Ids) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
        """Return the field's numbers of `ids`, 0 where missing, and which are there."""
        return self.layer.numbers(field, ids)

    def payloads(self, field: str, term: str, ids: Ids) -> npt.NDArray[np.float64]:
        """Return the payload that the term has with each of `ids` (1 without payloads), 0 where they lack it."""
        return self.layer.payloads(field, term, ids)

    def describe_term(self, field: str, term: str) -> dict[str, Any]:
        """Return kind and length of a term's posting list, for `explain`."""
        return {"kind": "roaring", "ids": self.layer.document_frequency(field, term)}


def evaluate(clause: Clause, view: DeltaView) -> BitMap:
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
        case Meets() | Inside() | Near() | Runs():
            return special(clause, view)


def special(clause: Special, view: DeltaView) -> BitMap:
    """Return the slots that satisfy the clause of a special field."""
    layer, targets = view.layer, view.layer.targets
    unlimited = view.live - targets.holders(clause.field)
    match clause:
        case Meets(field, asked):
            candidates = BitMap.union(*[layer.postings(field, term) for term in request_terms(asked)])
            return unlimited | targets.meeting(field, candidates, asked)
        case Inside(field, position):
            if position is None:
                return unlimited
            cells = [EVERY, *cells_at(*position)]
            candidates = BitMap.union(*[layer.postings(field, cell) for cell in cells])
            return unlimited | targets.inside(field, candidates, *position)
        case Near(field, lat, lon, metres):
            return targets.near(field, lat, lon, metres)
        case Runs(field, at_us, zone):
            return unlimited | targets.running(field, datetime_of(at_us), user_zone(zone), browse=zone == ANY)


def estimate(clause: Clause, view: DeltaView) -> int:
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
        case Meets() | Inside() | Runs():
            return len(view.live)
        case Near(field):
            return len(layer.targets.holders(field))


def intersection(bitmaps: list[BitMap]) -> BitMap:
    """Return what all bitmaps have, smallest first."""
    smallest, *rest = sorted(bitmaps, key=len)
    return smallest.intersection(*rest) if rest else smallest
