"""Names to keys and back: validation of tables, rows and columns, and their order-preserving encoding.

A cell's key is `table id u8 | row | 00 | column`. 00 sorts before every byte of a row, so cells sort by (row, column)
as text does, and a row is one range.
"""

from __future__ import annotations

import re
import threading

from storage_repo._exceptions import LimitExceeded, UnknownTable
from storage_repo.api import RepoSchema

MAX_ROW_BYTES = 400
"""What the interface allows; longer natural keys (URLs) have to be hashed by the caller."""

MAX_ROW_AND_COLUMN_BYTES = 500
"""LMDB 0.9 keys have at most 511 bytes; a history key adds the table, two separators and a timestamp: 11 bytes."""

_CACHED_COLUMNS = 1 << 16
"""Names kept encoded and decoded. Catalogues have hundreds; the bound is for qualifiers that carry data."""

_bad_in_row = re.compile("[\x00-\x1e]").search
_bad_in_column = re.compile("[\x00-\x1f]").search


class ColumnNames(dict[bytes, str]):
    """Encoded column -> its name, decoded once."""

    def __missing__(self, encoded: bytes) -> str:
        if len(self) >= _CACHED_COLUMNS:
            self.clear()
        name = self[encoded] = encoded.decode()
        return name


class KeyCodec:
    """Encodes the names of one schema, whose tables have the given numbers in the store."""

    def __init__(self, schema: RepoSchema, table_ids: dict[str, int]) -> None:
        self.names = ColumnNames()
        self._lock = threading.Lock()
        self._heads = {table.name: bytes([table_ids[table.name]]) for table in schema.tables}
        self._tables = {table_ids[table.name]: table.name for table in schema.tables}
        self._families = {table.name: frozenset(table.families) for table in schema.tables}
        self._columns: dict[str, dict[str, bytes]] = {table.name: {} for table in schema.tables}

    def table(self, table: str) -> bytes:
        """Return the prefix of all keys of a table. Raises UnknownTable."""
        try:
            return self._heads[table]
        except KeyError:
            known = ", ".join(sorted(self._heads)) or "none"
            raise UnknownTable(f"table {table!r} is not in the schema (its tables: {known}); declare it") from None

    def row(self, table: str, row: str) -> bytes:
        """Return the prefix of all cells of a row. Raises UnknownTable, LimitExceeded."""
        head = self._heads.get(table) or self.table(table)
        if not row:
            raise LimitExceeded(f"row key of table {table} is empty; give it at least one byte")
        if bad := _bad_in_row(row):
            raise LimitExceeded(
                f"row key {table}/{row[:80]!r} has control character {bad.group()!r} at {bad.start()}; "
                "only U+001F is allowed"
            )
        encoded = _utf8(row, "row key", table)
        if len(encoded) > MAX_ROW_BYTES:
            raise LimitExceeded(
                f"row key {table}/{row[:80]!r}... has {len(encoded)} bytes, the limit is {MAX_ROW_BYTES}; "
                "hash long natural keys"
            )
        return head + encoded + b"\0"

    def bound(self, table: str, text: str) -> bytes:
        """Return the key before all rows that begin with, or come after, any text, however long."""
        return self.table(table) + _utf8(text, "scan bound", table)[:MAX_ROW_AND_COLUMN_BYTES]

    def column(self, table: str, column: str) -> bytes:
        """Return an encoded "family:qualifier". Raises UnknownTable for an undeclared family, LimitExceeded."""
        known = self._columns.get(table)
        if known is None:
            self.table(table)
            raise AssertionError(f"table {table} has no column cache")
        encoded = known.get(column)
        return encoded if encoded is not None else self._new_column(table, column)

    def cell(self, table: str, row: str, column: str) -> bytes:
        """Return the key of one cell. Raises UnknownTable, LimitExceeded."""
        return self.cell_in(self.row(table, row), table, row, column)

    def cell_in(self, prefix: bytes, table: str, row: str, column: str) -> bytes:
        """Return the key of one cell of a row whose prefix is known. Raises UnknownTable, LimitExceeded."""
        key = prefix + self.column(table, column)
        if len(key) > MAX_ROW_AND_COLUMN_BYTES + 2:
            raise LimitExceeded(
                f"cell {table}/{row[:80]!r} {column[:80]}: row and column have {len(key) - 2} bytes together, "
                f"the limit is {MAX_ROW_AND_COLUMN_BYTES}; shorten the qualifier"
            )
        return key

    def decode(self, key: bytes) -> tuple[str, str, str]:
        """Return (table, row, column) of a cell's key."""
        end = key.index(0, 1)
        return self._tables[key[0]], key[1:end].decode(), self.names[key[end + 1 :]]

    def _new_column(self, table: str, column: str) -> bytes:
        family, colon, qualifier = column.partition(":")
        if not colon or not qualifier:
            raise LimitExceeded(f"column {column[:80]!r} of table {table} is not of the form family:qualifier")
        if family not in self._families[table]:
            families = ", ".join(sorted(self._families[table])) or "none"
            raise UnknownTable(f"table {table} has no column family {family!r} (its families: {families}); declare it")
        if bad := _bad_in_column(column):
            raise LimitExceeded(f"column {column[:80]!r} of table {table} has control character {bad.group()!r}")
        encoded = _utf8(column, "column", table)
        if len(encoded) >= MAX_ROW_AND_COLUMN_BYTES:
            raise LimitExceeded(
                f"column {column[:80]!r}... of table {table} has {len(encoded)} bytes; row and column together "
                f"may have {MAX_ROW_AND_COLUMN_BYTES}"
            )
        with self._lock:
            columns = self._columns[table]
            if len(columns) >= _CACHED_COLUMNS:
                columns.clear()
            columns[column] = encoded
        return encoded


def _utf8(text: str, what: str, table: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise LimitExceeded(
            f"{what} {text[:80]!r} of table {table} is not Unicode text: {error.reason} at {error.start}"
        ) from error
