"""Source for Numba: stored documents as LZ4 blocks that may refer to a dictionary, and back; and finding them by id.

The blocks are LZ4's own, with the dictionary as what came before: any decoder that takes one reads them.
"""

# mypy: ignore-errors
from __future__ import annotations

from numba import cfunc, njit, types

from manas.kernels._intrinsics import i32, i64, u8, u32
from manas.kernels.stored_layout import FARTHEST, HASH_BITS, Expand, Locate, Squeeze

_LEAST = 4
"""Bytes of the shortest match."""
_TAIL = 5
"""Bytes at the end that LZ4 wants to be literals, and"""
_LAST_MATCH = 12
"""how far from the end the last match must begin."""
_TRIED = 6
"""Earlier places compared for a match: twice as many save 3 % and take a fifth longer."""
_BORED = 6
"""After 2^6 bytes without a match every second place is looked at, after twice as many every third, and so on."""


@njit(inline="always")
def hash_of(work, at):
    """Return the hash of four bytes."""
    word = (
        types.uint32(work[at])
        | types.uint32(work[at + 1]) << types.uint32(8)
        | types.uint32(work[at + 2]) << types.uint32(16)
        | types.uint32(work[at + 3]) << types.uint32(24)
    )
    return types.int64(types.uint32(word * types.uint32(2_654_435_761)) >> types.uint32(32 - HASH_BITS))


@njit(inline="always")
def enter(work, heads, links, at):
    """Make a place the last one that has its hash."""
    value = hash_of(work, at)
    links[at] = heads[value]
    heads[value] = types.int32(at)


@njit(inline="always")
def put_length(out, at, length):
    """Write what of a length does not fit in four bits; return the place behind."""
    if length >= 15:
        left = length - 15
        while left >= 255:
            out[at] = types.uint8(255)
            at += 1
            left -= 255
        out[at] = types.uint8(left)
        at += 1
    return at


@njit(inline="always")
def put_sequence(work, out, at, first, literals, back, matched):
    """Write literals and, unless `back` is 0, a match; return the place behind."""
    token = types.int64(15) if literals >= 15 else literals
    token <<= 4
    if back > 0:
        token |= types.int64(15) if matched - _LEAST >= 15 else matched - _LEAST
    out[at] = types.uint8(token)
    at = put_length(out, at + 1, literals)
    for i in range(literals):
        out[at + i] = work[first + i]
    at += literals
    if back > 0:
        out[at] = types.uint8(back & 255)
        out[at + 1] = types.uint8(back >> 8)
        at = put_length(out, at + 2, matched - _LEAST)
    return at


def squeeze(p):
    """Write a block for each document into OUT, which has room for those that get longer (a byte in 255, and 16)."""
    source = u8(p[Squeeze.SOURCE])
    starts = i64(p[Squeeze.STARTS])
    work = u8(p[Squeeze.WORK])
    dictionary = p[Squeeze.DICTIONARY]
    heads = i32(p[Squeeze.HEADS])
    links = i32(p[Squeeze.LINKS])
    looked = i32(p[Squeeze.LOOKED])
    out = u8(p[Squeeze.OUT])
    ends = i64(p[Squeeze.ENDS])
    if p[Squeeze.INDEXED] == 0:
        p[Squeeze.INDEXED] = 1
        for at in range(dictionary - _LEAST + 1):
            enter(work, heads, links, at)
    end = types.int64(0)
    for document in range(p[Squeeze.DOCUMENTS]):
        begin = starts[document]
        size = starts[document + 1] - begin
        for i in range(size):
            work[dictionary + i] = source[begin + i]
        stop = dictionary + size
        last = stop - _LAST_MATCH
        limit = stop - _TAIL
        done = types.int64(dictionary)
        at = types.int64(dictionary)
        entered = types.int64(0)
        while at <= last:
            best = types.int64(_LEAST - 1)
            found = types.int64(-1)
            place = types.int64(heads[hash_of(work, at)])
            tries = types.int64(0)
            while place >= 0 and tries < _TRIED and at - place <= FARTHEST:
                if work[place + best] == work[at + best]:
                    length = types.int64(0)
                    while at + length < limit and work[place + length] == work[at + length]:
                        length += 1
                    if length > best:
                        best = length
                        found = place
                        if at + length >= limit:
                            break
                place = types.int64(links[place])
                tries += 1
            enter(work, heads, links, at)
            looked[entered] = types.int32(at)
            entered += 1
            if found < 0:
                at += 1 + ((at - done) >> _BORED)
                continue
            while at > done and found > 0 and work[at - 1] == work[found - 1]:
                at -= 1
                found -= 1
                best += 1
            end = put_sequence(work, out, end, done, at - done, at - found, best)
            at += best
            done = at
        end = put_sequence(work, out, end, done, stop - done, types.int64(0), types.int64(0))
        ends[document] = end
        while entered > 0:  # the next document has the dictionary before it, and not this one
            entered -= 1
            place = types.int64(looked[entered])
            heads[hash_of(work, place)] = links[place]


