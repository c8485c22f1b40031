"""The vector part of `bench retrieval`: whole hybrid requests, "similar to this, with this tag, below this price".

Ours evaluates the conditions of a request, plans the way, and returns document ids; whole requests through
`Index.search`, which parses them and makes hits as well, are in a line of their own, since no peer has requests. A peer
has tags as masks and prices as a column, both ready in memory; per query it combines them, makes of that what it takes
as a filter, and searches. The tags of correlated filters go by side of a plane, which keeps near and
far vectors together as real filters do; random ones by chance. One thread everywhere while searching.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import structlog

from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report
from benchmarks._vector_peers import Ids, Mask, Matrix, missing, peers
from benchmarks._vector_trials import (
    NOISE,
    RECALL,
    SHARES,
    K,
    Timing,
    best_of,
    draw_vectors,
    sides,
    timed,
    true_answers,
    tuned,
)
from catalog import Catalog, Serving, load_catalog
from catalog.documents import encode_document
from manas import Index, PlannerLimits, Segment, SegmentWriter
from manas._request import Query, RequestParser
from manas._vector_clusters import list_count
from manas._vector_ranking import NeighbourSearch

_FIELDS = ("ad_id", "interests", "price_micros", "embedding")
_PRICES = 10_000
"""Prices are whole numbers below, evenly spread."""
_MOST_FOR_GRAPHS = 200_000
"""Vectors: a million take every one of the graphs some five minutes to build."""
_QUERIES_OF_MANY = 40
"""Their true answers are found by comparing everything, for every query and case."""
_TAGS = tuple(share for share in SHARES if share < 1)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class VectorSizes:
    """How much of everything."""

    vectors: int = 100_000
    centres: int = 1_000
    queries: int = 100
    rounds: int = 3
    graphs: bool = True
    """Peers that are graphs as well."""


QUICK = VectorSizes(vectors=6_000, centres=60, queries=12, rounds=1)


def vector_sizes(quick: bool, documents: int | None) -> VectorSizes:
    """Return the sizes to run with; `documents` None leaves their number as it is. Too many take no graphs."""
    sizes = QUICK if quick else VectorSizes()
    if documents is None:
        return sizes
    many = documents > _MOST_FOR_GRAPHS
    return replace(sizes, vectors=documents, graphs=not many, queries=_QUERIES_OF_MANY if many else sizes.queries)


@dataclass(frozen=True, slots=True)
class _Case:
    """A filter, as a request says it and as numpy evaluates it."""

    name: str
    condition: dict[str, Any]
    mask: Callable[[], Mask | None]
    truth: list[set[int]]


@dataclass(frozen=True, slots=True)
class _Ours:
    """What ours takes for the conditions and the search, and for a whole request."""

    search: Timing
    request: Timing


def measure_vectors(report: Report, directory: Path, *, quick: bool, sizes: VectorSizes | None = None) -> None:
    """Add the hybrid cases on vectors that cluster well and hardly. Peers that are not installed are left out."""
    chosen = sizes or (QUICK if quick else VectorSizes())
    for kind, noise in NOISE.items():
        _measure(report, f"{chosen.vectors:,} {kind}", noise, chosen, directory / kind)
    for peer in missing():
        report.note(f"{peer} is not installed: pip install adsindex[bench]")
    report.note(
        f"hybrid: k = {K}; each peer at its cheapest setting with recall@{K} >= {RECALL}, named with its setting and "
        f"recall; none: no setting reached it, or not in bearable time. Filters are evaluated within the time measured"
    )


def _measure(report: Report, head: str, noise: float, sizes: VectorSizes, directory: Path) -> None:
    matrix, queries = draw_vectors(sizes.vectors, sizes.queries, sizes.centres, noise)
    catalog = _catalog()
    tags, prices = _tags(matrix), np.random.default_rng(3).integers(0, _PRICES, len(matrix))
    started = time.perf_counter()
    SegmentWriter(directory, catalog).write(_documents(matrix, tags, prices), 1, {}, {})
    build_s = time.perf_counter() - started
    index = Index(catalog, Segment.open(directory))
    report.add(f"hybrid, {head}", "build s, whole documents, all cores", build_s)
    stored = sum(file.stat().st_size for file in directory.glob("vectors.*"))
    report.add(f"hybrid, {head}", "bytes per vector", stored / len(matrix))
    cases = list(_cases(head, matrix, queries, tags, prices))
    ours = {case.name: _ours(report, index, case, queries, sizes.rounds) for case in cases}
    theirs: dict[str, list[tuple[str, tuple[Timing, int] | None]]] = {case.name: [] for case in cases}
    threads = psutil.cpu_count() or 1
    for peer in peers(matrix, list_count(len(matrix)), graphs=sizes.graphs, threads=threads):
        report.add(f"hybrid, {head}", "build s, index alone, all cores", None, peer.name, peer.build_s)
        for case in cases:
            found = tuned(peer, queries, case.mask, case.truth, sizes.rounds)
            theirs[case.name].append((peer.name, found))
            _log.info("peer", case=case.name, peer=peer.name, found=found)
    for case in cases:
        _compare(report, case.name, ours[case.name], theirs[case.name])


def _compare(report: Report, case: str, own: _Ours, theirs: list[tuple[str, tuple[Timing, int] | None]]) -> None:
    """Add one case: the median beside every peer's, the rest beside the peer with the best median."""
    best = best_of([(name, found[0]) for name, found in theirs if found is not None])
    name, other = (None, None) if best is None else best
    figures = (None, None, None, None) if other is None else (other.qps, other.recall, other.p99_us, other.p50_us)
    report.add(case, "QPS", own.search.qps, name, figures[0], more_is_better=True)
    report.add(case, f"recall@{K}", own.search.recall, name, figures[1], more_is_better=True)
    report.add(case, "p99 us", own.search.p99_us, name, figures[2])
    report.add(case, "p50 us, whole request", own.request.p50_us, name, figures[3])
    for peer, found in theirs:
        if found is None:
            report.add(case, "p50 us", own.search.p50_us, f"{peer} (none)")
        else:
            timing, setting = found
            words = f"{peer} ({setting}: {timing.recall:.3f})" if setting else peer
            report.add(case, "p50 us", own.search.p50_us, words, timing.p50_us)


