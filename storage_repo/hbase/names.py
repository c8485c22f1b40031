"""Names between the Repo and HBase: tables with the prefix of the installation, rows with their salt, columns.

A row's key is its text in UTF-8, which HBase sorts as Python sorts the text. In a salted table one byte comes before
it: a hash of the key's first part, modulo the number of salts, so that all index rows of one entity stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from storage_repo._exceptions import LimitExceeded
from storage_repo._names import check_cell, encode_bound, encode_column, encode_row, unknown_table
from storage_repo.api import INDEX_SEPARATOR, RepoSchema, TableSchema
from storage_repo.omid.layout import data_qualifier, is_shadow, shadow_qualifier

ORIGIN_FAMILY = b"o"
ORIGIN_QUALIFIER = b"origin"
ORIGIN_COLUMN = b"o:origin"
"""Every row that a transaction writes gets this cell as well: who wrote, for history and notifications."""

MAX_SALTS = 256
"""A salt is one byte."""

_CACHED_COLUMNS = 1 << 16
"""Names kept encoded and decoded. Catalogues have hundreds; the bound is for qualifiers that carry data."""

_FORBIDDEN_SUFFIX = "\x80"
"""With it Omid marks the shadow cells."""


class Column(NamedTuple):
    """A column as it is written: its family and qualifier, and its shadow cell's; `key` is "family:qualifier"."""

    name: str
    key: bytes
    family: bytes
    qualifier: bytes
    shadow: bytes
    """Qualifier of the shadow cell."""
    shadow_key: bytes


class Seen(NamedTuple):
    """A column as it is read: what a cell in it is."""

    name: str
    """The data cell's column, also for a shadow cell; "family:" for the mark of a deleted family."""
    is_shadow: bool
    family: str


class SeenColumns(dict[bytes, Seen]):
    """Encoded column -> what it is, found out once."""

    def __missing__(self, key: bytes) -> Seen:
        if len(self) >= _CACHED_COLUMNS:
            self.clear()
        family, _, qualifier = key.partition(b":")
        shadow = is_shadow(qualifier)
        name = family + b":" + (data_qualifier(qualifier) if shadow else qualifier)
        # Java clients may use any bytes; such columns are none of ours, but must not stop a read of the row.
        seen = self[key] = Seen(name.decode(errors="backslashreplace"), shadow, family.decode())
        return seen


class ColumnCache(dict[str, Column]):
    """Column name -> how it is written, checked once."""

    def __init__(self, table: TableSchema) -> None:
        super().__init__()
        self._table = table

    def __missing__(self, name: str) -> Column:
        if len(self) >= _CACHED_COLUMNS:
            self.clear()
        key = encode_column(self._table.name, self._table.families, name)
        if name.endswith(_FORBIDDEN_SUFFIX):
            raise LimitExceeded(f"column {name[:80]!r} of table {self._table.name} ends in U+0080, which Omid reserves")
        if name.endswith(":"):
            raise LimitExceeded(
                f"column {name[:80]!r} of table {self._table.name} ends in a colon, as marks of families do"
            )
        family, _, qualifier = key.partition(b":")
        shadow = shadow_qualifier(qualifier)
        column = self[name] = Column(name, key, family, qualifier, shadow, family + b":" + shadow)
        return column


class KeyRange(NamedTuple):
    """Keys from `start` on that are below `stop` (None: to the end)."""

    start: bytes
    stop: bytes | None


