"""Sorted byte strings, front-coded: groups of 16, whose first is whole and whose others say what they share.

A group is a length and the bytes of its first string; then for each of the others how many bytes it shares with the one
before, how many follow, and these. Lengths are LEB128: seven bits a byte, lowest first, the highest bit says that more
follow. Offsets are of groups, so a look-up halves among the groups' first strings and then walks through one group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

GROUP = 16
"""Strings of a group: walking through costs some microseconds once per string; an offset's cost is spread over them."""


def write_strings(blob: BinaryIO, strings: Sequence[bytes], at: int) -> list[int]:
    """Write sorted strings, the first at offset `at` of the file; return the offset at which each group ends."""
    ends = []
    for first in range(0, len(strings), GROUP):
        group = strings[first : first + GROUP]
        before = group[0]
        parts = [_length(len(before)), before]
        for string in group[1:]:
            shared, most = 0, min(len(before), len(string))
            while shared < most and before[shared] == string[shared]:
                shared += 1
            parts += (_length(shared), _length(len(string) - shared), string[shared:])
            before = string
        at += blob.write(b"".join(parts))
        ends.append(at)
    return ends


def groups_of(count: int) -> int:
    """Return how many groups hold so many strings."""
    return -(-count // GROUP)


class Strings(Sequence[bytes]):
    """Strings of a mapped file: `count` of them, from the group whose offset is the first of `offsets`."""

    def __init__(self, blob: Any, offsets: npt.NDArray[Any], count: int) -> None:
        self._blob, self._offsets, self._count = blob, offsets, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, place: Any) -> Any:
        if not 0 <= place < self._count:
            raise IndexError(place)
        group, within = divmod(int(place), GROUP)
        return self._walk(group, within)

    def find(self, wanted: bytes) -> tuple[int, bool]:
        """Return the place of a string, or where it would be, and whether it is there."""
        low, high = 0, groups_of(self._count)
        while low < high:  # the first group whose first string is above
            middle = (low + high) // 2
            if self._first(middle) <= wanted:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            return 0, False
        group = low - 1
        for within, string in enumerate(self._group(group)):
            if string >= wanted:
                return group * GROUP + within, string == wanted
        return min(low * GROUP, self._count), False

    def _first(self, group: int) -> bytes:
        length, at = _read(self._blob, int(self._offsets[group]))
        found: bytes = self._blob[at : at + length]
        return found

    def _walk(self, group: int, within: int) -> bytes:
        for place, string in enumerate(self._group(group)):
            if place == within:
                return string
        raise IndexError(group * GROUP + within)

    def _group(self, group: int) -> Iterator[bytes]:
        blob, at = self._blob, int(self._offsets[group])
        length, at = _read(blob, at)
        string = blob[at : at + length]
        yield string
        at += length
        for _ in range(min(GROUP, self._count - group * GROUP) - 1):
            shared, at = _read(blob, at)
            length, at = _read(blob, at)
            string = string[:shared] + blob[at : at + length]
            at += length
            yield string


def shortest(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return whole numbers from 0 as uint32 if they all fit, else as uint64."""
    return values.astype(np.uint32 if len(values) == 0 or int(values.max()) < 1 << 32 else np.uint64)


def _length(value: int) -> bytes:
    if value < 0x80:
        return value.to_bytes(1)
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read(blob: Any, at: int) -> tuple[int, int]:
    byte = blob[at]
    if byte < 0x80:
        return byte, at + 1
    value, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = blob[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
