"""A posting list in memory or mapped, and the numbers that it carries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from manas._bits import Words, ids_of
from manas._layer import Ids
from manas.kernels.layout import BLOCK_IDS, BLOCK_WORDS


@dataclass(frozen=True, slots=True)
class Payloads:
    """The numbers that a posting list carries: one for each id, aligned with the ids in ascending order."""

    values: npt.NDArray[np.float32]
    bounds: npt.NDArray[np.float32]
    """The largest of each block (dense list) or of each BOUND_IDS ids (split list)."""
    suffix: npt.NDArray[np.float32]
    """The largest from there on."""
    ranks: Ids | None
    """Of a dense list: how many of its ids come before each block."""

    @classmethod
    def of(cls, values: npt.NDArray[np.float32], bounds: npt.NDArray[np.float32], ranks: Ids | None = None) -> Payloads:
        """Compute the suffix maxima."""
        return cls(values, bounds, np.maximum.accumulate(bounds[::-1])[::-1].copy(), ranks)


@dataclass(frozen=True, slots=True)
class Posting:
    """A posting list in memory or mapped: `dense` words, or ascending `split` ids, and perhaps payloads."""

    count: int
    address: int
    dense: Words | None = None
    split: Ids | None = None
    payloads: Payloads | None = None

    @property
    def held(self) -> int:
        """Bytes of memory that are its own, and not the mapped file's."""
        parts = (self.split, self.dense, None if self.payloads is None else self.payloads.values)
        return sum(part.nbytes for part in parts if part is not None and part.flags.owndata)

    @property
    def ids(self) -> Ids:
        """The ids, ascending."""
        if self.split is not None:
            return self.split
        return ids_of(self.dense) if self.dense is not None else np.empty(0, np.uint32)

    @classmethod
    def of(cls, ids: Ids) -> Posting:
        """Return a split list of ascending ids."""
        return cls(len(ids), ids.ctypes.data, split=ids)

    def payloads_of(self, ids: Ids) -> npt.NDArray[np.float64]:
        """Return the payload of each of `ids` (in any order): 0 where the list does not have it, 1 without payloads."""
        if self.dense is not None:
            words, bits = self.dense[ids >> np.uint32(6)], (ids & np.uint32(63)).astype(np.uint64)
            has: npt.NDArray[np.bool_] = (words >> bits) & np.uint64(1) != 0
            if self.payloads is None or self.payloads.ranks is None:
                return has.astype(np.float64)
            found = ids[has]
            blocks = found // np.uint32(BLOCK_IDS)
            places = self.payloads.ranks[blocks].astype(np.int64)
            # Within the block: the whole words before the id's own, and the bits before it.
            own = self.dense.reshape(-1, BLOCK_WORDS)[blocks]
            word = (found >> np.uint32(6)) & np.uint32(BLOCK_WORDS - 1)
            earlier = np.arange(BLOCK_WORDS, dtype=np.uint32) < word[:, None]
            places += (np.bitwise_count(own) * earlier).sum(axis=1, dtype=np.int64)
            below = (np.uint64(1) << bits[has]) - np.uint64(1)
            places += np.bitwise_count(words[has] & below)
        else:
            own_ids = self.ids
            at = np.searchsorted(own_ids, ids)
            has = np.zeros(len(ids), bool)
            inside = at < len(own_ids)
            has[inside] = own_ids[at[inside]] == ids[inside]
            if self.payloads is None:
                return has.astype(np.float64)
            places = at[has]
        result = np.zeros(len(ids))
        result[has] = self.payloads.values[places]
        return result
