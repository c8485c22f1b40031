"""A numeric column of a segment: what is stored by id, and the ids in the order of their numbers."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import Any

import numpy as np
import numpy.typing as npt

from manas._bits import Words
from manas._layer import Ids
from manas._packed import Packing, ShortIds

Places = slice
_KEPT_SLICES = 4_096
"""Intervals whose places are remembered: a request asks for the same one up to four times, other requests again."""


class Column:
    """Numbers by id, as they are stored: whole ones packed, others as floats. Safe for threads."""

    __slots__ = ("_slices", "address", "order", "packing", "present", "stored")

    def __init__(self, stored: npt.NDArray[Any], packing: Packing, order: ShortIds, present: Words | None) -> None:
        """`stored` is padded to whole blocks; `order` has the ids that have a value, ascending by it.

        `present` are their bits, None where all ids have a value. `packing` is not looked at where floats are stored.
        """
        self.stored, self.packing, self.order, self.present = stored, packing, order, present
        self.address = stored.ctypes.data
        """Of what is stored."""
        self._slices: dict[tuple[float | None, float | None], Places] = {}

    def at(self, ids: Ids) -> npt.NDArray[np.float64]:
        """Return the numbers of some ids as floats, 0 where they have none."""
        found = self.stored[ids]
        if found.dtype.kind == "f":
            return found.astype(np.float64)
        values = self.packing.values(found).astype(np.float64)
        if self.present is not None:
            bits = self.present[ids >> np.uint32(6)] >> (ids & np.uint32(63)).astype(np.uint64)
            values *= bits & np.uint64(1)
        return values

    def ranked(self, place: int) -> float:
        """Return the number at a place of the ascending order."""
        stored: float = self.stored.item(self.order[place])
        return stored if self.stored.dtype.kind == "f" else self.packing.value(int(stored))

    def slice(self, low: float | None, high: float | None) -> Places:
        """Return the places in `order` of the numbers in a closed interval; None is open."""
        found = self._slices.get((low, high))
        if found is None:
            if len(self._slices) >= _KEPT_SLICES:
                self._slices = {}
            found = self._slices[low, high] = self._slice(low, high)
        return found

    def _slice(self, low: float | None, high: float | None) -> Places:
        item, order = self.stored.item, self.order
        least, most = low, high
        if self.stored.dtype.kind != "f":
            least = None if low is None else self.packing.at_least(low)
            most = None if high is None else self.packing.at_most(high)

        def stored(internal: int) -> float:
            number: float = item(internal)
            return number

        start = 0 if least is None else bisect_left(order, least, key=stored)
        stop = len(order) if most is None else bisect_right(order, most, key=stored)
        return Places(start, max(start, stop))
