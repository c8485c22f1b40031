"""`bench vectors`: the ten nearest that pass a filter, at recall 0.95, by share that passes and kind of filter.

Vectors of 64 dimensions that cluster well or hardly; filters at random or by side of a plane, which keeps near and far
vectors together as real filters do. Queries are drawn like the vectors and are none of them. One thread everywhere.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog

from benchmarks._report import Report, machine_of
from benchmarks._vector_peers import Mask, Matrix, Peer, missing, peers
from manas import VectorBuild
from manas._bits import words_of
from manas._vector_files import write_vectors
from manas._vector_store import SegmentVectors, open_vectors

K = 10
RECALL = 0.95
_DIMS = 64
_NOISE = {"clustered": 0.8, "weak": 1.6}
"""Length of the noise around a centre of length 1."""
_SHARES = (0.001, 0.01, 0.1, 0.5, 1.0)
_TUNING_S = 4.0
"""For one setting of a peer; one that is slower is not looked at further."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    vectors: int = 200_000
    centres: int = 1_000
    queries: int = 100
    rounds: int = 3
    exact_survivors: int = 500


QUICK = Sizes(vectors=6_000, centres=60, queries=20, rounds=1)


@dataclass(slots=True)
class _Task:
    """One filter with its queries and their true answers."""

    mask: Mask
    truth: list[set[int]]


@dataclass(slots=True)
class _Timing:
    recall: float
    p50_us: float
    p99_us: float

    @property
    def qps(self) -> float:
        return 1e6 / self.p50_us


