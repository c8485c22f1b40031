"""From the bytes of a shipped batch to what each transaction did in each row. The hot path: every cell passes here.

A cell: int32 total, int32 key length, int32 value length, key, value [, tags]. A key: int16 row length, row, int8
family length, family, qualifier, int64 version, int8 type. There are few columns and many cells, so a column's bytes
are taken apart once and then found in a dict.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence

from storage_repo.hbase.wal._errors import ForeignEdits, WireError
from storage_repo.hbase.wal.proto import hbase_rpc_pb2 as rpc
from storage_repo.omid import layout
from storage_repo.omid.layout import VERSIONS_PER_TRANSACTION as VERSIONS

PUT, DELETE, DELETE_FAMILY_VERSION = 4, 8, 10
"""Types of cells: a value, a delete of exactly one version of a column, of exactly one version of a family."""

RowKey = tuple[bytes, bytes, int]
"""HBase table, row and start timestamp: what one transaction did in one row."""

_HEAD = struct.Struct(">iiih").unpack_from
_TAIL = struct.Struct(">qB").unpack_from
_TAIL_BYTES = 9
_TIMESTAMP_BYTES = len(layout.encode_timestamp(0))
_COLUMNS_KEPT = 50_000
"""Far above any catalogue; a writer that makes up qualifiers must not fill our memory."""


OTHER, DATA, SHADOW, FAMILY, ORIGIN = range(5)
"""What a column is to us: nobody watches it; its value; its shadow cell; a family's delete marker; who wrote."""


class RowEdits:
    """What the edits of one batch say of one transaction in one row."""

    __slots__ = ("columns", "commit_ts", "deleted", "origin", "shadows", "write_ms")

    def __init__(self, write_ms: int) -> None:
        self.columns: set[str] = set()
        """Watched columns with a data cell. "family:" is the family's delete marker."""
        self.shadows: set[str] = set()
        """The same of shadow cells."""
        self.deleted: set[str] = set()
        """Columns whose data cell was deleted at exactly its version: rolled back, or old and collected."""
        self.commit_ts: int | None = None
        self.origin: bytes | None = None
        self.write_ms = write_ms
        """When HBase logged the first of these edits."""

    def add(self, later: RowEdits) -> None:
        """Take in what a later batch says of the same transaction and row."""
        self.columns |= later.columns
        self.shadows |= later.shadows
        self.deleted |= later.deleted
        self.commit_ts = self.commit_ts if later.commit_ts is None else later.commit_ts
        self.origin = self.origin if later.origin is None else later.origin


class TableColumns:
    """The columns of one table by the bytes that name them in a cell."""

    def __init__(self, watched: frozenset[str], origin: tuple[bytes, bytes]) -> None:
        """Take the watched columns ("family:qualifier") and the family and qualifier of the origin cell."""
        self.by_family: dict[str, frozenset[str]] = {}
        for column in watched:
            family = column.partition(":")[0] + ":"
            self.by_family[family] = self.by_family.get(family, frozenset()) | {column}
        self._watched, self._origin = watched, origin
        self.known: dict[bytes, tuple[int, str]] = {}
        """Int8 family length + family + qualifier -> role and name, of columns that have been met."""

    def meet(self, place: bytes) -> tuple[int, str]:
        """Return role and name of a column that is not `known` yet."""
        if len(self.known) >= _COLUMNS_KEPT:
            self.known.clear()
        family = place[1 : 1 + place[0]]
        found = self.known[place] = self.role(family, place[1 + len(family) :])
        return found

    def role(self, family: bytes, qualifier: bytes) -> tuple[int, str]:
        """Return role and name ("family:qualifier" of the data cell) of a column."""
        if (family, qualifier) == self._origin:
            return ORIGIN, ""
        is_shadow = layout.is_shadow(qualifier)
        try:
            name = (family + b":" + (layout.data_qualifier(qualifier) if is_shadow else qualifier)).decode()
        except UnicodeDecodeError:
            return OTHER, ""
        if name in self._watched:
            return (SHADOW if is_shadow else DATA), name
        if name in self.by_family:
            return (SHADOW if is_shadow else FAMILY), name
        return OTHER, ""

    def changed(self, columns: set[str], shadows: set[str]) -> frozenset[str]:
        """Return the watched columns that a transaction changed, of its data cells and shadow cells in a row.

        A family's delete marker stands for what is deleted. Omid writes a shadow cell for each column that was there,
        without a data cell; where there are none (a healed transaction, conflicts by row), it may be any of the family.
        """
        every = columns | shadows
        for family in every & self.by_family.keys():
            every.discard(family)
            if not (shadows - columns) & self.by_family[family]:
                every |= self.by_family[family]
        return frozenset(every)


