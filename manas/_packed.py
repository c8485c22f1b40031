"""Whole numbers kept as small as they allow: value = base + step x what is stored, in 1, 2 or 4 bytes, unsigned.

Where that does not do, int64 as they are (8 bytes, base 0, step 1). Prices in cents, ids, versions and times share a
base and often a step, so comparisons can be made on what is stored: the bounds are brought into its units instead.
Ids of a segment, where they are not the places of an array, take 1 to 4 bytes (`ShortIds`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

_WIDTHS = (1, 2, 4)
_SAMPLE = 1_024
"""Differences looked at first: hardly any column has a common step, and these few nearly always show it."""
_OUT = 1 << 62
"""Beyond all that is stored in up to 4 bytes."""


class Packing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an array of whole numbers is stored."""

    bytes: int
    """Of one number: 1, 2 or 4 (unsigned), or 8 (signed)."""
    base: int = 0
    step: int = 1

    @property
    def dtype(self) -> npt.DTypeLike:
        """Type of what is stored."""
        return np.dtype("<i8") if self.bytes == 8 else np.dtype(f"<u{self.bytes}")

    def values(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the numbers of what is stored."""
        wide = stored.astype(np.int64, copy=False)
        if self.step == 1:
            return wide + self.base if self.base else wide
        return wide * self.step + self.base

    def value(self, stored: int) -> int:
        """Return one number."""
        return self.base + self.step * stored

    def at_least(self, low: float) -> int:
        """Return the smallest stored number whose value is not below `low`."""
        return -((self.base - math.ceil(low)) // self.step)

    def at_most(self, high: float) -> int:
        """Return the largest stored number whose value is not above `high`."""
        return (math.floor(high) - self.base) // self.step

    def within(self, low: float | None, high: float | None) -> tuple[int, int]:
        """Return a closed interval in stored units that int64 holds."""
        whole = (-(1 << 63), (1 << 63) - 1) if self.bytes == 8 else (-_OUT, _OUT)
        least = whole[0] if low is None else min(max(self.at_least(low), whole[0]), whole[1])
        most = whole[1] if high is None else min(max(self.at_most(high), whole[0]), whole[1])
        return least, most


class ShortIds(Sequence[int]):
    """Ids of a segment in the 1 to 4 bytes that its last one needs, little-endian; slices are uint32."""

    __slots__ = ("_rows",)

    def __init__(self, file: npt.NDArray[np.uint8], documents: int) -> None:
        """`file` has the bytes of some ids below `documents`. Raises ValueError when they do not come out even."""
        self._rows = file.reshape(-1, id_bytes(documents))

    @property
    def rows(self) -> npt.NDArray[np.uint8]:
        """The bytes, a row for each id."""
        return self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            rows = self._rows[place]
            wide = np.zeros((len(rows), 4), np.uint8)
            wide[:, : rows.shape[1]] = rows
            return wide.view("<u4").reshape(-1)
        return int.from_bytes(self._rows[place].tobytes(), "little")


def short_ids(ids: npt.NDArray[np.uint32], documents: int) -> npt.NDArray[np.uint8]:
    """Return the bytes of some ids of a segment of so many documents."""
    return np.ascontiguousarray(ids.astype("<u4").view(np.uint8).reshape(-1, 4)[:, : id_bytes(documents)])


def id_bytes(documents: int) -> int:
    """Return the bytes of an id in a segment of so many documents."""
    return max(1, (max(0, documents - 1).bit_length() + 7) // 8)


def packed(values: npt.NDArray[np.int64], least: int = 1) -> tuple[npt.NDArray[Any], Packing]:
    """Return what to store of some numbers, and how; in at least `least` bytes each."""
    if len(values) == 0:
        return values.astype(f"<u{least}" if least < 8 else "<i8"), Packing(least)
    base, top = int(values.min()), int(values.max())
    span = top - base
    step = _step(values, base) if span < 1 << 62 else 1
    for width in _WIDTHS:
        if width >= least and span // step < 1 << (8 * width):
            return ((values - base) // step).astype(f"<u{width}"), Packing(width, base, step)
    return values, Packing(8)


def _step(values: npt.NDArray[np.int64], base: int) -> int:
    """Return the greatest common divisor of all differences to `base`, 1 if there are none."""
    differences = values - base
    step = int(np.gcd.reduce(differences[:: max(1, len(differences) // _SAMPLE)]))
    if step != 1 and (step == 0 or (differences % step).any()):
        step = int(np.gcd.reduce(differences))
    return max(1, step)