def run(quick: bool, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the benchmark. Peers that are not installed are left out, and a note says so."""
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        machine = machine_of(Path(name))
        for kind, noise in _NOISE.items():
            (Path(name) / kind).mkdir()
            _measure(report, kind, noise, chosen, Path(name) / kind)
    for peer in missing():
        report.note(f"{peer} is not installed: pip install adsindex[bench]")
    report.note(
        f"k = {K}; each peer at its cheapest setting with recall@{K} >= {RECALL}, in parentheses its recall; none: no "
        f"setting reached it. Filters are ready-made bitmaps for everybody (for hnswlib's callback a Python function)."
    )
    return report.to_json("vectors", machine)


def _measure(report: Report, kind: str, noise: float, sizes: Sizes, directory: Path) -> None:
    matrix, queries = _vectors(sizes, noise)
    started = time.perf_counter()
    ids = np.arange(len(matrix), dtype=np.uint32)
    plan = write_vectors(directory, "v", _DIMS, ids, matrix, len(matrix), VectorBuild())
    build_s = time.perf_counter() - started
    store = open_vectors(directory, "v", _DIMS, len(matrix))
    stored = sum(file.stat().st_size for file in directory.iterdir())
    head = f"{len(matrix):,} {kind}"
    report.note(
        f"{head}: {plan.lists} lists{', a graph' if plan.degree else ''}; built in {build_s:.1f} s; "
        f"{stored / len(matrix):.0f} bytes per vector, of which {4 * _DIMS} are the vector"
    )
    tasks = {
        (share, name): _Task(mask, _truth(matrix, queries, mask))
        for share in _SHARES
        for name, mask in _filters(matrix, share)
    }
    ours: dict[tuple[float, str], _Timing] = {}
    for case, task in tasks.items():
        ours[case], ways = _ours(store, task, queries, sizes)
        label = _label(head, case)
        report.add(label, "QPS", ours[case].qps)
        report.add(label, "p50 us", ours[case].p50_us)
        report.add(label, "p99 us", ours[case].p99_us)
        report.add(label, f"recall@{K}", ours[case].recall)
        report.note(f"{label}: {', '.join(f'{way} {n}' for way, n in ways.most_common())}")
        _log.info("ours", case=label, p50_us=round(ours[case].p50_us, 1), recall=ours[case].recall, ways=dict(ways))
    for peer in peers(matrix, plan.lists):
        report.add(head, "build s", build_s, peer.name, peer.build_s)
        for case, task in tasks.items():
            timing = _tuned(peer, task, queries, sizes)
            name = f"{peer.name} (none)" if timing is None else f"{peer.name} ({timing.recall:.3f})"
            report.add(_label(head, case), "p50 us", ours[case].p50_us, name, None if timing is None else timing.p50_us)
            _log.info("peer", case=_label(head, case), peer=name, p50_us=None if timing is None else timing.p50_us)


def _label(head: str, case: tuple[float, str]) -> str:
    share, name = case
    return f"{head}, {share:.1%} pass, {name}" if share < 1 else f"{head}, no filter"


def _ours(store: SegmentVectors, task: _Task, queries: Matrix, sizes: Sizes) -> tuple[_Timing, Counter[str]]:
    words = words_of(np.flatnonzero(task.mask).astype(np.uint32), len(task.mask))
    survivors = int(task.mask.sum())
    ways: Counter[str] = Counter()
    scans = sizes.exact_survivors

    def search(query: Matrix) -> npt.NDArray[np.int64]:
        found = store.nearest(query, words, survivors, K, exact_survivors=scans)
        return found.ids[np.lexsort((found.ids, -found.scores))[:K]].astype(np.int64)

    for query in queries:
        ways[store.nearest(query, words, survivors, K, exact_survivors=scans).way] += 1
    return _timed(search, task, queries, sizes.rounds), ways


def _tuned(peer: Peer, task: _Task, queries: Matrix, sizes: Sizes) -> _Timing | None:
    ready = peer.prepare(task.mask)
    for setting in peer.settings:
        started = time.perf_counter()
        hits = asked = 0
        for query, truth in zip(queries, task.truth, strict=True):
            hits += len(truth.intersection(peer.search(query, task.mask, ready, setting, K).tolist()))
            asked += len(truth)
            if time.perf_counter() - started > _TUNING_S:
                break
        if hits >= RECALL * asked:
            few = queries if time.perf_counter() - started < _TUNING_S else queries[: max(5, asked // K)]
            search = partial(_ask, peer, task.mask, ready, setting)
            return _timed(search, task, few, sizes.rounds)
    return None


def _ask(peer: Peer, mask: Mask, ready: Any, setting: int, query: Matrix) -> npt.NDArray[np.int64]:
    return peer.search(query, mask, ready, setting, K)


def _timed(search: Callable[[Matrix], npt.NDArray[np.int64]], task: _Task, queries: Matrix, rounds: int) -> _Timing:
    """Return recall, and the medians over rounds of the median and of the 99th percentile."""
    medians, tails = [], []
    hits = asked = 0
    for _ in range(rounds):
        took = []
        for query, truth in zip(queries, task.truth, strict=False):
            started = time.perf_counter_ns()
            found = search(query)
            took.append((time.perf_counter_ns() - started) / 1e3)
            hits += len(truth.intersection(found.tolist()))
            asked += len(truth)
        medians.append(float(np.median(took)))
        tails.append(float(np.quantile(took, 0.99)))
    return _Timing(hits / asked, float(np.median(medians)), float(np.median(tails)))


def _vectors(sizes: Sizes, noise: float) -> tuple[Matrix, Matrix]:
    rng = np.random.default_rng(1)
    centres = _unit(rng.standard_normal((sizes.centres, _DIMS)))

    def draw(count: int) -> Matrix:
        return _unit(
            centres[rng.integers(0, sizes.centres, count)]
            + rng.standard_normal((count, _DIMS), dtype=np.float32) * np.float32(noise / np.sqrt(_DIMS))
        )

    return draw(sizes.vectors), draw(sizes.queries)


def _unit(rows: npt.NDArray[Any]) -> Matrix:
    scaled: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def _filters(matrix: Matrix, share: float) -> Sequence[tuple[str, Mask]]:
    """Return a filter at random, and one by side of a plane."""
    if share >= 1:
        return [("", np.ones(len(matrix), bool))]
    rng = np.random.default_rng(2)
    along = matrix @ (matrix[rng.integers(len(matrix))] - matrix[rng.integers(len(matrix))])
    return [("random", rng.random(len(matrix)) < share), ("correlated", along > np.quantile(along, 1 - share))]


def _truth(matrix: Matrix, queries: Matrix, mask: Mask) -> list[set[int]]:
    rows = np.flatnonzero(mask)
    passing = matrix[rows]
    wanted = min(K, len(rows))
    return [set(rows[np.argpartition(-(passing @ query), wanted - 1)[:wanted]].tolist()) for query in queries]
