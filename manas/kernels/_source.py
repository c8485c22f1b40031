"""The kernels' source for Numba: Boolean programs over blocks of ids, top-k by score, exact nearest neighbours.

Numba is imported by nobody else: `_compile` turns these functions into machine code once per machine, and a server
loads that code in milliseconds without Numba (see `loader`).

Every kernel takes one pointer to int64 parameters; addresses, sizes and results travel in them (`layout` names the
places). They allocate nothing, raise nothing and keep all state in what the caller passes, so a call can be cut into
slices of blocks and continued.
"""

# mypy: ignore-errors
# ruff: noqa: PLR1730 - Numba's min and max can raise, and kernels must not
from __future__ import annotations

import numpy as np
from numba import cfunc, njit, types

from manas.kernels._block_source import evaluate, next_block, seek
from manas.kernels._codes_source import guessed_bar, least_code, mask_codes
from manas.kernels._heap_source import put, settle, worse
from manas.kernels._intrinsics import bits_to_float, f32, f64, i64, popcount, trailing_zeros, u32, u64
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, BOUND_IDS, SAMPLE, Bonus, Param


@njit(inline="always")
def offer(p, scores, ties, ids, score, tie, number, rising):
    """Put a candidate among the best: the worst of them is at the root of a heap, or last where they come in order."""
    size = p[Param.HEAP_SIZE]
    if rising:
        if size < p[Param.K]:
            scores[size] = score
            ties[size] = tie
            ids[size] = number
            p[Param.HEAP_SIZE] = size + 1
        return
    k = p[Param.K]
    if size < k or worse(scores[0], ties[0], score, tie):
        p[Param.HEAP_SIZE] = put(scores, ties, ids, size, k, score, tie, number)


@njit(inline="always")
def bonus_bounds(bonuses, count, block):
    """Return the most that the lists can add to a score in a block, and from that block on.

    The sums run in the order in which scores are added up, and rounding is monotonic: no score is above its bound.
    """
    here = 0.0
    later = 0.0
    first = block * BLOCK_IDS
    last = first + BLOCK_IDS
    for b in range(count):
        row = b * Bonus.WIDTH
        weight = bits_to_float(bonuses[row + Bonus.WEIGHT])
        if weight <= 0.0:
            continue
        bounds_at = bonuses[row + Bonus.BOUNDS]
        bounds = f32(bounds_at)
        suffix = f32(bonuses[row + Bonus.SUFFIX])
        if bonuses[row + Bonus.DENSE] != 0:
            if bounds_at == 0:
                here += weight
                later += weight
            else:
                here += weight * bounds[block]
                later += weight * suffix[block]
        else:
            ids = u32(bonuses[row + Bonus.ADDRESS])
            size = bonuses[row + Bonus.COUNT]
            place = seek(ids, size, bonuses[row + Bonus.CURSOR], first)
            bonuses[row + Bonus.CURSOR] = place
            if place < size:
                if bounds_at == 0:
                    later += weight
                    if ids[place] < last:
                        here += weight
                else:
                    group = place // BOUND_IDS
                    later += weight * suffix[group]
                    if ids[place] < last:
                        most = bounds[group]
                        group += 1
                        while group * BOUND_IDS < size and ids[group * BOUND_IDS] < last:
                            if bounds[group] > most:
                                most = bounds[group]
                            group += 1
                        here += weight * most
    return here, later