class Batch:
    """All edits of some calls by transaction and row, in the order of their first edit, and what was left out."""

    def __init__(self) -> None:
        self.rows: dict[RowKey, RowEdits] = {}
        self.cells = 0
        self.ignored: dict[str, int] = {}
        self.oldest_write_ms = 0

    def ignore(self, reason: str, count: int = 1) -> None:
        """Count something that gives no notification."""
        self.ignored[reason] = self.ignored.get(reason, 0) + count

    def add(self, later: Batch) -> None:
        """Take in what came later."""
        for key, edits in later.rows.items():
            known = self.rows.get(key)
            if known is None:
                self.rows[key] = edits
            else:
                known.add(edits)
        self.cells += later.cells
        for reason, count in later.ignored.items():
            self.ignore(reason, count)
        self.saw(later.oldest_write_ms)

    def saw(self, write_ms: int) -> None:
        """Remember the oldest edit."""
        if write_ms and (not self.oldest_write_ms or write_ms < self.oldest_write_ms):
            self.oldest_write_ms = write_ms


def decode(
    entries: Sequence[rpc.WALEntry],
    frame: bytes,
    at: int,
    tables: Mapping[bytes, TableColumns],
    is_own: Callable[[bytes], bool],
) -> Batch:
    """Return what a call brought: its entries and the block of cells that begins at byte `at`.

    Of tables that nobody watches `is_own` tells by name whether they are this installation's at all: ours are counted
    and left. Raises WireError, ForeignEdits.
    """
    batch = Batch()
    try:
        for entry in entries:
            key = entry.key
            if entry.key_value_bytes:
                raise WireError("cells came inside the messages; HBase must have a cell codec (hbase.client.rpc.codec)")
            count = entry.associated_cell_count
            batch.cells += count
            batch.saw(key.write_time)
            columns = tables.get(key.table_name)
            if columns is None:
                if not is_own(key.table_name):
                    raise ForeignEdits(key.table_name)
                batch.ignore("table", count)
                for _ in range(count):
                    at += 4 + _HEAD(frame, at)[0]
            else:
                at = _decode_entry(batch, key.table_name, columns, key.write_time, count, frame, at)
    except (struct.error, IndexError) as error:
        raise WireError(f"the cells end before byte {at} of {len(frame)}: {error}") from error
    if at != len(frame):
        raise WireError(f"{len(frame) - at} bytes follow the last of {batch.cells} cells")
    return batch


def _decode_entry(
    batch: Batch, table: bytes, columns: TableColumns, write_ms: int, count: int, frame: bytes, at: int
) -> int:
    """Take in the cells of one entry; return the place behind them."""
    known, rows = columns.known.get, batch.rows
    others = 0
    last_row, last_version, edits = b"", -1, RowEdits(write_ms)
    for _ in range(count):
        total, key_bytes, value_bytes, row_bytes = _HEAD(frame, at)
        column_at = at + 14 + row_bytes
        value_at = at + 12 + key_bytes
        if total < key_bytes + 8 or row_bytes < 0 or column_at >= value_at - _TAIL_BYTES:
            raise WireError(f"no cell at byte {at}: {frame[at : at + 60]!r}")
        place = frame[column_at : value_at - _TAIL_BYTES]
        role, name = known(place) or columns.meet(place)
        if role == OTHER:
            others += 1
            at += 4 + total
            continue
        row = frame[at + 14 : column_at]
        at += 4 + total
        version, kind = _TAIL(frame, value_at - _TAIL_BYTES)
        if version != last_version or row != last_row:
            last_row, last_version = row, version
            key = (table, row, version - version % VERSIONS)
            found = rows.get(key)
            if found is None:
                found = rows[key] = RowEdits(write_ms)
            edits = found
        if kind == PUT:
            if role == DATA:
                edits.columns.add(name)
            elif role == SHADOW:
                value = frame[value_at : value_at + value_bytes]
                if len(value) != _TIMESTAMP_BYTES:  # none of Omid's; whoever looks the transaction up writes it anew
                    batch.ignore("bad_shadow")
                    continue
                edits.shadows.add(name)
                if edits.commit_ts is None:
                    edits.commit_ts = layout.decode_timestamp(value)
            elif role == ORIGIN:
                edits.origin = frame[value_at : value_at + value_bytes]
            elif value_bytes == 0:
                edits.columns.add(name)
        elif kind == DELETE and role in (DATA, FAMILY):
            edits.deleted.add(name)
        elif kind == DELETE_FAMILY_VERSION and role == FAMILY:
            edits.deleted |= columns.by_family[name] | {name}
        elif role in (DATA, FAMILY):
            batch.ignore("raw_delete")
    if others:
        batch.ignore("column", others)
    return at
