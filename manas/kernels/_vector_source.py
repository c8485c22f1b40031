"""Nearest-neighbour kernels' source for Numba: by all that pass a filter, by lists of a clustering, by a graph.

The rules of `_source` hold: one pointer to parameters, nothing allocated, nothing raised. Similarities are dot products
of float32 while searching; `score_near` then gives what is left in the heap its float64 similarity.
"""

# mypy: ignore-errors
# ruff: noqa: PLR1730 - Numba's min and max can raise, and kernels must not
from __future__ import annotations

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from manas.kernels._intrinsics import bits_to_float, f32, f64, i64, trailing_zeros, u32, u64
from manas.kernels._source import SIGNATURE, worse
from manas.kernels.vector_layout import MAX_SEEDS, NO_ROW, Near

SLACK, SIGMAS = 0.1, 2.0
"""By how much the number that pass in the lists scanned may differ from what a random filter would let pass there: a
tenth of it, and two standard deviations."""


@intrinsic
def prefetch(typing_context, address):
    """Ask for the cache line of an address."""

    def codegen(context, builder, signature, arguments):
        pointer = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        wanted = ir.FunctionType(ir.VoidType(), [pointer.type, number, number, number])
        name = "llvm.prefetch.p0i8" if "i8*" in str(pointer.type) else "llvm.prefetch.p0"
        function = builder.module.globals.get(name) or ir.Function(builder.module, wanted, name)
        builder.call(function, [pointer, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(inline="always")
def dot(query, matrix, row, dims):
    """Return the similarity of the query and a row."""
    base = row * dims
    total = types.float32(0.0)
    for place in range(dims):
        total += query[place] * matrix[base + place]
    return total


@njit(inline="always")
def passes(words, number):
    """Return 1 when the bit of an id is set, else 0."""
    return types.int64((words[number >> 6] >> types.uint64(number & 63)) & types.uint64(1))


@njit(inline="always")
def keep(p, scores, ties, numbers, score, tie, number):
    """Put a candidate into the heap of the best; the worst of them is at its root. It is known to be good enough."""
    size = p[Near.SIZE]
    k = p[Near.K]
    if size < k:
        at = size
        p[Near.SIZE] = size + 1
        while at > 0:
            parent = (at - 1) >> 1
            if worse(score, tie, scores[parent], ties[parent]):
                scores[at] = scores[parent]
                ties[at] = ties[parent]
                numbers[at] = numbers[parent]
                at = parent
            else:
                break
    else:
        at = 0
        while True:
            child = 2 * at + 1
            if child >= k:
                break
            if child + 1 < k and worse(scores[child + 1], ties[child + 1], scores[child], ties[child]):
                child += 1
            if worse(scores[child], ties[child], score, tie):
                scores[at] = scores[child]
                ties[at] = ties[child]
                numbers[at] = numbers[child]
                at = child
            else:
                break
    scores[at] = score
    ties[at] = tie
    numbers[at] = number


@njit(inline="always")
def offer_row(p, scores, ties, numbers, tie_keys, score, number):
    """Keep a candidate if it is better than the worst of k."""
    full = p[Near.SIZE] == p[Near.K]
    if not full or score >= scores[0]:
        tie = number
        if p[Near.TIES_AT] != 0:
            tie = tie_keys[number]
        if not full or worse(scores[0], ties[0], score, tie):
            keep(p, scores, ties, numbers, score, tie, number)


def score_near(p):
    """Replace the similarities of the ids in the heap by float64 ones, which leaves them in no order.

    A kernel of its own, so that the same machine code gives every similarity: it depends on the two vectors alone.
    """
    dims = p[Near.DIMS]
    query = f32(p[Near.QUERY_AT])
    matrix = f32(p[Near.MATRIX_AT])
    rows = u32(p[Near.ROWS_AT])
    scores = f64(p[Near.SCORES_AT])
    numbers = i64(p[Near.HEAP_IDS_AT])
    mapped = p[Near.ROWS_AT] != 0
    for place in range(p[Near.SIZE]):
        row = numbers[place]
        if mapped:
            row = types.int64(rows[row])
        base = row * dims
        total = 0.0
        for i in range(dims):
            total += types.float64(query[i]) * types.float64(matrix[base + i])
        scores[place] = total


def scan_near(p):
    """Compare every vector whose id is in the bitmap."""
    dims = p[Near.DIMS]
    query = f32(p[Near.QUERY_AT])
    matrix = f32(p[Near.MATRIX_AT])
    words = u64(p[Near.WORDS_AT])
    rows = u32(p[Near.ROWS_AT])
    tie_keys = i64(p[Near.TIES_AT])
    scores = f64(p[Near.SCORES_AT])
    ties = i64(p[Near.HEAP_TIES_AT])
    numbers = i64(p[Near.HEAP_IDS_AT])
    mapped = p[Near.ROWS_AT] != 0
    compared = 0
    for w in range(p[Near.WORDS]):
        left = words[w]
        while left != 0:
            number = w * 64 + types.int64(trailing_zeros(left))
            left &= left - types.uint64(1)
            row = number
            if mapped:
                row = types.int64(rows[number])
            offer_row(p, scores, ties, numbers, tie_keys, types.float64(dot(query, matrix, row, dims)), number)
            compared += 1
    p[Near.COMPARED] = compared


@njit(inline="always")
def sink(bounds, order, at, size):
    """Restore the heap of lists, the one with the highest bound at its root, from one place down."""
    moved = order[at]
    bound = bounds[moved]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and bounds[order[child + 1]] > bounds[order[child]]:
            child += 1
        if bounds[order[child]] > bound:
            order[at] = order[child]
            at = child
        else:
            break
    order[at] = moved


def probe_near(p):
    """Scan lists in the order of their bounds, until no other list is likely to hold anything better than k found.

    With fewer than k found the run goes on to the last list, so it never returns fewer than there are. Where the lists
    scanned hold far more or far fewer that pass than all lists do, the filter depends on the vectors, and bounds that
    hold for random filters are too low: the run goes on with higher ones.
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
    centroids = f32(p[Near.CENTROIDS_AT])
    spread = f32(p[Near.SPREAD_AT])
    bounds = f32(p[Near.BOUNDS_AT])
    order = i64(p[Near.ORDER_AT])
    buffer = i64(p[Near.BUFFER_AT])
    reach = types.float32(bits_to_float(p[Near.REACH]))
    lists = p[Near.LISTS]
    k = p[Near.K]
    for place in range(lists):
        bounds[place] = dot(query, centroids, place, dims) + reach * spread[place]
        order[place] = place
    at = (lists >> 1) - 1
    while at >= 0:
        sink(bounds, order, at, lists)
        at -= 1
    looked = 0
    compared = 0
    visits = 0
    remaining = lists
    expected = bits_to_float(p[Near.EXPECTED])
    more = types.float32(bits_to_float(p[Near.FURTHER])) - reach
    while remaining > 0:
        nearest = order[0]
        if p[Near.SIZE] == k and types.float64(bounds[nearest]) < scores[0]:
            usual = expected * types.float64(looked)
            allowed = SLACK * usual + SIGMAS * (usual * (1.0 - expected)) ** 0.5
            if more <= 0 or abs(types.float64(compared) - usual) <= allowed:
                break
            for place in range(remaining):
                bounds[order[place]] += more * spread[order[place]]
            more = types.float32(0.0)
            at = (remaining >> 1) - 1
            while at >= 0:
                sink(bounds, order, at, remaining)
                at -= 1
            continue
        remaining -= 1
        order[0] = order[remaining]
        if remaining > 0:
            sink(bounds, order, 0, remaining)
        found = 0
        first = starts[nearest]
        last = starts[nearest + 1]
        for row in range(first, last):
            buffer[found] = row
            found += passes(words, types.int64(ids[row]))
        for place in range(found):
            row = buffer[place]
            score = types.float64(dot(query, matrix, row, dims))
            if p[Near.SIZE] < k or score >= scores[0]:
                offer_row(p, scores, ties, numbers, tie_keys, score, types.int64(ids[row]))
        looked += last - first
        compared += found
        visits += 1
    p[Near.LOOKED] = looked
    p[Near.COMPARED] = compared
    p[Near.VISITS] = visits


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
    centroids = f32(p[Near.CENTROIDS_AT])
    bounds = f32(p[Near.BOUNDS_AT])
    order = i64(p[Near.ORDER_AT])
    buffer = i64(p[Near.BUFFER_AT])
    links = u32(p[Near.LINKS_AT])
    visited = u64(p[Near.VISITED_AT])
    queue_scores = f32(p[Near.QUEUE_SCORES_AT])
    queue_rows = i64(p[Near.QUEUE_ROWS_AT])
    degree = p[Near.DEGREE]
    two_hops = p[Near.TWO_HOPS]
    budget = p[Near.BUDGET]
    k = p[Near.K]
    lists = p[Near.LISTS]
    seeds = p[Near.SEEDS]
    if seeds > MAX_SEEDS:
        seeds = MAX_SEEDS
    if seeds > lists:
        seeds = lists
    # The nearest lists, best first, in `order`.
    known = 0
    for place in range(lists):
        bound = dot(query, centroids, place, dims)
        if known < seeds or bound > bounds[known - 1]:
            if known < seeds:
                known += 1
            at = known - 1
            while at > 0 and bounds[at - 1] < bound:
                bounds[at] = bounds[at - 1]
                order[at] = order[at - 1]
                at -= 1
            bounds[at] = bound
            order[at] = place
    looked = 0
    compared = 0
    queued = 0
    for s in range(known):
        for row in range(starts[order[s]], starts[order[s] + 1]):
            looked += 1
            number = types.int64(ids[row])
            if passes(words, number) != 0 and compared < budget:
                compared += 1
                seen(visited, row)
                score = dot(query, matrix, row, dims)
                if p[Near.SIZE] < k or types.float64(score) > scores[0]:
                    offer_row(p, scores, ties, numbers, tie_keys, types.float64(score), number)
                    queued = enqueue(queue_scores, queue_rows, queued, score, row)
    steps = 0
    p[Near.LOOKED] = looked
    p[Near.COMPARED] = compared
    p[Near.VISITS] = 0
    if compared == 0 or types.float64(compared) < bits_to_float(p[Near.LEAST_LOCAL]) * types.float64(looked):
        p[Near.STATUS] = 1
        return
    while queued > 0:
        best = queue_scores[0]
        here = queue_rows[0]
        if p[Near.SIZE] == k and types.float64(best) < scores[0]:
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
    p[Near.LOOKED] = looked
    p[Near.COMPARED] = compared
    p[Near.VISITS] = steps


def build_vectors():
    """Return name -> compiled cfunc of every kernel. Sums of products may be taken in any order, as vector units do."""
    options = {"nopython": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
    return {f.__name__: cfunc(SIGNATURE, **options)(f) for f in (scan_near, probe_near, walk_near, score_near)}
