"""Nearest-neighbour kernels' source for Numba: by all that pass a filter, and by lists of a clustering.

The rules of `_source` hold: one pointer to parameters, nothing allocated, nothing raised. Similarities are dot products
of float32 while searching; `score_near` then gives what is left in the heap its float64 similarity. A kernel that met
`UNTIL` rows pauses with all its state in the parameters, so that the caller can look at the clock between two slices.
"""

# mypy: ignore-errors
# ruff: noqa: PLR1730 - Numba's min and max can raise, and kernels must not
from __future__ import annotations

from numba import cfunc, njit, types

from manas.kernels._heap_source import put, settle, worse
from manas.kernels._intrinsics import bits_to_float, f32, f64, i8, i64, trailing_zeros, u32, u64
from manas.kernels._source import SIGNATURE
from manas.kernels._vector_intrinsics import most, place_of, prefetch, reaching, similarities
from manas.kernels.vector_layout import GROUP, PAUSED, RING, Near

SLACK, SIGMAS = 0.1, 2.0
"""By how much the number that pass in the lists scanned may differ from what a random filter would let pass there: a
tenth of it, and two standard deviations."""
TESTED_PARTS = 4
"""Where rows are compared by codes, one of so many parts of a list is tested to see whether the filter depends on the
vectors: each time another, because a list's rows are in the order of ids, which filters may depend on."""
CODE_SIGMAS = 5.0
"""Standard deviations of a code's error to allow for: one in three million is further off."""
NOTHING = types.float32(-1e30)
"""The bound of a list that was scanned or is none."""


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
def offer_row(p, scores, ties, numbers, tie_keys, score, number):
    """Keep a candidate if it is better than the worst of k."""
    size = p[Near.SIZE]
    k = p[Near.K]
    if size < k or score >= scores[0]:
        tie = number
        if p[Near.TIES_AT] != 0:
            tie = tie_keys[number]
        if size < k or worse(scores[0], ties[0], score, tie):
            p[Near.SIZE] = put(scores, ties, numbers, size, k, score, tie, number)


