"""Rank the survivors of a request's conditions by similarity, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from manas._bits import Words
from manas._clauses import Condition
from manas._layer import Candidates, LayerView
from manas._ranking import Ranked, merge
from manas._schema import Floats
from manas._vector_plan import Way

_NOTHING: tuple[Words, int, bool] = np.empty(0, np.uint64), 0, True
_NOBODY = Candidates(np.empty(0, np.uint32), np.empty(0), 0, True, True, "no survivors")


@dataclass(frozen=True, slots=True)
class PlannerLimits:
    """Bounds for the planner of nearest-neighbour queries, which otherwise goes by what was measured at the build.

    Up to `exact_survivors` are always compared exactly. `only` asks for one way wherever a segment can go it.
    """

    exact_survivors: int = 500
    only: Way | None = None


class NeighbourSearch:
    """A query whose filters are evaluated once, to be answered with any number of neighbours."""

    def __init__(
        self,
        views: Sequence[LayerView],
        conditions: Sequence[Condition],
        field: str,
        query: Floats,
        limits: PlannerLimits,
        deadline: float | None = None,
    ) -> None:
        """The conditions must say that the document has a value of `field`.

        `deadline` is a time of the monotonic clock; what was found until then is ranked as not complete.
        """
        self._views = views
        self._stores = [view.layer.vectors(field) for view in views]
        self._passing = [view.matching(conditions, deadline) if len(view) else _NOTHING for view in views]
        self._deadline = deadline
        self._query = query
        self._limits = limits

    def best(self, limit: int, *, int_keys: bool) -> Ranked:
        """Rank by cosine similarity, ties by document id. `limit` 0 means all."""
        parts = []
        limits = self._limits
        for store, (words, count, whole) in zip(self._stores, self._passing, strict=True):
            if store is None or count == 0:
                parts.append(_NOBODY if whole else replace(_NOBODY, counted=False, complete=False))
                continue
            found = store.nearest(
                self._query,
                words,
                count,
                limit,
                exact_survivors=limits.exact_survivors,
                only=limits.only,
                deadline=self._deadline,
            )
            complete = whole and found.complete
            parts.append(Candidates(found.ids, found.scores, count, whole, complete, found.words, found.ranked))
        return merge(self._views, parts, limit, int_keys=int_keys)
