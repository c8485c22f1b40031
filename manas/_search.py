"""From a compiled request to its answer: candidates of all layers, the second phase, diversity, and the page.

The order of an answer is (score descending, document id ascending). Without a second phase it is that of the light
score or of the similarity. With one, the best `rerank` of that order are scored in full and put into the order of
their full scores; there is nothing behind them. A page is the first `k` of what ranks behind the last hit of the page
before. Diversity goes through the order from its top, whatever the page, so the pages together are the diverse answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec.structs import replace
from pyroaring import BitMap

from manas._common import Common
from manas._exceptions import InvalidRequest
from manas._hits import Hits
from manas._layer import After, Boost, LayerView
from manas._paging import Page, check_size, write_page
from manas._ranking import Ranked, idf, idf_weights, rank_light, score_words
from manas._request import Query
from manas._schema import DocumentSchema, Floats, normalized, term_of
from manas._scoring import CandidateColumns, Scorer, default_rerank, rescored
from manas._scoring_request import NO_SCORING
from manas._vector_ranking import NeighbourSearch, PlannerLimits
from manas._view import View
from manas.api import Answer, Hit


class Found(msgspec.Struct, frozen=True):
    """Candidates in order, and the places of those that are the answer."""

    ranked: Ranked
    chosen: Sequence[int]
    boosts: tuple[Boost, ...]
    """Text words with their idf, and the request's own, in the order in which they are added up."""
    reranked: int
    """Candidates scored in full; 0 without a second phase."""
    page_token: str | None
    """Of the next page; "" when this is the last one, None when the request does not ask for pages."""


