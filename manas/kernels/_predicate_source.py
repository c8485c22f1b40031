"""Predicates' source for Numba: does the predicate of a document hold for a request?

A predicate is a branching program: each step looks at one condition and goes on to one of two steps, until it accepts
or refuses. Denials are in the steps, so nothing is evaluated that cannot change the outcome.
"""

# mypy: ignore-errors
from __future__ import annotations

from numba import cfunc, njit, types

from manas.kernels._intrinsics import i32, i64, trailing_zeros, u8, u32
from manas.kernels.layout import BLOCK_WORDS
from manas.kernels.predicate_layout import ACCEPT, BROWSED, DENIED, GIVEN, RANGE, Judge, Step


@njit(inline="always")
def branches(p, number):
    """Follow a predicate's steps to their end."""
    steps = i32(p[Judge.STEPS])
    elements = i64(p[Judge.ELEMENTS])
    states = i64(p[Judge.STATES])
    starts = i64(p[Judge.STARTS])
    values = i64(p[Judge.VALUES])
    at = types.int64(i32(p[Judge.ENTRIES])[number])
    while at >= 0:
        row = at * Step.WIDTH
        kind = types.int64(steps[row + Step.KIND])
        dimension = kind >> 2
        state = states[dimension]
        met = state == BROWSED
        if state == GIVEN:
            hit = False
            first = types.int64(steps[row + Step.FIRST])
            last = first + types.int64(steps[row + Step.COUNT])
            for place in range(starts[dimension], starts[dimension + 1]):
                value = values[place]
                if kind & RANGE:
                    hit = hit or (elements[first] <= value <= elements[first + 1])
                else:
                    low = first
                    high = last
                    while low < high:
                        middle = (low + high) >> 1
                        if elements[middle] < value:
                            low = middle + 1
                        else:
                            high = middle
                    hit = hit or (low < last and elements[low] == value)
            met = hit != ((kind & DENIED) != 0)
        at = types.int64(steps[row + (Step.IF_MET if met else Step.ELSE)])
    return at == ACCEPT


@njit(inline="always")
def holds(p, number):
    """Tell whether a predicate holds. Documents share predicates: a verdict of this turn is not worked out again."""
    memo = i32(p[Judge.MEMO])
    turn = types.int64(2) * p[Judge.TURN]
    known = types.int64(memo[number])
    if known >> 1 == p[Judge.TURN]:
        return known & 1 == 1
    verdict = branches(p, number)
    memo[number] = turn + 1 if verdict else turn
    return verdict


@njit(inline="always")
def keep_predicates(stack, base, first, address):
    """Clear the bits of a block whose documents have a predicate that does not hold."""
    p = i64(address)
    numbers = i32(p[Judge.OF])
    for w in range(BLOCK_WORDS):
        left = stack[base + w]
        keep = left
        while left != 0:
            bit = trailing_zeros(left)
            left &= left - types.uint64(1)
            number = types.int64(numbers[first + w * 64 + types.int64(bit)])
            if number >= 0 and not holds(p, number):
                keep &= ~(types.uint64(1) << bit)
        stack[base + w] = keep


def judge(p):
    """Write to OUT, for COUNT ids of IDS, whether they have no predicate or one that holds."""
    numbers = i32(p[Judge.OF])
    ids = u32(p[Judge.IDS])
    out = u8(p[Judge.OUT])
    for place in range(p[Judge.COUNT]):
        number = types.int64(numbers[ids[place]])
        out[place] = 1 if number < 0 or holds(p, number) else 0


def build_predicates():
    """Return name -> compiled cfunc of every kernel."""
    options = {"nopython": True, "error_model": "numpy"}
    return {judge.__name__: cfunc(types.void(types.CPointer(types.int64)), **options)(judge)}
