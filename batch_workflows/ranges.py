"""Ranges of keys and their checksums: what two sides compare before they look at single rows.

Both sides read their rows in orders of their own (numbers as numbers here, as text there; collations), so a checksum
is the sum of its rows' digests, whatever their order. Whole numbers fall into ranges of neighbours. Of text keys a
range is a share of the keys' hashes, because no order of text is common to all databases.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec

from catalog import ValueType

LEAST_ROWS = 32
"""Rows per range on average, where the table is small enough: as much is read again for each row that differs."""
MOST_RANGES = 100_000
"""Ranges of a table that is not: each takes some 200 bytes on either side."""
PAGE = 1_000
"""Rows read at a time."""
_OTHER = -(1 << 63) - 1
"""The range of keys that no whole number is, in a table of whole numbers."""
_MODULUS = 1 << 64
_WHOLE = re.compile(r"-?[0-9]{1,19}")
_encode = msgspec.msgpack.Encoder().encode


def neighbours(rows: Iterable[str], size: int) -> Iterator[tuple[str, str]]:
    """Cut rows in key order into (after, before), both exclusive; "" is the beginning, and the end."""
    after = last = ""
    for count, row in enumerate(rows):
        if count and count % size == 0:
            yield after, row
            after = last
        last = row
    yield after, ""


def checksum(row: str, values: Sequence[bytes]) -> tuple[int, int]:
    """Return 64 bits that tell a row's key and values from any others, never 0; and how many bytes those are."""
    data = _encode([row, *values])
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") or 1, len(data)


@dataclass(frozen=True, slots=True)
class Ranges:
    """How the keys of one table fall into ranges."""

    whole: bool
    """The keys are whole numbers."""
    size: int
    """Of whole numbers: how many numbers a range spans; of text: how many ranges there are."""

    @classmethod
    def of(cls, kind: ValueType, rows: int, lowest: int = 0, highest: int = 0, *, per_range: int = 0) -> Ranges:
        """Choose ranges of some `per_range` rows for a table of `rows` rows; 0: as its size allows."""
        per_range = per_range or max(LEAST_ROWS, rows // MOST_RANGES)
        if kind is not ValueType.INT:
            return cls(False, max(1, -(-rows // per_range)))
        return cls(True, max(1, (highest - lowest + 1) * per_range // max(1, rows)))

    def of_row(self, row: str) -> int:
        """Return the number of the range that a row's key falls into."""
        if not self.whole:
            return zlib.crc32(row.encode(errors="surrogatepass")) % self.size
        return int(row) // self.size if _WHOLE.fullmatch(row) else _OTHER


@dataclass(slots=True)
class Sums:
    """Count and checksum per range of one side."""

    ranges: Ranges
    rows: int = 0
    nbytes: int = 0
    """Of keys and values."""
    _sums: dict[int, tuple[int, int]] = field(default_factory=dict)

    def add(self, row: str, checked: tuple[int, int]) -> None:
        """Count a row by its `checksum`."""
        number = self.ranges.of_row(row)
        count, total = self._sums.get(number, (0, 0))
        self._sums[number] = count + 1, (total + checked[0]) % _MODULUS
        self.rows += 1
        self.nbytes += checked[1]

    def merge(self, other: Sums) -> None:
        """Count all rows of another part of the same side."""
        for number, (more, checked) in other._sums.items():
            count, total = self._sums.get(number, (0, 0))
            self._sums[number] = count + more, (total + checked) % _MODULUS
        self.rows += other.rows
        self.nbytes += other.nbytes

    def count(self, numbers: Iterable[int]) -> int:
        """Return how many rows some ranges have."""
        return sum(self._sums[number][0] for number in numbers if number in self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    def differing(self, other: Sums) -> frozenset[int]:
        """Return the ranges of which both sides do not say the same."""
        numbers: Iterable[int] = self._sums.keys() | other._sums.keys()
        return frozenset(n for n in numbers if self._sums.get(n) != other._sums.get(n))