class Searcher:
    """Answers requests over views of one catalogue. Their owner holds the lock."""

    def __init__(self, schema: DocumentSchema, limits: PlannerLimits) -> None:
        self._schema = schema
        self._serving = schema.catalog.serving
        self._limits = limits

    def run(
        self,
        view: View,
        query: Query,
        k: int,
        *,
        diversity: bool = True,
        counting: bool = True,
        deadline: float | None = None,
        scorer: Scorer | None = None,
        common: Common | None = None,
    ) -> Found:
        """Rank and choose. `scorer` goes before the request's own expression. Raises InvalidRequest."""
        views, scoring = view.layers(), query.scoring
        int_keys = self._schema.int_keys
        if scoring is NO_SCORING and scorer is None and query.vector_field is None and query.max_per_group is None:
            boosts = self._boosts(views, query, common) if query.text_terms else ()
            ranked = rank_light(
                views,
                query.conditions,
                self._serving,
                boosts,
                k,
                int_keys=int_keys,
                counting=counting,
                deadline=deadline,
            )
            return Found(ranked, range(len(ranked.ids)), boosts, 0, None)
        page, after = scoring.page, None if scoring.page is None else scoring.page.after
        if page is not None:
            check_size(k)
        full: Scorer | None = scorer or scoring.expression
        candidates = self._candidates(query, k, full)
        boosts = self._boosts(views, query, common)
        diverse = diversity and query.max_per_group is not None and (common is None or common.diversity)
        vector = self.vector(view, query, common)
        near = None
        field = query.vector_field or self._serving.vector
        if vector is not None and field is not None:
            near = NeighbourSearch(views, query.conditions, field, vector, self._limits, deadline)

        def rank(limit: int, behind: After | None = None) -> Ranked:
            if near is not None:
                return near.best(limit, int_keys=int_keys)
            return rank_light(
                views,
                query.conditions,
                self._serving,
                boosts,
                limit,
                int_keys=int_keys,
                counting=counting,
                deadline=deadline,
                after=behind,
            )

        if full is not None:
            ranked = rank(candidates)
            columns = CandidateColumns(self._schema, views, ranked, boosts, query.conditions, query.at_us)
            ranked = rescored(ranked, columns, full)
            chosen: Sequence[int] = self._choose(ranked, views, query, k, after, diverse=diverse)
        elif not diverse and near is None:
            ranked = rank(k, after)
            chosen = range(len(ranked.ids))
        else:
            limit = (4 if diverse else 1) * (k + (page.seen if page is not None else 0))
            choose = partial(self._choose, views=views, query=query, k=k, after=after, diverse=diverse)
            ranked, chosen = _widening(rank, choose, limit, k)
        token = None if page is None else self._next(page, query, ranked, chosen, k, candidates if full else 0)
        return Found(ranked, chosen, boosts, len(ranked.ids) if full is not None else 0, token)

    def answer(self, view: View, found: Found, common: Common | None = None) -> Answer:
        """Return what was found as a caller gets it."""
        ranked = found.ranked
        if isinstance(found.chosen, range):  # the first so many
            size = len(found.chosen)
            whole = size == len(ranked.keys)
            columns = Hits(ranked.keys, ranked.scores) if whole else Hits(ranked.keys[:size], ranked.scores[:size])
        else:
            places = np.array(found.chosen, np.intp)
            columns = Hits(ranked.keys[places], ranked.scores[places])
        answer: Answer = {
            "hits": columns if common is None else self._told(columns, view, found, common),
            "total": ranked.matched,
            "total_is_lower_bound": not ranked.counted,
            "partial": not ranked.complete,
        }
        if found.page_token is not None:
            answer["page_token"] = found.page_token
        return answer

    def _told(self, columns: Hits, view: View, found: Found, common: Common) -> Sequence[Hit]:
        """Return hits with what a broker has to know of them."""
        ranked = found.ranked
        groups = not common.diversity and self._serving.diversity is not None
        light = ranked.light if common.light else None
        if not groups and light is None:
            return columns
        hits = list(columns)
        if groups:
            views = view.layers()
            for hit, place in zip(hits, found.chosen, strict=True):
                hit["groups"] = self._groups(views[ranked.layers[place]], int(ranked.ids[place]))
        if light is not None:
            for hit, place in zip(hits, found.chosen, strict=True):
                hit["light"] = float(light[place])
        return hits

    def plan(self, view: View, query: Query, found: Found) -> dict[str, Any]:
        """Return how the answer was scored, for `explain`: phases, and every list that adds to scores, by layer."""
        similar = query.vector is not None or query.similar_to is not None
        plan: dict[str, Any] = {"score": "cosine similarity" if similar else score_words(self._serving)}
        if found.boosts:
            plan["boosts"] = [
                {
                    "field": boost.field,
                    "term": boost.term,
                    "weight": boost.weight,
                    "lists": {v.layer.name: v.describe_term(boost.field, boost.term) for v in view.layers()},
                }
                for boost in found.boosts
            ]
        if found.reranked:
            expression = query.scoring.expression
            plan["second_phase"] = {
                "candidates": found.reranked,
                "score": "a Python function" if expression is None else expression.text,
            }
        return plan

    def vector(self, view: View, query: Query, common: Common | None = None) -> Floats | None:
        """Return the vector that a request asks for neighbours of, None for none. Raises InvalidRequest."""
        if query.similar_to is None:
            return query.vector
        if common is not None and common.vector is not None:
            return normalized(common.vector)
        place = view.find(query.similar_to)
        if place is None:
            raise InvalidRequest(f"similar_to: no ad {query.similar_to} in the index")
        field = query.vector_field or self._serving.vector or ""
        raw = place[0].layer.fields(place[1], (field,)).get(field)
        if raw is None:
            raise InvalidRequest(f"similar_to: ad {query.similar_to} has no {field}")
        return normalized(raw)

    # ---- inside ----

    def _candidates(self, query: Query, k: int, full: Scorer | None) -> int:
        scoring = query.scoring
        if full is None:
            if scoring.rerank is not None:
                raise InvalidRequest("rerank: there is no second phase; give score as well")
            return 0
        if scoring.page is not None and scoring.page.rerank:
            return scoring.page.rerank
        if scoring.rerank is not None and scoring.rerank < k:
            raise InvalidRequest(f"rerank: {scoring.rerank} candidates cannot give {k} hits; at least k are needed")
        if scoring.rerank is None and k == 0:
            return 0
        return scoring.rerank or max(k, default_rerank(k))

    def _boosts(self, views: Sequence[LayerView], query: Query, common: Common | None) -> tuple[Boost, ...]:
        field, terms = self._serving.text, query.text_terms
        if field is None or not terms:
            return query.scoring.boosts
        if common is not None and common.documents is not None:
            weights = {term: idf(common.documents, common.frequencies.get(term, 0)) for term in terms}
        else:
            weights = idf_weights(views, field, terms)
        return (*(Boost(field, term, weights[term]) for term in sorted(weights)), *query.scoring.boosts)

    def _choose(
        self, ranked: Ranked, views: Sequence[LayerView], query: Query, k: int, after: After | None, *, diverse: bool
    ) -> Sequence[int]:
        """Return the places of the first `k` (0: all) behind `after`."""
        behind = None if after is None else _behind(ranked, after)
        if not diverse:
            places = range(len(ranked.ids)) if behind is None else np.flatnonzero(behind).tolist()
            return places[:k] if k else places
        return self._diversify(ranked, views, query.max_per_group or 0, k, behind)

    def _diversify(
        self,
        ranked: Ranked,
        views: Sequence[LayerView],
        most: int,
        k: int,
        behind: npt.NDArray[np.bool_] | None,
    ) -> list[int]:
        """Return the first `k` candidates behind a page of which at most `most` of all share a value."""
        field = self._serving.diversity or ""
        taken: Counter[str] = Counter()
        closed = [BitMap() for _ in views]
        chosen: list[int] = []
        for place, (layer, internal) in enumerate(zip(ranked.layers.tolist(), ranked.ids.tolist(), strict=True)):
            if internal in closed[layer]:  # nobody of a full group is looked at again: documents read = hits
                continue
            if behind is None or behind[place]:
                chosen.append(place)
                if len(chosen) == k:
                    break
            for group in self._groups(views[layer], internal):
                taken[group] += 1
                if taken[group] == most:
                    for full, view in zip(closed, views, strict=True):
                        full.update(view.holders(field, group))
        return chosen

    def _groups(self, view: LayerView, internal: int) -> list[str]:
        """Return what a document must not share with too many others."""
        field = self._serving.diversity or ""
        value = view.layer.fields(internal, (field,)).get(field)
        if value is None:
            return []
        return [term_of(item) for item in value] if isinstance(value, list) else [term_of(value)]

    def _next(
        self, page: Page, query: Query, ranked: Ranked, chosen: Sequence[int], k: int, candidates: int
    ) -> str | None:
        """Return the token of the next page, "" after the last; None when a deadline came before the page was full."""
        if len(chosen) < k:
            return "" if ranked.complete else None
        last = chosen[-1]
        return write_page(
            replace(
                page,
                at_us=query.at_us,
                rerank=candidates,
                score=float(ranked.scores[last]),
                key=ranked.keys[last].item(),
                seen=page.seen + len(chosen),
            )
        )


def _widening(
    rank: Callable[[int], Ranked], choose: Callable[[Ranked], Sequence[int]], limit: int, k: int
) -> tuple[Ranked, Sequence[int]]:
    """Rank ever more candidates until `k` can be chosen out of them, or there are no more, or no time."""
    ranked = rank(limit)
    chosen = choose(ranked)
    while limit and len(chosen) < k and ranked.complete:
        if ranked.exhausted or (ranked.counted and limit >= ranked.matched):
            break
        limit *= 4
        more = rank(limit)
        found = choose(more)
        if not more.complete and len(found) < len(chosen):  # cut short so early that there was more before
            return replace(ranked, complete=False), chosen
        ranked, chosen = more, found
    return ranked, chosen


def _behind(ranked: Ranked, after: After) -> npt.NDArray[np.bool_]:
    behind: npt.NDArray[np.bool_] = ranked.scores < after.score
    tied = np.flatnonzero(ranked.scores == after.score)
    behind[tied] = ranked.keys[tied] > after.key
    return behind
