"""The delta with what of it has budget left: conditions evaluated to roaring bitmaps, scores by numpy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pyroaring import BitMap

from catalog import Serving
from catalog.targeting import accept_term, any_term, exclude_term
from manas._clauses import And, Clause, Condition, Funded, HasVector, InSchedule, Is, Not, Or, Range, Targets, Term
from manas._delta import Delta
from manas._layer import Candidates, id_array
from manas._schema import MICROS


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

    def survive(self, conditions: Sequence[Condition], trace: list[dict[str, Any]] | None = None) -> BitMap:
        """Return the live slots that satisfy all conditions, the most selective condition first."""
        remaining = self.live
        ranked = sorted(((estimate(c.clause, self), c) for c in conditions), key=lambda pair: pair[0])
        for expected, condition in ranked:
            if not remaining and trace is None:
                break
            found = evaluate(condition.clause, self)
            remaining = remaining & found
            if trace is not None:
                matched = found.intersection_cardinality(self.live)
                row = {"clause": condition.name, "words": condition.words, "estimate": expected}
                trace.append({**row, "matched": matched, "remaining": len(remaining)})
        return remaining

    def best(
        self,
        conditions: Sequence[Condition],
        weights: Mapping[str, float],
        serving: Serving,
        limit: int,
        *,
        counting: bool = True,
        deadline: float | None = None,
    ) -> Candidates:
        """Score all survivors and keep the best `limit` and whatever ties with the last of them.

        The delta is small: it is always counted, and never cut by the deadline.
        """
        survivors = self.survive(conditions)
        ids, layer = id_array(survivors), self.layer
        if serving.bid is not None:
            scores = layer.numbers(serving.bid, ids, 0.0) / MICROS
        elif serving.score is not None:
            scores = layer.numbers(serving.score, ids, 0.0)
        else:
            scores = np.ones(len(ids))
        if serving.quality is not None:
            scores = scores * layer.numbers(serving.quality, ids, 1.0)
        if weights and serving.text is not None:
            bonus = np.zeros(len(ids))
            for term in sorted(weights):
                holders = id_array(layer.postings(serving.text, term) & survivors)
                bonus[np.searchsorted(ids, holders)] += weights[term]
            scores = scores + bonus
        matched = len(ids)
        if limit and len(scores) > limit:
            keep = scores >= np.partition(scores, len(scores) - limit)[len(scores) - limit]
            ids, scores = ids[keep], scores[keep]
        return Candidates(ids, scores, matched, True, True, f"score all {matched} survivors")


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


def intersection(bitmaps: list[BitMap]) -> BitMap:
    """Return what all bitmaps have, smallest first."""
    smallest, *rest = sorted(bitmaps, key=len)
    return smallest.intersection(*rest) if rest else smallest
