"""Measure on a segment's own vectors what its lists and its graph take for the recall that is promised."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manas._bits import Words, words_of
from manas._layer import Ids
from manas._schema import Floats
from manas._vector_plan import CALIBRATED_K, LEAST_LOCAL, WALK_BUDGET, Beam, Reach
from manas._vector_table import Lists, VectorTable

RECALL_AIM = 0.98
"""Of the calibration. The promise is 0.95, on queries that the calibration has not seen."""
_FURTHER_AIM = 0.995
"""The same for filters that depend on the vectors, of which only some kinds are tried."""
_QUERIES = 64
_GROUP = 16
"""Queries compared with all vectors at a time: bounds the memory."""
_DEPTHS = (1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000)
_DEEPEST = 1 / 16
"""Share of the vectors: who wants deeper neighbours compares everything that passes."""
_CORRELATED = (0.5, 0.1, 0.02)
"""Shares that filters which depend on the vectors let pass."""
_SHARES = (1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
_TWO_HOPS_TO, _ALL_FROM = 0.7, 0.3
"""Where walks over survivors only, and over everything, are tried."""
_WIDTHS = (10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448)

Sims = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Case:
    """A query with the rows that are its answer under some filter."""

    aims: Sims
    """Similarity of every centroid."""
    best: Rows
    bar: float
    """Similarity of the last of `best`."""


def measure_reaches(matrix: Floats, lists: Lists, seed: int = 2) -> tuple[Reach, ...]:
    """Return by depth how far lists must be trusted to reach, and what share of the vectors is scanned then.

    A random filter is a matter of depth alone: who passes it is a sample of the nearest. Filters that depend on the
    vectors are measured apart: half-spaces, the surroundings of the query or of another vector, and what is far from
    the query. What the most demanding kind needs at a depth counts.
    """
    depths = [depth for depth in _DEPTHS if depth <= len(matrix) * _DEEPEST]
    random: dict[int, list[_Case]] = {depth: [] for depth in depths}
    correlated: dict[float, dict[str, list[_Case]]] = {share: defaultdict(list) for share in _CORRELATED}
    rng = np.random.default_rng(seed)
    plane = _direction(matrix, rng)
    planes = {share: _first(plane, share) for share in _CORRELATED} if depths else {}
    other: Sims | None = None
    for row, similar in _queries(matrix, rng) if depths else ():
        aims = lists.centroids @ matrix[row]
        nearest = _ranked(similar, max(depths[-1], CALIBRATED_K))
        for depth in depths:
            random[depth].append(_Case(aims, nearest[:depth], float(similar[nearest[depth - 1]])))
        other = similar if other is None else other
        for share, half_space in planes.items():
            # Of the surroundings of the query, however large, the nearest are the nearest of all.
            around = {"plane": half_space, "other": _first(-other, share), "far": _first(similar, share)}
            for kind, passing in around.items():
                correlated[share][kind].append(_case(similar, passing, CALIBRATED_K, aims))
            correlated[share]["near"].append(_case(similar, nearest, CALIBRATED_K, aims))
        other = similar
    owner = np.repeat(np.arange(len(lists)), np.diff(lists.starts))
    sizes = np.diff(lists.starts)
    further = [max((_needed(group, owner, lists, _FURTHER_AIM) for group in kinds.values()), default=0.0)
                 for kinds in correlated.values()]  # fmt: skip
    needed = [max(0.0, _needed(cases, owner, lists, RECALL_AIM)) for cases in random.values()]
    found = []
    for place, (depth, cases) in enumerate(random.items()):
        reach = max(needed[place : place + 2])
        demanding = np.interp(np.log(depth), np.log(CALIBRATED_K / np.array(_CORRELATED)), further)
        shares = [sizes[case.aims + reach * lists.spread >= case.bar].sum() / len(matrix) for case in cases]
        found.append(Reach(float(depth), reach, max(reach, float(demanding)), float(np.mean(shares))))
    return tuple(found)


def measure_beams(table: VectorTable, ids: Ids, count: int, seed: int = 3) -> tuple[Beam, ...]:
    """Return by share of vectors that pass how wide a walk's beam must be, and what the walk takes.

    `ids` by row, below `count`. Queries are rows, and walks go on as if these were not there: the graph knows the way
    from a row to its neighbours too well. A share at which no width is enough is left out.
    """
    rng = np.random.default_rng(seed)
    queries = list(_queries(table.matrix, rng))
    plane = _direction(table.matrix, rng)
    beams: list[Beam] = []
    for share in _SHARES:
        luck = rng.random(len(table.matrix))
        filters = [luck < share]
        if share < 1:
            filters.append(plane <= np.quantile(plane, share))
        tried = []
        if share >= _ALL_FROM:
            tried.append(_narrowest(table, ids, count, queries, filters, share, two_hops=False))
        if share <= _TWO_HOPS_TO:
            tried.append(_narrowest(table, ids, count, queries, filters, share, two_hops=True))
        enough = [beam for beam in tried if beam is not None]
        if enough:
            beams.append(min(enough, key=lambda beam: beam.compared + beam.looked / 10))
    return tuple(beams)


def _narrowest(
    table: VectorTable,
    ids: Ids,
    count: int,
    queries: Sequence[tuple[int, Sims]],
    filters: Sequence[npt.NDArray[np.bool_]],
    share: float,
    *,
    two_hops: bool,
) -> Beam | None:
    tasks: list[list[tuple[int, Words, set[int]]]] = []
    for passing in filters:
        group = []
        for row, similar in queries:
            allowed = passing.copy()
            allowed[row] = False
            rows = np.flatnonzero(allowed)
            if len(rows) <= CALIBRATED_K:
                continue
            top = rows[np.argpartition(-similar[rows], CALIBRATED_K)[:CALIBRATED_K]]
            group.append((row, words_of(ids[rows], count), set(ids[top].tolist())))
        tasks.append(group)
    for width in _WIDTHS:
        looked = compared = steps = finished = 0
        enough = True
        for group in tasks:
            hits = wanted = 0
            for row, words, best in group:
                found = table.walk(
                    table.matrix[row],
                    words,
                    width,
                    two_hops=two_hops,
                    least_local=share * LEAST_LOCAL,
                    budget=WALK_BUDGET,
                    without=row,
                )
                if not found.finished:
                    continue
                order = np.argsort(-found.scores)[:CALIBRATED_K]
                hits += len(best.intersection(found.ids[order].tolist()))
                wanted += CALIBRATED_K
                looked, compared, steps = looked + found.looked, compared + found.compared, steps + found.visits
                finished += 1
            if hits < RECALL_AIM * wanted:
                enough = False
                break
        if enough and finished:
            return Beam(share, width, two_hops, looked / finished, compared / finished, steps / finished)
    return None


def _queries(matrix: Floats, rng: np.random.Generator) -> Iterator[tuple[int, Sims]]:
    """Yield rows to ask for, each with the similarity of every row; its own is the lowest."""
    rows = np.sort(rng.choice(len(matrix), min(_QUERIES, len(matrix)), replace=False))
    for at in range(0, len(rows), _GROUP):
        group = rows[at : at + _GROUP]
        similar = np.ascontiguousarray((matrix @ matrix[group].T).T)
        for row, own in zip(group.tolist(), similar, strict=True):
            own[row] = -9.0
            yield row, own


def _direction(matrix: Floats, rng: np.random.Generator) -> Sims:
    """Return the place of every row along the line through two of them."""
    one, other = matrix[rng.choice(len(matrix), 2, replace=False)]
    along: Sims = matrix @ (one - other)
    return along


def _first(key: Sims, share: float) -> Rows:
    """Return the rows with the smallest keys, a share of all."""
    count = max(CALIBRATED_K + 1, round(share * len(key)))
    return np.argpartition(key, count)[:count]


def _ranked(similar: Sims, count: int) -> Rows:
    """Return the most similar rows, the nearest first."""
    nearest = np.argpartition(-similar, count)[:count]
    return nearest[np.argsort(-similar[nearest], kind="stable")]


def _case(similar: Sims, passing: Rows, depth: int, aims: Sims) -> _Case:
    own = similar[passing]
    best = np.argpartition(-own, depth - 1)[:depth]
    return _Case(aims, passing[best], float(own[best].min()))


def _needed(cases: Sequence[_Case], owner: Rows, lists: Lists, aim: float) -> float:
    """Return the spreads with which enough of the answers' lists are scanned. Every query counts the same."""
    needs, weights = [], []
    for case in cases:
        held = owner[case.best]
        needs.append((case.bar - case.aims[held]) / np.maximum(lists.spread[held], 1e-9))
        weights.append(np.full(len(held), 1 / len(held)))
    every, weight = np.concatenate(needs), np.concatenate(weights)
    order = np.argsort(every)
    reached = np.cumsum(weight[order]) / weight.sum()
    return float(every[order][min(len(order) - 1, int(np.searchsorted(reached, aim)))])
