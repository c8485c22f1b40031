"""Score the survivors of a request's conditions and return the best: light scores, or similarity of vectors.

Light score = bid in currency units x quality + sum of the idf of matching words; where the catalogue has no bid, the
field that it declares as score stands for it, or 1. Ties go to the smaller ad id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from catalog import Serving
from manas._layer import Candidates, Ids, LayerView, VectorStore, id_array
from manas._request import Query
from manas._schema import Floats
from manas._writer import GRAPH_FROM

Scores = npt.NDArray[np.float64]

_ROUNDING = 1e-5
"""More than the rounding error of a float32 dot product of unit vectors: who is this close is compared in float64."""
_CHUNK = 65_536
"""Vectors scanned at a time: keeps the gathered copy in the cache's reach and memory bounded."""


@dataclass(frozen=True, slots=True)
class PlannerLimits:
    """When a filtered nearest-neighbour query walks the graph instead of scanning.

    An exact scan of 20,000 vectors takes 1-4 ms and has recall 1. A walk pays when the survivors are more than that,
    and asks for `overfetch` times what the filter's selectivity demands. When it would have to ask for more than
    `max_walk_share` of the graph, a scan is cheaper.
    """

    exact_survivors: int = GRAPH_FROM
    overfetch: float = 1.5
    max_walk_share: float = 0.1


@dataclass(frozen=True, slots=True)
class Ranked:
    """The best candidates in order."""

    scores: Scores
    keys: npt.NDArray[Any]
    layers: npt.NDArray[np.intp]
    """Index of each candidate's layer."""
    ids: Ids
    exhausted: bool
    """No candidate was left out."""
    strategies: tuple[str, ...]
    """How each layer was searched, in words."""
    matched: int
    """How many fit the request: exactly if `counted`, else at least."""
    counted: bool
    complete: bool
    """False when the deadline came first."""


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
    return f"{first}{quality}{' + idf of the text' if serving.text is not None else ''}"


def rank_light(
    views: Sequence[LayerView],
    query: Query,
    serving: Serving,
    weights: Mapping[str, float],
    limit: int,
    *,
    int_keys: bool,
    counting: bool = True,
    deadline: float | None = None,
) -> Ranked:
    """Rank by light score. `limit` 0 means all."""
    found = [v.best(query.conditions, weights, serving, limit, counting=counting, deadline=deadline) for v in views]
    return _merge(views, found, limit, int_keys=int_keys)


def rank_similar(
    views: Sequence[LayerView],
    survivors: Sequence[BitMap],
    field: str,
    query: Floats,
    limit: int,
    limits: PlannerLimits,
    *,
    int_keys: bool,
) -> Ranked:
    """Rank by cosine similarity; all survivors must have a vector. `limit` 0 means all."""
    parts = []
    for view, bitmap in zip(views, survivors, strict=True):
        store = view.layer.vectors(field)
        if store is None:
            parts.append(Candidates(np.empty(0, np.uint32), np.empty(0), 0, True, True, "no vectors"))
        else:
            ids, words = _candidates(store, query, bitmap, limit, limits)
            ids, scores = _exact(store, ids, query, limit)
            parts.append(Candidates(ids, scores, len(bitmap), True, True, words))
    return _merge(views, parts, limit, int_keys=int_keys)


def _candidates(
    store: VectorStore, query: Floats, allowed: BitMap, limit: int, limits: PlannerLimits
) -> tuple[Ids, str]:
    """Return ids that contain the nearest `limit` of `allowed` (by the graph: very likely), and how they were found."""
    count, graphed = len(allowed), len(store.graphed)
    if limit == 0 or count <= limits.exact_survivors or graphed == 0:
        return id_array(allowed), f"exact scan of {count} survivors"
    in_graph = allowed & store.graphed
    tail = allowed - store.graphed
    wanted = min(limit, len(in_graph))
    fetch = math.ceil(limits.overfetch * wanted * graphed / max(1, len(in_graph))) + 10
    while fetch <= limits.max_walk_share * graphed:
        found = in_graph & BitMap(store.walk(query, fetch))
        if len(found) >= wanted:
            words = f"graph walk for {fetch} of {graphed}, {len(found)} pass the filter"
            return id_array(found | tail), f"{words}, and a scan of {len(tail)}" if tail else words
        fetch *= 4
    return id_array(allowed), f"exact scan of {count} survivors (a walk would fetch {fetch} of {graphed})"


def _exact(store: VectorStore, ids: Ids, query: Floats, limit: int) -> tuple[Ids, Scores]:
    """Return the nearest of `ids` with float64 similarities, which depend on nothing but the two vectors."""
    if limit and len(ids) > limit:
        rough = np.concatenate(
            [store.gather(ids[i : i + _CHUNK]) @ query for i in range(0, len(ids), _CHUNK)], dtype=np.float32
        )
        bar = np.partition(rough, len(rough) - limit)[len(rough) - limit]
        ids = ids[rough >= bar - _ROUNDING]
    parts = [np.empty(0)]
    wide = query.astype(np.float64)
    for i in range(0, len(ids), _CHUNK):
        # Row-wise sums: unlike a matrix product, the result for a row does not depend on the other rows.
        parts.append((store.gather(ids[i : i + _CHUNK]).astype(np.float64) * wide).sum(axis=1))
    return _best(ids, np.concatenate(parts), limit)


def _best(ids: Ids, scores: Scores, limit: int) -> tuple[Ids, Scores]:
    """Keep the best `limit` and whatever ties with the last of them."""
    if limit and len(scores) > limit:
        keep = scores >= np.partition(scores, len(scores) - limit)[len(scores) - limit]
        return ids[keep], scores[keep]
    return ids, scores


def _merge(views: Sequence[LayerView], parts: Sequence[Candidates], limit: int, *, int_keys: bool) -> Ranked:
    scores = np.concatenate([part.scores for part in parts])
    keys = np.concatenate([v.layer.keys(p.ids, int_keys=int_keys) for v, p in zip(views, parts, strict=True)])
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
        tuple(part.words for part in parts),
        matched,
        counted,
        all(part.complete for part in parts),
    )
