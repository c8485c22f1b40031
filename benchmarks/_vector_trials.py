"""Vectors that cluster well or hardly, true answers, and the timing of a search at the recall that is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks._vector_peers import Ids, Mask, Matrix, Peer

K = 10
RECALL = 0.95
DIMS = 64
NOISE = {"clustered": 0.8, "weak": 1.6}
"""Length of the noise around a centre of length 1."""
SHARES = (0.001, 0.01, 0.1, 0.5, 1.0)
_TUNING_S = 0.5
"""For one setting of a peer; it is judged by the queries that were answered until then. A hundred queries of 5 ms: what
is slower than that is no rival, and a case has up to a dozen settings of seven peers."""
_LEAST_QUERIES = 10
_TIMING_S = 0.5
"""For one round of a setting, which has a hundred queries where these take less than 5 ms."""
_HALVINGS = 2
"""How often the interval between a setting that does not do and twice as much, which does, is halved."""

Search = Callable[[int], Ids]
"""Number of a query -> ids."""


@dataclass(slots=True)
class Timing:
    """What a search took, and how good its answers were."""

    recall: float
    p50_us: float
    p99_us: float

    @property
    def qps(self) -> float:
        """Queries per second of one core, by the median."""
        return 1e6 / self.p50_us


def draw_vectors(count: int, queries: int, centres: int, noise: float) -> tuple[Matrix, Matrix]:
    """Return unit vectors around centres, and queries that are drawn alike and are none of them."""
    rng = np.random.default_rng(1)
    middles = _unit(rng.standard_normal((centres, DIMS)))

    def draw(rows: int) -> Matrix:
        scale = np.float32(noise / np.sqrt(DIMS))
        return _unit(
            middles[rng.integers(0, centres, rows)] + rng.standard_normal((rows, DIMS), dtype=np.float32) * scale
        )

    return draw(count), draw(queries)


def sides(matrix: Matrix) -> npt.NDArray[np.float32]:
    """Return the place of every vector along a line: filters by it keep near and far vectors together."""
    rng = np.random.default_rng(2)
    along: npt.NDArray[np.float32] = matrix @ (matrix[rng.integers(len(matrix))] - matrix[rng.integers(len(matrix))])
    return along


def true_answers(matrix: Matrix, queries: Matrix, mask: Mask | None) -> list[set[int]]:
    """Return the ids of the nearest that pass, for every query."""
    rows = np.arange(len(matrix)) if mask is None else np.flatnonzero(mask)
    passing = matrix[rows]
    wanted = min(K, len(rows))
    return [set(rows[np.argpartition(-(passing @ query), wanted - 1)[:wanted]].tolist()) for query in queries]


def timed(search: Search, truth: list[set[int]], rounds: int) -> Timing:
    """Return recall, and the medians over rounds of the median and of the 99th percentile."""
    medians, tails = [], []
    hits = asked = 0
    for _ in range(rounds):
        took = []
        until = time.perf_counter() + _TIMING_S
        for number, wanted in enumerate(truth):
            started = time.perf_counter_ns()
            found = search(number)
            took.append((time.perf_counter_ns() - started) / 1e3)
            hits += len(wanted.intersection(found.tolist()))
            asked += len(wanted)
            if len(took) >= _LEAST_QUERIES and time.perf_counter() > until:
                break
        medians.append(float(np.median(took)))
        tails.append(float(np.quantile(took, 0.99)))
    return Timing(hits / asked, float(np.median(medians)), float(np.median(tails)))


def tuned(
    peer: Peer, queries: Matrix, mask_of: Callable[[], Mask | None], truth: list[set[int]], rounds: int
) -> tuple[Timing, int] | None:
    """Time a peer at its cheapest setting that reaches the recall; None when none does, or not in bearable time.

    The mask and what the peer makes of it are part of every query.
    """
    search = partial(_ask, peer, queries, mask_of)
    failed = 0
    for setting in peer.settings:
        recall = _recall(partial(search, setting), truth)
        if recall is None:
            return None
        if recall >= RECALL:
            break
        failed = setting
    else:
        return None
    for _ in range(_HALVINGS):
        middle = (failed + setting) // 2
        if not failed < middle < setting:
            break
        recall = _recall(partial(search, middle), truth)
        if recall is not None and recall >= RECALL:
            setting = middle
        else:
            failed = middle
    return timed(partial(search, setting), truth, rounds), setting


def best_of(timings: Iterable[tuple[str, Timing]]) -> tuple[str, Timing] | None:
    """Return the peer with the lowest median."""
    return min(timings, key=lambda pair: pair[1].p50_us, default=None)


def _ask(peer: Peer, queries: Matrix, mask_of: Callable[[], Mask | None], setting: int, number: int) -> Ids:
    mask = mask_of()
    return peer.search(queries[number], mask, peer.prepare(mask), setting, K)


def _recall(search: Search, truth: list[set[int]]) -> float | None:
    """Return the recall over as many queries as there is time for, None when that is too few.

    Once so much was missed that all the rest could not make up for it, what was found until then is enough to know.
    """
    until = time.perf_counter() + _TUNING_S
    hits = asked = 0
    bearable = (1 - RECALL) * sum(map(len, truth))
    for number, wanted in enumerate(truth):
        if asked - hits > bearable or (time.perf_counter() > until and number >= _LEAST_QUERIES):
            break
        if time.perf_counter() > until + _TUNING_S:
            return None
        hits += len(wanted.intersection(search(number).tolist()))
        asked += len(wanted)
    return hits / asked


def _unit(rows: npt.NDArray[Any]) -> Matrix:
    scaled: Matrix = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return scaled