@njit(inline="always")
def add_bonuses(bonuses, count, stack, bonus, block):
    """Write into `bonus` what the lists add to the score of each id of a block whose bit is set; elsewhere anything."""
    first = block * BLOCK_IDS
    for w in range(BLOCK_WORDS):
        left = stack[w]
        while left != 0:
            bonus[w * 64 + types.int64(trailing_zeros(left))] = 0.0
            left &= left - types.uint64(1)
    for b in range(count):
        row = b * Bonus.WIDTH
        weight = bits_to_float(bonuses[row + Bonus.WEIGHT])
        payload_at = bonuses[row + Bonus.PAYLOAD]
        payload = f32(payload_at)
        if bonuses[row + Bonus.DENSE] != 0:
            bits = u64(bonuses[row + Bonus.ADDRESS])
            if payload_at == 0:
                for w in range(BLOCK_WORDS):
                    left = bits[block * BLOCK_WORDS + w] & stack[w]
                    while left != 0:
                        offset = w * 64 + types.int64(trailing_zeros(left))
                        left &= left - types.uint64(1)
                        bonus[offset] += weight
            else:
                rank = types.int64(u32(bonuses[row + Bonus.RANKS])[block])
                for w in range(BLOCK_WORDS):
                    own = bits[block * BLOCK_WORDS + w]
                    left = own & stack[w]
                    while left != 0:
                        bit = trailing_zeros(left)
                        left &= left - types.uint64(1)
                        before = own & ((types.uint64(1) << bit) - types.uint64(1))
                        place = rank + types.int64(popcount(before))
                        bonus[w * 64 + types.int64(bit)] += weight * payload[place]
                    rank += types.int64(popcount(own))
        else:
            ids = u32(bonuses[row + Bonus.ADDRESS])
            size = bonuses[row + Bonus.COUNT]
            place = seek(ids, size, bonuses[row + Bonus.CURSOR], first)
            while place < size and ids[place] < first + BLOCK_IDS:
                offset = types.int64(ids[place]) - first
                if payload_at != 0:
                    bonus[offset] += weight * payload[place]
                else:
                    bonus[offset] += weight
                place += 1
            bonuses[row + Bonus.CURSOR] = place


SIGNATURE = types.void(types.CPointer(types.int64))


