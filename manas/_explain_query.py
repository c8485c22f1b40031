"""A request's answer with its plan, what its conditions let through, and one ad's way through it, until a deadline."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from manas import _explain
from manas._common import Common
from manas._request import Query
from manas._search import Searcher
from manas._view import View
from manas.budgets import BudgetTable

ANSWER, RANK, COUNTS = "answer", "rank of the ad", "counts"
"""What a deadline can cut short of an explanation, as the plan names it."""


def explained(
    searcher: Searcher,
    view: View,
    budgets: BudgetTable,
    query: Query,
    k: int,
    ad_id: str | None,
    *,
    common: Common | None = None,
    deadline: float | None = None,
) -> dict[str, Any]:
    """Return the answer as `search` gives it with the same deadline, then what time is left for.

    What that is too little for is named in the plan's "cut". An ad's own steps are always there: they are about one
    document. Raises InvalidRequest.
    """
    views = view.layers()
    found = searcher.run(view, query, k, deadline=deadline, common=common)
    result: dict[str, Any] = dict(searcher.answer(view, found, common))
    cut = [] if found.ranked.complete else [ANSWER]
    if ad_id is not None:
        everything = found.ranked
        if query.scoring.expression is None:  # with one, whom it does not score is not in the answer
            whole = replace(query, scoring=replace(query.scoring, page=None))
            everything = searcher.run(view, whole, 0, diversity=False, common=common, deadline=deadline).ranked
        if not everything.complete:
            cut.append(RANK)
        hits = [str(found.ranked.keys[i]) for i in found.chosen]
        result["ad"] = _explain.explain_ad(view, budgets, query, ad_id, everything, hits, k)
    counts = [layer.counts(query.conditions, deadline) for layer in views]
    if not all(count.whole for count in counts):
        cut.append(COUNTS)
    plan = searcher.plan(view, query, found)
    plan["layers"] = [
        {
            "layer": view.layer.name,
            "documents": len(view),
            "clauses": count.rows,
            "survivors": count.survivors,
            "ranking": how,
        }
        for view, count, how in zip(views, counts, found.ranked.strategies, strict=True)
    ]
    result["plan"] = {**plan, "cut": cut} if cut else plan
    return result


def unexplained(ad_id: str | None) -> dict[str, Any]:
    """Return what is said when the time was up before the index could be asked at all."""
    plan = {"layers": [], "cut": [ANSWER, COUNTS] if ad_id is None else [ANSWER, RANK, COUNTS]}
    return {"hits": [], "total": 0, "total_is_lower_bound": True, "partial": True, "plan": plan}
