"""The kernels' source for Numba: what codes of scores rule out, and a guess of the score that the best reach."""

# mypy: ignore-errors
from __future__ import annotations

import numpy as np
from numba import njit, types

from manas.kernels._block_intrinsics import codes_reaching, words_reaching
from manas.kernels._intrinsics import u64
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, CODES, SAMPLE, Code, Op, Param

LEAST_SAMPLED = 16
"""Matches in the sampled blocks below which they say too little."""


@njit(inline="always")
def least_code(levels, here, bar):
    """Return the least code with which a score can reach `bar`, 256 where none can.

    A code's level is no less than any score that has the code, and rounding is monotonic: what is added to a score
    is no more than `here`, so no sum exceeds that of its level and `here`.
    """
    low = 0
    high = CODES
    while low < high:
        middle = (low + high) >> 1
        if levels[middle] + here < bar:
            low = middle + 1
        else:
            high = middle
    return low


@njit(inline="always")
def root(value):
    """Return the square root of a number from 1 on to some percent, without the C library."""
    found = value
    while found * found > 1.05 * value:
        found = 0.5 * (found + value / found)
    return found


@njit(inline="always")
def guessed_bar(p, code, length, levels, ranks, found):
    """Return a score that most likely k matches reach, and not many more; -inf where a guess would not help.

    So many match in the blocks sampled; what matches is taken to have scores like everything else.
    """
    at = 0
    while at < length:  # lists are read from their beginnings again
        row = at * Code.WIDTH
        if code[row] > Op.DENSE_LAST and code[row] <= Op.SPLIT_LAST:
            code[row + Code.READ] = 0
        at += 1
    if found < LEAST_SAMPLED:
        return -np.inf
    # As many above the bar as are wanted, and four standard deviations of the count and of the sample more.
    wanted = types.float64(p[Param.K])
    wanted += 4.0 * root(wanted) + 4.0 * wanted / root(types.float64(found))
    share = wanted * SAMPLE / (types.float64(found) * p[Param.BLOCKS])
    if share > 0.25:
        return -np.inf
    rank = types.int64(share * p[Param.BLOCKS] * BLOCK_IDS)
    place = CODES - 1
    while place > 0 and ranks[place] < rank:
        place -= 1
    return levels[place]


@njit(inline="always")
def mask_codes(masks_at, codes, word_codes, block, least):
    """Write a bit for each id of a block whose code is at least `least`; return whether there is any."""
    if least >= CODES or words_reaching(word_codes + block * BLOCK_WORDS, least) == 0:
        return False
    masks = u64(masks_at)
    for w in range(BLOCK_WORDS):
        masks[w] = codes_reaching(codes + block * BLOCK_IDS + 64 * w, least)
    return True