class HbaseNames:
    """Encodes and decodes the names of one schema."""

    def __init__(self, schema: RepoSchema, prefix: str = "") -> None:
        """Raises ValueError for a family or a number of salts that cannot be."""
        self._tables = {table.name: table for table in schema.tables}
        for table in schema.tables:
            if ORIGIN_FAMILY.decode() in table.families:
                raise ValueError(f"table {table.name}: the column family 'o' is the engine's own; use another name")
            if not 0 <= table.layout.salts <= MAX_SALTS or (table.layout.salts and table.layout.splits):
                raise ValueError(f"table {table.name}: give 0 to {MAX_SALTS} salts, and no splits with salts")
        self._prefix = prefix.encode()
        self._hbase = {table.name: (prefix + table.name).encode() for table in schema.tables}
        self._of_hbase = {name: table for table, name in self._hbase.items()}
        self._salts = {table.name: table.layout.salts for table in schema.tables}
        self._columns = {table.name: ColumnCache(table) for table in schema.tables}
        self.may_have_marks = frozenset(table.name for table in schema.tables if table.layout.family_deletes)
        """Tables where Java clients may have marked a family as deleted."""
        self.seen = SeenColumns()

    @property
    def tables(self) -> Sequence[str]:
        """The schema's tables."""
        return tuple(self._tables)

    def schema_of(self, table: str) -> TableSchema:
        """Return a table's declaration. Raises UnknownTable."""
        self.hbase_table(table)
        return self._tables[table]

    def hbase_table(self, table: str) -> bytes:
        """Return HBase's name of a table. Raises UnknownTable."""
        found = self._hbase.get(table)
        if found is None:
            raise unknown_table(table, self._tables)
        return found

    def table_of(self, hbase_table: bytes) -> str | None:
        """Return the table that HBase calls so, if it is one of ours."""
        return self._of_hbase.get(hbase_table)

    def is_own(self, hbase_table: bytes) -> bool:
        """Tell whether HBase's table is this installation's: in the schema, or with its prefix (if it has one)."""
        return hbase_table in self._of_hbase or bool(self._prefix and hbase_table.startswith(self._prefix))

    def families(self, table: str) -> tuple[str, ...]:
        """Return a table's declared column families, without the engine's own."""
        return self.schema_of(table).families

    def column(self, table: str, column: str) -> Column:
        """Return how a column is written. Raises UnknownTable for an undeclared family, LimitExceeded."""
        self.hbase_table(table)
        return self._columns[table][column]

    def row_key(self, table: str, row: str) -> bytes:
        """Return a row's key. Raises UnknownTable, LimitExceeded."""
        salts = self._salts.get(table)
        if salts is None:
            raise unknown_table(table, self._tables)
        key = encode_row(table, row)
        return bytes((_salt(row, salts),)) + key if salts else key

    def row_of(self, table: str, key: bytes) -> str:
        """Return the row that has a key."""
        return (key[1:] if self._salts[table] else key).decode(errors="backslashreplace")

    def check_cell(self, table: str, row: str, column: Column) -> None:
        """Raise LimitExceeded for a row and column that are too long together."""
        check_cell(table, row, column.name, len(row.encode()) + len(column.key))

    def ranges(self, table: str, prefix: str, after: str, before: str) -> list[KeyRange]:
        """Return the key ranges that have the rows beginning with `prefix`, > `after` and < `before`; one per salt."""
        self.hbase_table(table)
        within = encode_bound(table, prefix)
        start = max(within, encode_bound(table, after) + b"\0") if after else within
        stops = [s for s in (_next_prefix(within), encode_bound(table, before) if before else None) if s is not None]
        stop = min(stops) if stops else None
        if stop is not None and stop <= start:
            return []
        salts = self._salts[table]
        if not salts:
            return [KeyRange(start, stop)]
        chosen = [_salt(prefix, salts)] if INDEX_SEPARATOR in prefix else range(salts)
        return [
            KeyRange(
                bytes((salt,)) + start, bytes((salt,)) + stop if stop is not None else _next_prefix(bytes((salt,)))
            )
            for salt in chosen
        ]


def _salt(row: str, salts: int) -> int:
    return crc32(row.partition(INDEX_SEPARATOR)[0].encode()) % salts


def _next_prefix(prefix: bytes) -> bytes | None:
    """Return the first key after all that begin with `prefix`; None if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes((stripped[-1] + 1,)) if stripped else None