def expand(p):
    """Write what a block stands for into OUT, of ROOM bytes. Nothing outside of what is given is read or written."""
    source = u8(p[Expand.SOURCE])
    length = p[Expand.LENGTH]
    dictionary = u8(p[Expand.DICTIONARY])
    before = p[Expand.DICTIONARY_LENGTH]
    out = u8(p[Expand.OUT])
    room = p[Expand.ROOM]
    p[Expand.SIZE] = -1
    at = types.int64(0)
    size = types.int64(0)
    while at < length:
        token = types.int64(source[at])
        at += 1
        count = token >> 4
        if count == 15:
            more = types.int64(255)
            while more == 255:
                if at >= length:
                    return
                more = types.int64(source[at])
                at += 1
                count += more
        if count > length - at or count > room - size:
            return
        for i in range(count):
            out[size + i] = source[at + i]
        at += count
        size += count
        if at == length:
            p[Expand.SIZE] = size
            return
        if length - at < 2:
            return
        back = types.int64(source[at]) | types.int64(source[at + 1]) << 8
        at += 2
        count = token & 15
        if count == 15:
            more = types.int64(255)
            while more == 255:
                if at >= length:
                    return
                more = types.int64(source[at])
                at += 1
                count += more
        count += _LEAST
        if back == 0 or back > size + before or count > room - size:
            return
        place = size - back
        while place < 0 and count > 0:
            out[size] = dictionary[before + place]
            size += 1
            place += 1
            count -= 1
        for i in range(count):  # one by one: a match may go on into what it makes
            out[size + i] = out[place + i]
        size += count


def locate(p):
    """Halve among the tie keys in order. Nothing outside of what is given is read."""
    order = u8(p[Locate.ORDER])
    width = p[Locate.WIDTH]
    short = u32(p[Locate.TIES])
    wide = i64(p[Locate.TIES])
    is_short = p[Locate.TIE_BYTES] == 4
    documents = p[Locate.DOCUMENTS]
    key = p[Locate.KEY]
    low = types.int64(0)
    high = documents
    p[Locate.ID] = -1
    while low < high:
        middle = (low + high) >> 1
        number = types.int64(0)
        for i in range(width):
            number |= types.int64(order[middle * width + i]) << (8 * i)
        if number >= documents:
            p[Locate.ID] = -2
            return
        found = types.int64(short[number]) if is_short else wide[number]
        if found < key:
            low = middle + 1
        else:
            high = middle
            if found == key:
                p[Locate.ID] = number
    p[Locate.PLACE] = low


def build_stored():
    """Return name -> compiled cfunc of every kernel."""
    options = {"nopython": True, "error_model": "numpy"}
    signature = types.void(types.CPointer(types.int64))
    return {function.__name__: cfunc(signature, **options)(function) for function in (squeeze, expand, locate)}
