"""Score the survivors of a request's conditions and return the best by light score (`_vector_ranking`: similarity).

Light score = bid in currency units x quality + sum of idf x payload of the matching words + sum of weight x payload of
the request's boosts; where the catalogue has no bid, the field that it declares as score stands for it, or 1; terms of
fields without payloads have 1. Ties go to the smaller ad id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from catalog import Serving
from manas._clauses import Condition
from manas._layer import After, Boost, Candidates, Ids, LayerView

Scores = npt.NDArray[np.float64]


class Ranked(msgspec.Struct, frozen=True):
    """The best candidates in order."""

    scores: Scores
    keys: npt.NDArray[Any]
    layers: npt.NDArray[np.intp]
    """Index of each candidate's layer."""
    ids: Ids
    exhausted: bool
    """No candidate was left out."""
    parts: Sequence[Candidates]
    """What each layer gave."""
    matched: int
    """How many fit the request: exactly if `counted`, else at least."""
    counted: bool
    complete: bool
    """False when the deadline came first."""
    light: Scores | None = None
    """With a second phase: each candidate's score of the first."""

    @property
    def strategies(self) -> tuple[str, ...]:
        """How each layer was searched, in words."""
        return tuple(part.words if isinstance(part.words, str) else part.words() for part in self.parts)


def idf(documents: int, frequency: int) -> float:
    """Return the inverse document frequency (BM25's form, never negative)."""
    return math.log(1 + (documents - frequency + 0.5) / (frequency + 0.5))


def idf_weights(views: Sequence[LayerView], field: str, terms: Sequence[str]) -> dict[str, float]:
    """Return term -> idf over all live documents."""
    documents = sum(len(v) for v in views)
    return {term: idf(documents, sum(v.live_frequency(field, term) for v in views)) for term in terms}


def score_words(serving: Serving) -> str:
    """Return what `rank_light` computes, in words."""
    first = "bid" if serving.bid is not None else serving.score or "1"
    quality = " x quality" if serving.quality is not None else ""
    words = " + idf of the text x payload" if serving.text is not None else ""
    return f"{first}{quality}{words} + weight x payload of boosts"


def rank_light(
    views: Sequence[LayerView],
    conditions: Sequence[Condition],
    serving: Serving,
    boosts: Sequence[Boost],
    limit: int,
    *,
    int_keys: bool,
    counting: bool = True,
    deadline: float | None = None,
    after: After | None = None,
) -> Ranked:
    """Rank by light score. `limit` 0 means all. With `after`, only what ranks behind it."""
    found = [
        view.best(conditions, boosts, serving, limit, counting=counting, deadline=deadline, after=after)
        for view in views
    ]
    return merge(views, found, limit, int_keys=int_keys)


def merge(views: Sequence[LayerView], parts: Sequence[Candidates], limit: int, *, int_keys: bool) -> Ranked:
    """Put the layers' candidates into one order: score descending, document id ascending. `limit` 0 means all."""
    some = [place for place, part in enumerate(parts) if len(part.ids)]
    if len(some) == 1 and parts[some[0]].ranked:
        return _alone(views, parts, some[0], limit, int_keys=int_keys)
    scores = np.concatenate([part.scores for part in parts])
    keys = np.concatenate([_keys(v, p, int_keys=int_keys) for v, p in zip(views, parts, strict=True)])
    layers = np.concatenate([np.full(len(part.ids), i, dtype=np.intp) for i, part in enumerate(parts)])
    order = np.lexsort((keys, -scores))
    order = order[:limit] if limit else order
    ids = np.concatenate([part.ids for part in parts])[order]
    matched, counted = sum(part.matched for part in parts), all(part.counted for part in parts)
    return Ranked(
        scores[order],
        keys[order],
        layers[order],
        ids,
        counted and len(order) == matched,
        parts,
        matched,
        counted,
        all(part.complete for part in parts),
    )


def _alone(
    views: Sequence[LayerView], parts: Sequence[Candidates], place: int, limit: int, *, int_keys: bool
) -> Ranked:
    """Return the candidates of the only layer that has any."""
    part = parts[place]
    scores, keys, ids = part.scores, _keys(views[place], part, int_keys=int_keys), part.ids
    if limit and limit < len(ids):
        scores, keys, ids = scores[:limit], keys[:limit], ids[:limit]
    size, matched, counted, complete = len(ids), 0, True, True
    for other in parts:
        matched += other.matched
        counted, complete = counted and other.counted, complete and other.complete
    return Ranked(
        scores,
        keys,
        np.full(size, place, np.intp) if place else np.zeros(size, np.intp),
        ids,
        counted and size == matched,
        parts,
        matched,
        counted,
        complete,
    )


def _keys(view: LayerView, part: Candidates, *, int_keys: bool) -> npt.NDArray[Any]:
    return view.layer.keys(part.ids, int_keys=int_keys) if part.keys is None else part.keys
