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

from numba import cfunc, njit, types

from manas.kernels._heap_source import put, worse
from manas.kernels._intrinsics import bits_to_float, f32, f64, i64, popcount, trailing_zeros, u8, u16, u32, u64
from manas.kernels._predicate_source import keep_predicates
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS, BOUND_IDS, Bonus, Code, Op, Param


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
    """Clear the bits of a block whose ids have a whole number outside of a closed interval."""
    for w in range(BLOCK_WORDS):
        left = stack[base + w]
        keep = left
        while left != 0:
            bit = trailing_zeros(left)
            left &= left - types.uint64(1)
            value = types.int64(values[first + w * 64 + types.int64(bit)])
            if value < low or value > high:
                keep &= ~(types.uint64(1) << bit)
        stack[base + w] = keep


@njit(inline="always")
def keep_between_floats(stack, base, first, values, low, high):
    """Clear the bits of a block whose ids have a float outside of a closed interval."""
    for w in range(BLOCK_WORDS):
        left = stack[base + w]
        keep = left
        while left != 0:
            bit = trailing_zeros(left)
            left &= left - types.uint64(1)
            value = types.float64(values[first + w * 64 + types.int64(bit)])
            if value < low or value > high:
                keep &= ~(types.uint64(1) << bit)
        stack[base + w] = keep


@njit(inline="always")
def evaluate(code, length, stack, block):
    """Run a program over one block; the result is in the first words of `stack`. Returns whether any bit is set."""
    top = -1
    at = 0
    first = block * BLOCK_IDS
    word = block * BLOCK_WORDS
    while at < length:
        row = at * Code.WIDTH
        op = code[row]
        a = code[row + 1]
        at += 1
        if op <= Op.DENSE_LAST:
            bits = u64(a)
            if op == Op.PUSH_DENSE:
                top += 1
                base = top * BLOCK_WORDS
                for w in range(BLOCK_WORDS):
                    stack[base + w] = bits[word + w]
            elif op == Op.OR_DENSE:
                base = top * BLOCK_WORDS
                for w in range(BLOCK_WORDS):
                    stack[base + w] |= bits[word + w]
            elif op == Op.AND_DENSE:
                base = top * BLOCK_WORDS
                for w in range(BLOCK_WORDS):
                    stack[base + w] &= bits[word + w]
            else:
                base = top * BLOCK_WORDS
                for w in range(BLOCK_WORDS):
                    stack[base + w] &= ~bits[word + w]
        elif op <= Op.SPLIT_LAST:
            ids = u32(a)
            count = code[row + 2]
            if op == Op.PUSH_SPLIT:
                top += 1
                base = top * BLOCK_WORDS
                for w in range(BLOCK_WORDS):
                    stack[base + w] = 0
            base = top * BLOCK_WORDS
            place = seek(ids, count, code[row + Code.READ], first)
            last = first + BLOCK_IDS
            if op == Op.ANDNOT_SPLIT:
                while place < count and ids[place] < last:
                    offset = ids[place] - first
                    stack[base + (offset >> 6)] &= ~(types.uint64(1) << types.uint64(offset & 63))
                    place += 1
            else:
                while place < count and ids[place] < last:
                    offset = ids[place] - first
                    stack[base + (offset >> 6)] |= types.uint64(1) << types.uint64(offset & 63)
                    place += 1
            code[row + Code.READ] = place
        elif op == Op.AND:
            top -= 1
            base = top * BLOCK_WORDS
            for w in range(BLOCK_WORDS):
                stack[base + w] &= stack[base + BLOCK_WORDS + w]
        elif op == Op.OR:
            top -= 1
            base = top * BLOCK_WORDS
            for w in range(BLOCK_WORDS):
                stack[base + w] |= stack[base + BLOCK_WORDS + w]
        elif op == Op.ANDNOT:
            top -= 1
            base = top * BLOCK_WORDS
            for w in range(BLOCK_WORDS):
                stack[base + w] &= ~stack[base + BLOCK_WORDS + w]
        elif op == Op.NOT:
            base = top * BLOCK_WORDS
            for w in range(BLOCK_WORDS):
                stack[base + w] = ~stack[base + w]
        elif op == Op.IF_EMPTY:
            base = top * BLOCK_WORDS
            any_bit = types.uint64(0)
            for w in range(BLOCK_WORDS):
                any_bit |= stack[base + w]
            if any_bit == 0:
                at = length
        elif op == Op.AND_RANGE_U8:
            keep_between(stack, top * BLOCK_WORDS, first, u8(a), code[row + 2], code[row + 3])
        elif op == Op.AND_RANGE_U16:
            keep_between(stack, top * BLOCK_WORDS, first, u16(a), code[row + 2], code[row + 3])
        elif op == Op.AND_RANGE_U32:
            keep_between(stack, top * BLOCK_WORDS, first, u32(a), code[row + 2], code[row + 3])
        elif op == Op.AND_RANGE_INT:
            keep_between(stack, top * BLOCK_WORDS, first, i64(a), code[row + 2], code[row + 3])
        elif op == Op.AND_RANGE_F32:
            least = bits_to_float(code[row + 2])
            most = bits_to_float(code[row + 3])
            keep_between_floats(stack, top * BLOCK_WORDS, first, f32(a), least, most)
        elif op == Op.AND_RANGE_FLOAT:
            least = bits_to_float(code[row + 2])
            most = bits_to_float(code[row + 3])
            keep_between_floats(stack, top * BLOCK_WORDS, first, f64(a), least, most)
        elif op == Op.AND_PREDICATE:
            keep_predicates(stack, top * BLOCK_WORDS, first, a)
        else:  # Op.PUSH_NONE
            top += 1
            base = top * BLOCK_WORDS
            for w in range(BLOCK_WORDS):
                stack[base + w] = 0
    any_set = types.uint64(0)
    for w in range(BLOCK_WORDS):
        any_set |= stack[w]
    return any_set != 0


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


