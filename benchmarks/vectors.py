"""`bench vectors`: the ten nearest of those in a ready-made bitmap, and whether the planner takes the right way.

The vectors alone, without requests and documents, at a size at which graphs take too long to build for a benchmark; for
whole requests and graphs see `bench retrieval`. Filters are at random or by side of a plane. Searches take one thread.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import structlog

from benchmarks._report import Report, machine_of
from benchmarks._vector_peers import Ids, Mask, Matrix, missing, peers
from benchmarks._vector_trials import (
    DIMS,
    NOISE,
    RECALL,
    SHARES,
    K,
    Timing,
    draw_vectors,
    sides,
    timed,
    true_answers,
    tuned,
)
from manas import PlannerLimits, VectorBuild, Way
from manas._bits import Words, words_of
from manas._vector_files import write_vectors
from manas._vector_store import SegmentVectors, open_vectors

_SLOWER = 1.3
"""A way that is so much faster than the planner's is remarked upon."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    vectors: int = 1_000_000
    centres: int = 1_000
    queries: int = 40
    rounds: int = 3
    graphs: bool = False
    """Peers that are graphs as well."""
    graph_micros: float = np.inf
    """See `VectorBuild`: by default no graph of ours either."""


QUICK = Sizes(vectors=6_000, centres=60, queries=12, rounds=1, graphs=True, graph_micros=0.0)


@dataclass(frozen=True, slots=True)
class _Case:
    """A filter with the true answers of all queries."""

    name: str
    mask: Mask | None
    words: Words
    survivors: int
    truth: list[set[int]]


def run(quick: bool, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the benchmark. Peers that are not installed are left out, and a note says so."""
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        machine = machine_of(Path(name))
        for kind, noise in NOISE.items():
            (Path(name) / kind).mkdir()
            _measure(report, f"{chosen.vectors:,} {kind}", noise, chosen, Path(name) / kind)
    for peer in missing():
        report.note(f"{peer} is not installed: pip install adsindex[bench]")
    report.note(
        f"k = {K}; each peer at its cheapest setting with recall@{K} >= {RECALL}, with its recall; none: no "
        f"setting reached it, or not in bearable time. A way of ours that does not reach the recall is not compared"
    )
    return report.to_json("vectors", machine)


def _measure(report: Report, head: str, noise: float, sizes: Sizes, directory: Path) -> None:
    matrix, queries = draw_vectors(sizes.vectors, sizes.queries, sizes.centres, noise)
    started = time.perf_counter()
    ids = np.arange(len(matrix), dtype=np.uint32)
    build = VectorBuild(graph_micros=sizes.graph_micros)
    plan = write_vectors(directory, "v", DIMS, ids, matrix, len(matrix), build)
    build_s = time.perf_counter() - started
    store = open_vectors(directory, "v", DIMS, len(matrix))
    stored = sum(file.stat().st_size for file in directory.iterdir())
    report.note(
        f"{head}: {plan.lists} lists{', a graph' if plan.degree else ''}; {stored / len(matrix):.0f} bytes per vector, "
        f"of which {4 * DIMS} are the vector"
    )
    cases = list(_cases(head, matrix, queries))
    ours = {case.name: _ours(report, store, case, queries, sizes) for case in cases}
    for peer in peers(matrix, plan.lists, graphs=sizes.graphs, threads=psutil.cpu_count() or 1):
        report.add(head, "build s, all cores", build_s, peer.name, peer.build_s)
        for case in cases:
            # The filter is ready: what the peer takes as one is made once.
            ready = peer.prepare(case.mask)
            given = replace(peer, prepare=partial(_ready, ready))
            found = tuned(given, queries, partial(_same, case.mask), case.truth, sizes.rounds)
            name = f"{peer.name} (none)" if found is None else f"{peer.name} ({found[1]}: {found[0].recall:.3f})"
            peers_p50 = None if found is None else found[0].p50_us
            report.add(case.name, "p50 us", ours[case.name].p50_us, name, peers_p50)
            _log.info("peer", case=case.name, peer=name, p50_us=peers_p50)


def _same(mask: Mask | None) -> Mask | None:
    return mask


def _ready(prepared: Any, mask: Mask | None) -> Any:
    return prepared


def _ours(report: Report, store: SegmentVectors, case: _Case, queries: Matrix, sizes: Sizes) -> Timing:
    """Time the planner's choice and every way it could have taken instead."""
    limits = PlannerLimits()

    def search(only: Way | None, number: int) -> Ids:
        least = limits.exact_survivors if only is None else 0
        found = store.nearest(queries[number], case.words, case.survivors, K, exact_survivors=least, only=only)
        return found.ids[np.lexsort((found.ids, -found.scores))[:K]].astype(np.int64)

    timed(partial(search, None), case.truth, 1)
    planned = timed(partial(search, None), case.truth, sizes.rounds)
    report.add(case.name, "QPS", planned.qps)
    report.add(case.name, "p99 us", planned.p99_us)
    report.add(case.name, f"recall@{K}", planned.recall)
    taken, possible = _ways(store, case, queries)
    others = {}
    for way in possible:
        forced = timed(partial(search, way), case.truth, 1)
        if forced.recall >= RECALL:
            others[way] = forced.p50_us
            report.add(case.name, "p50 us", planned.p50_us, f"ours, {way} only ({forced.recall:.3f})", forced.p50_us)
    best = min(others, key=others.__getitem__)
    words = f"{case.name}: {taken}"
    if planned.p50_us > _SLOWER * others[best]:
        words += f", and {best} would have been {planned.p50_us / others[best]:.1f} times as fast"
    report.note(words)
    _log.info("ours", case=case.name, p50_us=round(planned.p50_us, 1), recall=planned.recall, taken=taken)
    return planned


def _ways(store: SegmentVectors, case: _Case, queries: Matrix) -> tuple[str, list[Way]]:
    """Return which ways the planner takes, and which it could take."""
    taken: Counter[Way] = Counter()
    possible: set[Way] = set()
    for query in queries[:10]:
        found = store.nearest(query, case.words, case.survivors, K, exact_survivors=PlannerLimits().exact_survivors)
        taken[found.way] += 1
        possible |= set(found.choice.micros if found.choice is not None else ())
    return ", ".join(f"{way} {count}" for way, count in taken.most_common()), sorted(possible)


def _cases(head: str, matrix: Matrix, queries: Matrix) -> Iterator[_Case]:
    rng, along = np.random.default_rng(5), sides(matrix)
    for share in SHARES:
        if share >= 1:
            words = words_of(np.arange(len(matrix), dtype=np.uint32), len(matrix))
            yield _Case(f"{head}, no filter", None, words, len(matrix), true_answers(matrix, queries, None))
            continue
        masks = {"random": rng.random(len(matrix)) < share, "correlated": along > np.quantile(along, 1 - share)}
        for kind, mask in masks.items():
            words = words_of(np.flatnonzero(mask).astype(np.uint32), len(matrix))
            truth = true_answers(matrix, queries, mask)
            yield _Case(f"{head}, {share:.1%} pass, {kind}", mask, words, int(mask.sum()), truth)