def _ours(report: Report, index: Index, case: _Case, queries: Matrix, rounds: int) -> _Ours:
    requests = [{"vector": query.tolist(), **case.condition} for query in queries]
    parser, views = RequestParser(index.schema), index.view.layers()
    parsed, limits = [parser.parse(request) for request in requests], PlannerLimits()

    def whole(number: int) -> Ids:
        return np.array([hit["ad_id"] for hit in index.search(requests[number], K)["hits"]], np.int64)

    def search(number: int) -> Ids:
        query = parsed[number]
        near = NeighbourSearch(views, query.conditions, query.vector_field or "", _vector(query), limits)
        return near.best(K, int_keys=True).keys

    timed(search, case.truth, 1)
    found = _Ours(timed(search, case.truth, rounds), timed(whole, case.truth, rounds))
    ways: Counter[str] = Counter()
    for request in requests[:10]:
        ranking = index.explain(request, K)["plan"]["layers"][0]["ranking"]
        ways[ranking.partition(":")[0].partition(" ")[0]] += 1
    report.note(f"{case.name}: {', '.join(f'{way} {count}' for way, count in ways.most_common())} of 10 queries")
    _log.info("ours", case=case.name, found=found, ways=dict(ways))
    return found


def _vector(query: Query) -> Matrix:
    if query.vector is None:
        raise BenchmarkFailed("a request has no vector")
    return query.vector


def _cases(
    head: str, matrix: Matrix, queries: Matrix, tags: dict[int, Mask], prices: npt.NDArray[np.int64]
) -> Iterator[_Case]:
    for place, share in enumerate(_TAGS):
        below = round(_PRICES * _cheap(share))
        for kind, tag in (("random", 2 * place), ("correlated", 2 * place + 1)):

            def mask(own: Mask = tags[tag], below: int = below) -> Mask:
                combined: Mask = own & (prices < below)
                return combined

            condition = {
                "filter": {"term": {"field": "interests", "value": tag}},
                "price": {"max": (below - 1) / 1_000_000},
            }
            name = f"hybrid, {head}, {share:.1%} pass, {kind}"
            yield _Case(name, condition, mask, true_answers(matrix, queries, mask()))
    yield _Case(f"hybrid, {head}, no filter", {}, _everything, true_answers(matrix, queries, None))


def _everything() -> None:
    return None


def _cheap(share: float) -> float:
    """Return the share of all prices that a condition lets pass, so that with the tag `share` passes."""
    return 0.5 if share < 0.5 else 1.0


def _tags(matrix: Matrix) -> dict[int, Mask]:
    """Return who has each tag."""
    rng, along = np.random.default_rng(4), sides(matrix)
    found: dict[int, Mask] = {}
    for place, share in enumerate(_TAGS):
        tagged = share / _cheap(share)
        found[2 * place] = rng.random(len(matrix)) < tagged
        found[2 * place + 1] = along >= np.quantile(along, 1 - tagged)
    return found


def _catalog() -> Catalog:
    """Return the ads catalogue without what these documents do not have."""
    whole = load_catalog()
    fields = {name: whole.fields[name] for name in _FIELDS}
    serving = Serving(price="price_micros", vector="embedding")
    return replace(whole, fields=fields, dimensions={}, serving=serving)


def _documents(
    matrix: Matrix, tags: dict[int, Mask], prices: npt.NDArray[np.int64]
) -> Iterator[tuple[str, int, bytes]]:
    held: list[list[int]] = [[] for _ in range(len(matrix))]
    for tag, mask in tags.items():
        for row in np.flatnonzero(mask).tolist():
            held[row].append(tag)
    for row, price in enumerate(prices.tolist()):
        document = {"ad_id": row, "interests": held[row], "price_micros": price, "embedding": matrix[row].tobytes()}
        yield str(row), 1, encode_document(document)
