"""The kernels' source for Numba: the bitmap of what a program matches in a block of ids."""

# mypy: ignore-errors
# ruff: noqa: PLR1730 - Numba's min and max can raise, and kernels must not
from __future__ import annotations

from numba import njit, types

from manas.kernels._block_intrinsics import (
    and_words,
    andnot_words,
    any_word,
    between,
    clear_words,
    copy_words,
    flip_words,
    or_words,
)
from manas.kernels._intrinsics import bits_to_float, f32, f64, i64, popcount, trailing_zeros, u8, u16, u32, u64
from manas.kernels._predicate_source import keep_predicates
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, Code, Op, Param

BLOCK_BYTES = 8 * BLOCK_WORDS
WHOLE_WORD = 4
"""From so many bits set on, all 64 values of a word are compared at once: columns are padded to whole blocks."""


@njit(inline="always")
def seek(ids, count, at, wanted):
    """Return the first place from `at` on whose id is >= wanted: gallop, then halve."""
    if at >= count or ids[at] >= wanted:
        return at
    step = 1
    low = at
    high = at + 1
    while high < count and ids[high] < wanted:
        low = high
        step <<= 1
        high = low + step
    if high > count:
        high = count
    while low + 1 < high:
        middle = (low + high) >> 1
        if ids[middle] < wanted:
            low = middle
        else:
            high = middle
    return high


@njit(inline="always")
def keep_between(stack, base, first, values, low, high):
    """Clear the bits of a block whose ids have a number outside of a closed interval, of the numbers' own kind."""
    for w in range(BLOCK_WORDS):
        left = stack[base + w]
        if popcount(left) < WHOLE_WORD:
            keep = left
            while left != 0:
                bit = trailing_zeros(left)
                left &= left - types.uint64(1)
                value = values[first + w * 64 + types.int64(bit)]
                if value < low or value > high:
                    keep &= ~(types.uint64(1) << bit)
            stack[base + w] = keep
        else:
            stack[base + w] = left & between(values, first + w * 64, low, high)


@njit(inline="always")
def evaluate(code, length, stack_at, block, masks_at):
    """Run a program over one block; the result is in the first words of the stack. Returns whether any bit is set.

    With `masks_at`, only ids are wanted whose bits are set there: looked at after the program's first part.
    """
    top = stack_at - BLOCK_BYTES
    at = 0
    first = block * BLOCK_IDS
    byte = block * BLOCK_BYTES
    while at < length:
        row = at * Code.WIDTH
        op = code[row]
        a = code[row + 1]
        at += 1
        if op <= Op.DENSE_LAST:
            if op == Op.OR_DENSE:
                or_words(top, a + byte)
            elif op == Op.PUSH_DENSE:
                top += BLOCK_BYTES
                copy_words(top, a + byte)
            elif op == Op.AND_DENSE:
                and_words(top, a + byte)
            else:
                andnot_words(top, a + byte)
        elif op <= Op.SPLIT_LAST:
            ids = u32(a)
            count = code[row + 2]
            if op == Op.PUSH_SPLIT:
                top += BLOCK_BYTES
                clear_words(top)
            stack = u64(top)
            place = seek(ids, count, code[row + Code.READ], first)
            last = first + BLOCK_IDS
            if op == Op.ANDNOT_SPLIT:
                while place < count and ids[place] < last:
                    offset = ids[place] - first
                    stack[offset >> 6] &= ~(types.uint64(1) << types.uint64(offset & 63))
                    place += 1
            else:
                while place < count and ids[place] < last:
                    offset = ids[place] - first
                    stack[offset >> 6] |= types.uint64(1) << types.uint64(offset & 63)
                    place += 1
            code[row + Code.READ] = place
        elif op == Op.IF_EMPTY:
            if masks_at != 0:
                and_words(top, masks_at)
                masks_at = 0
            if not any_word(top):
                at = length
        elif op == Op.AND:
            top -= BLOCK_BYTES
            and_words(top, top + BLOCK_BYTES)
        elif op == Op.OR:
            top -= BLOCK_BYTES
            or_words(top, top + BLOCK_BYTES)
        elif op == Op.ANDNOT:
            top -= BLOCK_BYTES
            andnot_words(top, top + BLOCK_BYTES)
        elif op == Op.NOT:
            flip_words(top)
        elif op == Op.AND_RANGE_U8:
            keep_between(u64(top), 0, first, u8(a), code[row + 2], code[row + 3])
        elif op == Op.AND_RANGE_U16:
            keep_between(u64(top), 0, first, u16(a), code[row + 2], code[row + 3])
        elif op == Op.AND_RANGE_U32:
            keep_between(u64(top), 0, first, u32(a), code[row + 2], code[row + 3])
        elif op == Op.AND_RANGE_INT:
            keep_between(u64(top), 0, first, i64(a), code[row + 2], code[row + 3])
        elif op == Op.AND_RANGE_F32:
            least = bits_to_float(code[row + 2])
            most = bits_to_float(code[row + 3])
            keep_between(u64(top), 0, first, f32(a), least, most)
        elif op == Op.AND_RANGE_FLOAT:
            least = bits_to_float(code[row + 2])
            most = bits_to_float(code[row + 3])
            keep_between(u64(top), 0, first, f64(a), least, most)
        elif op == Op.AND_PREDICATE:
            keep_predicates(u64(top), 0, first, a)
        else:  # Op.PUSH_NONE
            top += BLOCK_BYTES
            clear_words(top)
    if masks_at != 0:
        and_words(stack_at, masks_at)
    return any_word(stack_at)


@njit(inline="always")
def next_block(p, drivers, block):
    """Return the first block from `block` on that can hold a match: where any of the driving lists has an id."""
    count = p[Param.DRIVERS]
    if count == 0:
        return block
    best = p[Param.BLOCKS]
    first = block * BLOCK_IDS
    for d in range(count):
        ids = u32(drivers[3 * d])
        size = drivers[3 * d + 1]
        place = seek(ids, size, drivers[3 * d + 2], first)
        drivers[3 * d + 2] = place
        if place < size:
            found = types.int64(ids[place]) // BLOCK_IDS
            if found < best:
                best = found
    return best
