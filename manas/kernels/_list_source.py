"""Source for Numba: posting lists packed to the bits that their gaps need, and unpacked again.

A list is cut into runs of 128 ids. A run is a byte, the width, and for each id its distance to the one before less
one, in that many bits, lowest first, filled up to whole bytes. The id before the first of a list is -1.
"""

# mypy: ignore-errors
# ruff: noqa: PLR1730 - Numba's min and max can raise, and kernels must not
from __future__ import annotations

from numba import cfunc, types

from manas.kernels._intrinsics import i64, u8, u32, u64
from manas.kernels.list_layout import RUN_IDS, Pack, Unpack


def pack(p):
    """Pack LISTS lists one behind the other into OUT; PLACES gets the byte at which each begins, END the end."""
    ids = u32(p[Pack.IDS])
    counts = i64(p[Pack.COUNTS])
    out = u8(p[Pack.OUT])
    places = i64(p[Pack.PLACES])
    at = types.int64(0)
    end = types.int64(0)
    for number in range(p[Pack.LISTS]):
        places[number] = end
        before = types.int64(-1)
        left = counts[number]
        while left > 0:
            run = types.int64(RUN_IDS)
            if left < run:
                run = left
            seen = types.int64(0)
            last = before
            for i in range(run):
                own = types.int64(ids[at + i])
                seen |= own - last - 1
                last = own
            width = types.int64(0)
            while seen >> width != 0:
                width += 1
            out[end] = types.uint8(width)
            end += 1
            bits = types.uint64(0)
            have = types.int64(0)
            for i in range(run):
                own = types.int64(ids[at + i])
                bits |= types.uint64(own - before - 1) << types.uint64(have)
                before = own
                have += width
                while have >= 8:
                    out[end] = types.uint8(bits & types.uint64(255))
                    end += 1
                    bits >>= types.uint64(8)
                    have -= 8
            if have > 0:
                out[end] = types.uint8(bits & types.uint64(255))
                end += 1
            at += run
            left -= run
    p[Pack.END] = end


def unpack(p):
    """Unpack one list. DAMAGED is set where the bytes cannot be a list of so many ids below LIMIT."""
    source = u8(p[Unpack.SOURCE])
    room = p[Unpack.ROOM]
    limit = p[Unpack.LIMIT]
    ids = u32(p[Unpack.OUT])
    words = u64(p[Unpack.OUT])
    as_bits = p[Unpack.AS_BITS] != 0
    count = p[Unpack.IDS]
    at = types.int64(0)
    done = types.int64(0)
    before = types.int64(-1)
    p[Unpack.DAMAGED] = 1
    while done < count:
        run = types.int64(RUN_IDS)
        if count - done < run:
            run = count - done
        if at >= room:
            return
        width = types.int64(source[at])
        at += 1
        if width > 32 or at + ((run * width + 7) >> 3) > room:
            return
        mask = (types.uint64(1) << types.uint64(width)) - types.uint64(1)
        bits = types.uint64(0)
        have = types.int64(0)
        for i in range(run):
            while have < width:
                bits |= types.uint64(source[at]) << types.uint64(have)
                at += 1
                have += 8
            before += 1 + types.int64(bits & mask)
            bits >>= types.uint64(width)
            have -= width
            if before >= limit:
                return
            if as_bits:
                words[before >> 6] |= types.uint64(1) << types.uint64(before & 63)
            else:
                ids[done + i] = types.uint32(before)
        done += run
    p[Unpack.DAMAGED] = 0


def build_lists():
    """Return name -> compiled cfunc of every kernel."""
    options = {"nopython": True, "error_model": "numpy"}
    signature = types.void(types.CPointer(types.int64))
    return {function.__name__: cfunc(signature, **options)(function) for function in (pack, unpack)}
