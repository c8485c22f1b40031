"""The walk over a graph of near vectors: source for Numba, under the rules of `_source`."""

# mypy: ignore-errors
from __future__ import annotations

from numba import cfunc, njit, types

from manas.kernels._intrinsics import bits_to_float, f32, f64, i64, u32, u64
from manas.kernels._source import SIGNATURE
from manas.kernels._vector_intrinsics import prefetch
from manas.kernels._vector_source import aim, dot, next_list, offer_row, passes, take_list
from manas.kernels.vector_layout import NO_ROW, PAUSED, Near


@njit(inline="always")
def enqueue(queue_scores, queue_rows, size, score, row):
    """Put a row into the queue whose best is at the root; return the new size."""
    at = size
    while at > 0:
        parent = (at - 1) >> 1
        if queue_scores[parent] < score:
            queue_scores[at] = queue_scores[parent]
            queue_rows[at] = queue_rows[parent]
            at = parent
        else:
            break
    queue_scores[at] = score
    queue_rows[at] = row
    return size + 1


@njit(inline="always")
def dequeue(queue_scores, queue_rows, size):
    """Take the root out of the queue; return the new size."""
    size -= 1
    score = queue_scores[size]
    row = queue_rows[size]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and queue_scores[child + 1] > queue_scores[child]:
            child += 1
        if queue_scores[child] > score:
            queue_scores[at] = queue_scores[child]
            queue_rows[at] = queue_rows[child]
            at = child
        else:
            break
    queue_scores[at] = score
    queue_rows[at] = row
    return size


@njit(inline="always")
def seen(visited, row):
    """Mark a row; return whether it had been marked."""
    word = visited[row >> 6]
    bit = types.uint64(1) << types.uint64(row & 63)
    visited[row >> 6] = word | bit
    return (word & bit) != 0


def walk_near(p):
    """Walk the graph from the best that pass in the nearest lists; K is the width of the beam.

    Where few pass, only rows that pass are compared, and rows that do not are looked through to those behind them.
    Where most pass, everything is compared and what does not pass is left out of the answer.
    """
    dims = p[Near.DIMS]
    query = f32(p[Near.QUERY_AT])
    matrix = f32(p[Near.MATRIX_AT])
    words = u64(p[Near.WORDS_AT])
    ids = u32(p[Near.IDS_AT])
    tie_keys = i64(p[Near.TIES_AT])
    scores = f64(p[Near.SCORES_AT])
    ties = i64(p[Near.HEAP_TIES_AT])
    numbers = i64(p[Near.HEAP_IDS_AT])
    starts = i64(p[Near.STARTS_AT])
    buffer = i64(p[Near.BUFFER_AT])
    links = u32(p[Near.LINKS_AT])
    visited = u64(p[Near.VISITED_AT])
    queue_scores = f32(p[Near.QUEUE_SCORES_AT])
    queue_rows = i64(p[Near.QUEUE_ROWS_AT])
    degree = p[Near.DEGREE]
    two_hops = p[Near.TWO_HOPS]
    budget = p[Near.BUDGET]
    until = p[Near.UNTIL]
    k = p[Near.K]
    looked = p[Near.LOOKED]
    compared = p[Near.COMPARED]
    steps = p[Near.VISITS]
    queued = p[Near.AT]
    if p[Near.STATUS] != PAUSED:
        aim(p, types.float32(0.0))
        for _ in range(p[Near.SEEDS]):
            nearest = next_list(p)
            take_list(p, nearest)
            for row in range(starts[nearest], starts[nearest + 1]):
                looked += 1
                number = types.int64(ids[row])
                if passes(words, number) != 0 and compared < budget:
                    compared += 1
                    seen(visited, row)
                    score = dot(query, matrix, row, dims)
                    if p[Near.SIZE] < k or types.float64(score) > scores[0]:
                        offer_row(p, scores, ties, numbers, tie_keys, types.float64(score), number)
                        queued = enqueue(queue_scores, queue_rows, queued, score, row)
        p[Near.LOOKED] = looked
        p[Near.COMPARED] = compared
        if compared == 0 or types.float64(compared) < bits_to_float(p[Near.LEAST_LOCAL]) * types.float64(looked):
            p[Near.STATUS] = 1
            return
    p[Near.STATUS] = 0
    while queued > 0:
        best = queue_scores[0]
        here = queue_rows[0]
        if p[Near.SIZE] == k and types.float64(best) < scores[0]:
            break
        if looked >= until:
            p[Near.STATUS] = PAUSED
            break
        queued = dequeue(queue_scores, queue_rows, queued)
        steps += 1
        found = 0
        for j in range(degree):
            link = links[here * degree + j]
            if link == NO_ROW:
                break
            row = types.int64(link)
            if not seen(visited, row):
                looked += 1
                if two_hops == 0 or passes(words, types.int64(ids[row])) != 0:
                    buffer[found] = row
                    found += 1
                    prefetch(p[Near.MATRIX_AT] + row * dims * 4)
                else:
                    for behind in range(degree):
                        other = links[row * degree + behind]
                        if other == NO_ROW:
                            break
                        second = types.int64(other)
                        looked += 1
                        if passes(words, types.int64(ids[second])) != 0 and not seen(visited, second):
                            buffer[found] = second
                            found += 1
                            prefetch(p[Near.MATRIX_AT] + second * dims * 4)
        for place in range(found):
            row = buffer[place]
            score = dot(query, matrix, row, dims)
            if p[Near.SIZE] < k or types.float64(score) > scores[0]:
                queued = enqueue(queue_scores, queue_rows, queued, score, row)
                number = types.int64(ids[row])
                if two_hops != 0 or passes(words, number) != 0:
                    offer_row(p, scores, ties, numbers, tie_keys, types.float64(score), number)
        compared += found
        if compared > budget:
            p[Near.STATUS] = 2
            break
    p[Near.AT] = queued
    p[Near.LOOKED] = looked
    p[Near.COMPARED] = compared
    p[Near.VISITS] = steps


def build_walk():
    """Return name -> compiled cfunc of the kernel. Sums of products may be taken in any order, as vector units do."""
    options = {"nopython": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
    return {"walk_near": cfunc(SIGNATURE, **options)(walk_near)}