@njit(inline="always")
def offer(p, scores, ties, ids, score, tie, number):
    """Put a candidate into the heap of the best; the worst of them is at its root."""
    size = p[Param.HEAP_SIZE]
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
    """Write into `bonus` what the lists add to the score of each id of a block whose bit is set."""
    first = block * BLOCK_IDS
    for i in range(BLOCK_IDS):
        bonus[i] = 0.0
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
    counting = p[Param.COUNTING]
    rising = p[Param.TIES_RISE]
    paging = p[Param.AFTER]
    after_score = bits_to_float(p[Param.AFTER_SCORE])
    after_tie = p[Param.AFTER_TIE]
    until = p[Param.UNTIL]
    block = p[Param.BLOCK]
    matched = p[Param.MATCHED]
    evaluated = p[Param.EVALUATED]
    while block < until:
        block = next_block(p, drivers, block)
        if block >= until:
            break
        full = p[Param.HEAP_SIZE] == k
        hopeless = False
        if full:
            bar = best_scores[0]
            here = 0.0
            later = 0.0
            if bonus_count > 0:
                here, later = bonus_bounds(bonuses, bonus_count, block)
            if suffix_max[block] + later < bar or (rising and bonus_count == 0 and suffix_max[block] <= bar):
                if counting == 0:
                    p[Param.STOPPED] = 1
                    block = until
                    break
                hopeless = True
            else:
                hopeless = block_max[block] + here < bar
            if hopeless and counting == 0:
                block += 1
                continue
        evaluated += 1
        if evaluate(code, length, stack, block):
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
                    offer(p, best_scores, best_ties, best_ids, score, tie, number)
                    if rising and bonus_count == 0 and counting == 0 and p[Param.HEAP_SIZE] == k:
                        # Ids follow (score, tie key): nothing that comes later can be better.
                        done = True
                if done:
                    break
            if done:
                p[Param.STOPPED] = 1
                block = until
                break
        block += 1
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
        if evaluate(code, length, stack, block):
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
