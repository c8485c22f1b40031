"""Names to keys and back: validation of tables, rows and columns, and their order-preserving encoding.

A cell's key is `table id u8 | row | 00 | column`. 00 sorts before every byte of a row, so cells sort by (row, column)
as text does, and a row is one range.
"""

from __future__ import annotations

import threading

from storage_repo._names import check_cell, encode_bound, encode_column, encode_row, unknown_table
from storage_repo.api import RepoSchema

_CACHED_COLUMNS = 1 << 16
"""Names kept encoded and decoded. Catalogues have hundreds; the bound is for qualifiers that carry data."""


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
            raise unknown_table(table, self._heads) from None

    def row(self, table: str, row: str) -> bytes:
        """Return the prefix of all cells of a row. Raises UnknownTable, LimitExceeded."""
        head = self._heads.get(table) or self.table(table)
        return head + encode_row(table, row) + b"\0"

    def bound(self, table: str, text: str) -> bytes:
        """Return the key before all rows that begin with, or come after, any text, however long."""
        return self.table(table) + encode_bound(table, text)

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
        check_cell(table, row, column, len(key) - 2)
        return key

    def decode(self, key: bytes) -> tuple[str, str, str]:
        """Return (table, row, column) of a cell's key."""
        end = key.index(0, 1)
        return self._tables[key[0]], key[1:end].decode(), self.names[key[end + 1 :]]

    def _new_column(self, table: str, column: str) -> bytes:
        encoded = encode_column(table, self._families[table], column)
        with self._lock:
            columns = self._columns[table]
            if len(columns) >= _CACHED_COLUMNS:
                columns.clear()
            columns[column] = encoded
        return encoded
