"""The numbers under which the TSO knows cells, rows and tables: Omid 1.1's hashes.

An id is the first half of a 128-bit murmur3 (x64, seed 0) over the plain concatenation of the parts. Different cells
may share an id; that costs a false abort, never a missed conflict. All clients of a table must use the same kind of
id in the conflict set, cell or row: the two never meet.
"""

from __future__ import annotations

import mmh3

FORBIDDEN_ID = -(1 << 63)
"""An Omid 1.1.3 server dies of this id (its index computation overflows). No hash of ours is ever sent as it."""


def cell_id(table: bytes, row: bytes, family: bytes, qualifier: bytes) -> int:
    """Return the signed 64-bit id of a cell. `table` is named as HBase names it: namespace:table, or table alone."""
    return _hash(table + row + family + qualifier)


def row_id(table: bytes, row: bytes) -> int:
    """Return the signed 64-bit id of a whole row, for tables whose conflicts are per row."""
    return _hash(table + row)


def table_id(table: bytes) -> int:
    """Return the signed 64-bit id of a table, by which it is fenced."""
    return _hash(table)


def _hash(data: bytes) -> int:
    number: int = mmh3.hash64(data, 0, True, signed=True)[0]
    # Neighbours share their conflicts with it: a false abort at worst, and every client of ours does the same.
    return number if number != FORBIDDEN_ID else FORBIDDEN_ID + 1