def top_k(p):
    """Rank what a program matches in blocks [BLOCK, UNTIL): static score, plus weight x payload of matching lists.

    Blocks whose bound is below the worst of k candidates are skipped, unless everything is to be counted; the suffix
    bound ends the run. Both are strict, so ties are decided by the tie key, whatever the order of ids; only where ids
    follow (score, tie key) and nothing is added to scores, an equal bound ends the run too.
    """
    code = i64(p[Param.CODE])
    length = p[Param.CODE_LENGTH]
    stack = u64(p[Param.STACK])
    drivers = i64(p[Param.DRIVER_TABLE])
    static = f64(p[Param.STATIC])
    tie_keys = i64(p[Param.TIES])
    short_keys = u32(p[Param.TIES])
    short = p[Param.SHORT_TIES] != 0
    block_max = f64(p[Param.BLOCK_MAX])
    suffix_max = f64(p[Param.SUFFIX_MAX])
    bonuses = i64(p[Param.BONUS_TABLE])
    bonus_count = p[Param.BONUSES]
    bonus = f64(p[Param.BONUS_BUFFER])
    best_scores = f64(p[Param.HEAP_SCORES])
    best_ties = i64(p[Param.HEAP_TIES])
    best_ids = i64(p[Param.HEAP_IDS])
    k = p[Param.K]
    worst = k - 1 if p[Param.TIES_RISE] != 0 and bonus_count == 0 else 0
    counting = p[Param.COUNTING]
    codes = p[Param.CODES]
    word_codes = p[Param.WORD_CODES]
    levels = f64(p[Param.LEVELS])
    masks_at = p[Param.MASKS]
    rising = p[Param.TIES_RISE] != 0 and bonus_count == 0
    paging = p[Param.AFTER]
    after_score = bits_to_float(p[Param.AFTER_SCORE])
    after_tie = p[Param.AFTER_TIE]
    until = p[Param.UNTIL]
    block = p[Param.BLOCK]
    matched = p[Param.MATCHED]
    evaluated = p[Param.EVALUATED]
    floor = -np.inf
    guessing = False
    step = p[Param.BLOCKS] // SAMPLE
    sampling = SAMPLE if p[Param.GUESS] != 0 and step >= 4 else 0
    found = 0
    least = types.int64(0)
    least_for = -np.inf
    while block < until:
        if sampling == 0:
            block = next_block(p, drivers, block)
            if block >= until:
                break
        full = p[Param.HEAP_SIZE] == k
        hopeless = False
        wanted = types.int64(0)
        if full or guessing:
            bar = best_scores[worst] if full else floor
            if bar < floor:
                bar = floor
            here = 0.0
            later = 0.0
            if bonus_count > 0:
                here, later = bonus_bounds(bonuses, bonus_count, block)
            if suffix_max[block] + later < bar or (rising and suffix_max[block] <= bar):
                if counting == 0:
                    p[Param.STOPPED] = 1
                    block = until
                    break
                hopeless = True
            else:
                hopeless = block_max[block] + here < bar
            if codes != 0 and counting == 0 and not hopeless:
                wanted = masks_at
                if bonus_count > 0 or bar != least_for:
                    least = least_code(levels, here, bar)
                    least_for = bar
                hopeless = not mask_codes(masks_at, codes, word_codes, block, least)
            if hopeless and counting == 0:
                block += 1
                continue
        looked_at = block if sampling == 0 else (SAMPLE - sampling) * step + step // 2
        matching = evaluate(code, length, p[Param.STACK], looked_at, wanted)
        if sampling > 0:
            if matching:
                for w in range(BLOCK_WORDS):
                    found += types.int64(popcount(stack[w]))
            sampling -= 1
            if sampling == 0:
                floor = guessed_bar(p, code, length, levels, i64(p[Param.RANKS]), found)
                guessing = floor > -np.inf
            continue
        evaluated += 1
        if matching:
            if hopeless:
                for w in range(BLOCK_WORDS):
                    matched += types.int64(popcount(stack[w]))
                block += 1
                continue
            first = block * BLOCK_IDS
            if bonus_count > 0:
                add_bonuses(bonuses, bonus_count, stack, bonus, block)
            done = False
            for w in range(BLOCK_WORDS):
                left = stack[w]
                matched += types.int64(popcount(left))
                while left != 0 and not done:
                    number = first + w * 64 + types.int64(trailing_zeros(left))
                    left &= left - types.uint64(1)
                    score = static[number]
                    if bonus_count > 0:
                        score += bonus[number - first]
                    tie = types.int64(short_keys[number]) if short else tie_keys[number]
                    if paging and not worse(score, tie, after_score, after_tie):
                        continue
                    offer(p, best_scores, best_ties, best_ids, score, tie, number, rising)
                    if rising and counting == 0 and p[Param.HEAP_SIZE] == k:
                        # Ids follow (score, tie key): nothing that comes later can be better.
                        done = True
                if done:
                    break
            if done:
                p[Param.STOPPED] = 1
                block = until
                break
        block += 1
    if guessing and (p[Param.HEAP_SIZE] < k or best_scores[0] < floor):
        p[Param.MISSED] = 1
    elif p[Param.FINISH] != 0 and not rising:
        settle(best_scores, best_ties, best_ids, p[Param.HEAP_SIZE])
    p[Param.BLOCK] = block
    p[Param.MATCHED] = matched
    p[Param.EVALUATED] = evaluated


def match(p):
    """Write the bitmap of what a program matches in blocks [BLOCK, UNTIL) to OUT and count it."""
    code = i64(p[Param.CODE])
    length = p[Param.CODE_LENGTH]
    stack = u64(p[Param.STACK])
    drivers = i64(p[Param.DRIVER_TABLE])
    out = u64(p[Param.OUT])
    until = p[Param.UNTIL]
    block = p[Param.BLOCK]
    matched = p[Param.MATCHED]
    evaluated = p[Param.EVALUATED]
    while block < until:
        block = next_block(p, drivers, block)
        if block >= until:
            break
        evaluated += 1
        if evaluate(code, length, p[Param.STACK], block, types.int64(0)):
            base = block * BLOCK_WORDS
            for w in range(BLOCK_WORDS):
                word = stack[w]
                out[base + w] = word
                matched += types.int64(popcount(word))
        block += 1
    p[Param.BLOCK] = block
    p[Param.MATCHED] = matched
    p[Param.EVALUATED] = evaluated


def build():
    """Return name -> compiled cfunc of every kernel."""
    options = {"nopython": True, "error_model": "numpy"}
    return {function.__name__: cfunc(SIGNATURE, **options)(function) for function in (top_k, match)}