def score_near(p):
    """Replace the similarities of the ids in the heap by float64 ones, and put them into order by these if wanted.

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
    if p[Near.ORDERED] != 0:
        ties = i64(p[Near.HEAP_TIES_AT])
        for size in range(p[Near.SIZE]):
            put(scores, ties, numbers, size, size + 1, scores[size], ties[size], numbers[size])
        settle(scores, ties, numbers, p[Near.SIZE])


def scan_near(p):
    """Compare every vector whose id is in the bitmap; vectors are asked from memory some rows ahead."""
    dims = p[Near.DIMS]
    query = f32(p[Near.QUERY_AT])
    matrix = f32(p[Near.MATRIX_AT])
    words = u64(p[Near.WORDS_AT])
    rows = u32(p[Near.ROWS_AT])
    tie_keys = i64(p[Near.TIES_AT])
    scores = f64(p[Near.SCORES_AT])
    ties = i64(p[Near.HEAP_TIES_AT])
    numbers = i64(p[Near.HEAP_IDS_AT])
    ring = i64(p[Near.BUFFER_AT])
    mapped = p[Near.ROWS_AT] != 0
    size = dims * 4
    lines = (size + 63) >> 6
    compared = p[Near.COMPARED]
    until = p[Near.UNTIL]
    asked = compared
    w = p[Near.AT]
    while w < p[Near.WORDS] and compared < until:
        left = words[w]
        while left != 0:
            number = w * 64 + types.int64(trailing_zeros(left))
            left &= left - types.uint64(1)
            row = number
            if mapped:
                row = types.int64(rows[number])
            start = p[Near.MATRIX_AT] + row * size
            for line in range(lines):
                prefetch(start + line * 64)
            place = 2 * (asked & (RING - 1))
            if asked - compared == RING:
                score = types.float64(dot(query, matrix, ring[place + 1], dims))
                offer_row(p, scores, ties, numbers, tie_keys, score, ring[place])
                compared += 1
            ring[place] = number
            ring[place + 1] = row
            asked += 1
        w += 1
    while compared < asked:
        place = 2 * (compared & (RING - 1))
        score = types.float64(dot(query, matrix, ring[place + 1], dims))
        offer_row(p, scores, ties, numbers, tie_keys, score, ring[place])
        compared += 1
    p[Near.AT] = w
    p[Near.COMPARED] = compared
    p[Near.STATUS] = PAUSED if w < p[Near.WORDS] else 0


@njit(inline="always")
def groups_of(count):
    """Return how many groups hold so many."""
    return (count + GROUP - 1) // GROUP


@njit(inline="always")
def rank_bounds(p):
    """Work out the greatest bound of every group of lists, and of every group of groups."""
    groups = groups_of(p[Near.LISTS])
    above = groups_of(groups)
    middle_at = p[Near.BOUNDS_AT] + 4 * GROUP * groups
    middle = f32(middle_at)
    top = f32(middle_at + 4 * GROUP * above)
    for group in range(GROUP * above):
        middle[group] = NOTHING
        if group < groups:
            middle[group] = most(p[Near.BOUNDS_AT] + 4 * GROUP * group)
    for group in range(GROUP * p[Near.TOPS]):
        top[group] = NOTHING
        if group < above:
            top[group] = most(middle_at + 4 * GROUP * group)


@njit(inline="always")
def aim(p, reach):
    """Work out the bound of every list."""
    lists = p[Near.LISTS]
    dims = p[Near.DIMS]
    bounds = f32(p[Near.BOUNDS_AT])
    spread = f32(p[Near.SPREAD_AT])
    groups = groups_of(lists)
    for group in range(groups):
        start = p[Near.CENTROIDS_AT] + 4 * GROUP * dims * group
        similarities(start, p[Near.QUERY_AT], dims, p[Near.BOUNDS_AT] + 4 * GROUP * group)
    for place in range(lists):
        bounds[place] += reach * spread[place]
    for place in range(lists, GROUP * groups):
        bounds[place] = NOTHING
    rank_bounds(p)


@njit(inline="always")
def next_list(p):
    """Return the list with the highest bound of those not taken yet."""
    groups = groups_of(p[Near.LISTS])
    middle_at = p[Near.BOUNDS_AT] + 4 * GROUP * groups
    top_at = middle_at + 4 * GROUP * groups_of(groups)
    place = 0
    highest = most(top_at)
    for group in range(1, p[Near.TOPS]):
        other = most(top_at + 4 * GROUP * group)
        if other > highest:
            highest = other
            place = group
    place = GROUP * place + place_of(top_at + 4 * GROUP * place, highest)
    place = GROUP * place + place_of(middle_at + 4 * GROUP * place, highest)
    return GROUP * place + place_of(p[Near.BOUNDS_AT] + 4 * GROUP * place, highest)


@njit(inline="always")
def take_list(p, place):
    """Take a list out of those to come."""
    groups = groups_of(p[Near.LISTS])
    middle_at = p[Near.BOUNDS_AT] + 4 * GROUP * groups
    top_at = middle_at + 4 * GROUP * groups_of(groups)
    f32(p[Near.BOUNDS_AT])[place] = NOTHING
    place //= GROUP
    f32(middle_at)[place] = most(p[Near.BOUNDS_AT] + 4 * GROUP * place)
    place //= GROUP
    f32(top_at)[place] = most(middle_at + 4 * GROUP * place)


@njit(inline="always")
def weigh(p):
    """Turn the query into weights for codes, and work out how far a similarity by codes may be off.

    Codes and weights are rounded: each is off by a uniform error, and the errors of all dimensions add up.
    """
    dims = p[Near.DIMS]
    query = f32(p[Near.QUERY_AT])
    scales = f32(p[Near.SCALES_AT])
    weights = i8(p[Near.WEIGHTS_AT])
    found = f64(p[Near.NUMBERS_AT])
    greatest = 0.0
    squares = 0.0
    for place in range(dims):
        value = types.float64(query[place]) * types.float64(scales[place])
        squares += value * value
        if value < 0:
            value = -value
        if value > greatest:
            greatest = value
    step = greatest / 127.0
    if step < 1e-30:
        step = 1e-30
    total = 0
    for place in range(4 * p[Near.FOURS]):
        weight = 0
        if place < dims:
            value = types.float64(query[place]) * types.float64(scales[place]) / step
            weight = -types.int64(0.5 - value) if value < 0 else types.int64(value + 0.5)
        weights[place] = types.int8(weight)
        total += weight
    found[0] = step
    found[1] = CODE_SIGMAS * ((squares + step * step * bits_to_float(p[Near.POWER])) / 12.0) ** 0.5 + 1e-6
    p[Near.OFFSET] = 128 * total


@njit(inline="always")
def bar_of(p, scores, step, error):
    """Return the least sum of codes that a row can have whose similarity is at least the worst of k."""
    bar = -2147483648.0
    if p[Near.SIZE] == p[Near.K]:
        bar = (scores[0] - error) / step + types.float64(p[Near.OFFSET])
        if bar < -2147483648.0:
            bar = -2147483648.0
        if bar > 2147483647.0:
            bar = 2147483647.0
    # Rounded towards zero, at most one below zero too high, which is far less than the error allowed for.
    return types.int64(bar)


def probe_near(p):
    """Scan lists in the order of their bounds, until no other list is likely to hold anything better than k found.

    With fewer than k found the run goes on to the last list, so it never returns fewer than there are. Where the lists
    scanned hold far more or far fewer that pass than all lists do, the filter depends on the vectors, and bounds that
    hold for random filters are too low: the run goes on with higher ones. With codes, rows are compared by these first,
    and only those near enough are tested and compared exactly.
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
    spread = f32(p[Near.SPREAD_AT])
    bounds = f32(p[Near.BOUNDS_AT])
    buffer = i64(p[Near.BUFFER_AT])
    found = f64(p[Near.NUMBERS_AT])
    reach = types.float32(bits_to_float(p[Near.REACH]))
    more = types.float32(bits_to_float(p[Near.FURTHER])) - reach
    expected = bits_to_float(p[Near.EXPECTED])
    lists = p[Near.LISTS]
    k = p[Near.K]
    until = p[Near.UNTIL]
    coded = p[Near.CODES_AT] != 0
    fours = p[Near.FOURS]
    if p[Near.STATUS] != PAUSED:
        aim(p, reach)
        if coded:
            weigh(p)
    p[Near.STATUS] = 0
    looked = p[Near.LOOKED]
    compared = p[Near.COMPARED]
    visits = p[Near.VISITS]
    tested = p[Near.TESTED]
    passed = p[Near.PASSED]
    while visits < lists:
        if looked >= until:
            p[Near.STATUS] = PAUSED
            break
        nearest = next_list(p)
        if p[Near.SIZE] == k and types.float64(bounds[nearest]) < scores[0]:
            usual = expected * types.float64(tested)
            allowed = SLACK * usual + SIGMAS * (usual * (1.0 - expected)) ** 0.5
            if p[Near.RAISED] != 0 or more <= 0 or abs(types.float64(passed) - usual) <= allowed:
                break
            for place in range(lists):
                if bounds[place] > NOTHING:
                    bounds[place] += more * spread[place]
            rank_bounds(p)
            p[Near.RAISED] = 1
            continue
        take_list(p, nearest)
        first = starts[nearest]
        last = starts[nearest + 1]
        if coded:
            asked = 0
            for group in range(first // GROUP, groups_of(last) + 1):
                # What a group wants compared is asked from memory, and compared when the next group's codes were read.
                flags = types.uint64(0)
                if group < groups_of(last):
                    bar = bar_of(p, scores, found[0], found[1])
                    flags = reaching(p[Near.CODES_AT] + group * fours * 4 * GROUP, p[Near.WEIGHTS_AT], fours, bar)
                for place in range(asked):
                    row = buffer[place]
                    score = types.float64(dot(query, matrix, row, dims))
                    offer_row(p, scores, ties, numbers, tie_keys, score, types.int64(ids[row]))
                compared += asked
                asked = 0
                base = group * GROUP
                if flags != 0 and base < first:
                    flags &= types.uint64(0xFFFF) << types.uint64(first - base)
                if flags != 0 and base + GROUP > last:
                    flags &= types.uint64(0xFFFF) >> types.uint64(base + GROUP - last)
                while flags != 0:
                    row = base + types.int64(trailing_zeros(flags))
                    flags &= flags - types.uint64(1)
                    if passes(words, types.int64(ids[row])) != 0:
                        for line in range((dims * 4 + 63) >> 6):
                            prefetch(p[Near.MATRIX_AT] + row * dims * 4 + line * 64)
                        buffer[asked] = row
                        asked += 1
            if expected < 1.0:
                part = visits % TESTED_PARTS
                begin = first + (last - first) * part // TESTED_PARTS
                end = first + (last - first) * (part + 1) // TESTED_PARTS
                for row in range(begin, end):
                    passed += passes(words, types.int64(ids[row]))
                tested += end - begin
        else:
            kept = 0
            for row in range(first, last):
                buffer[kept] = row
                kept += passes(words, types.int64(ids[row]))
            for place in range(kept):
                row = buffer[place]
                score = types.float64(dot(query, matrix, row, dims))
                if p[Near.SIZE] < k or score >= scores[0]:
                    offer_row(p, scores, ties, numbers, tie_keys, score, types.int64(ids[row]))
            tested += last - first
            passed += kept
            compared += kept
        looked += last - first
        visits += 1
    p[Near.LOOKED] = looked
    p[Near.COMPARED] = compared
    p[Near.VISITS] = visits
    p[Near.TESTED] = tested
    p[Near.PASSED] = passed


def build_vectors():
    """Return name -> compiled cfunc of every kernel. Sums of products may be taken in any order, as vector units do."""
    options = {"nopython": True, "error_model": "numpy", "fastmath": {"reassoc", "contract"}}
    return {f.__name__: cfunc(SIGNATURE, **options)(f) for f in (scan_near, probe_near, score_near)}
