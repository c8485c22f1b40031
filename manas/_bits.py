"""Bitmaps over a segment's ids as plain words, padded to whole blocks, as the kernels read them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pyroaring import BitMap

from manas._layer import Ids
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS

Words = npt.NDArray[np.uint64]


def blocks_of(count: int) -> int:
    """Return how many blocks hold so many ids."""
    return -(-count // BLOCK_IDS)


def padded(count: int) -> int:
    """Return `count` rounded up to whole blocks: the length of every array by id."""
    return blocks_of(count) * BLOCK_IDS


def words_of(ids: Ids, count: int) -> Words:
    """Return the words of a set of ids below `count`."""
    flags = np.zeros(padded(count), np.uint8)
    flags[ids] = 1
    return np.packbits(flags, bitorder="little").view(np.uint64)


def ids_of(words: Words) -> Ids:
    """Return the ids of words, ascending."""
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little")).astype(np.uint32)


def roaring_of(words: Words) -> BitMap:
    """Return words as a roaring bitmap."""
    return BitMap(ids_of(words))


class Bits:
    """A set of ids that changes in place; `words` may be handed to kernels. Not safe for threads."""

    __slots__ = ("address", "count", "words")

    def __init__(self, size: int, *, full: bool = False) -> None:
        self.words: Words = np.zeros(blocks_of(size) * BLOCK_WORDS, np.uint64)
        self.address: int = self.words.ctypes.data
        self.count = 0
        if full and size:
            whole, rest = divmod(size, 64)
            self.words[:whole] = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
            if rest:
                self.words[whole] = np.uint64((1 << rest) - 1)
            self.count = size

    def __len__(self) -> int:
        return self.count

    def __contains__(self, internal: int) -> bool:
        return bool((int(self.words[internal >> 6]) >> (internal & 63)) & 1)

    def add(self, ids: Ids) -> None:
        """Put ids into the set; each at most once in `ids`."""
        self._change(ids, on=True)

    def discard(self, ids: Ids) -> None:
        """Take ids out of the set; each at most once in `ids`."""
        self._change(ids, on=False)

    def discard_id(self, internal: int) -> None:
        """Take one id out of the set: what every delta does in the base, in a fraction of the time of arrays."""
        words, place, mask = self.words.data, internal >> 6, 1 << (internal & 63)
        if (before := words[place]) & mask:
            words[place] = before ^ mask
            self.count -= 1

    def _change(self, ids: Ids, *, on: bool) -> None:
        places = ids >> np.uint32(6)
        masks = np.uint64(1) << (ids & np.uint32(63)).astype(np.uint64)
        had = int(np.count_nonzero(self.words[places] & masks))
        if on:
            np.bitwise_or.at(self.words, places, masks)
            self.count += len(ids) - had
        else:
            np.bitwise_and.at(self.words, places, ~masks)
            self.count -= had
