"""Snapshots and transactions on HBase as users hold them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from operator import itemgetter

from storage_repo._exceptions import LimitExceeded, TransactionClosed
from storage_repo._origin import encode_origin
from storage_repo._overlay import merge, overlay
from storage_repo.api import Limits, Origin, Row, RowId
from storage_repo.hbase._cells import VisibleRow, values_of
from storage_repo.hbase._commit import Cell, Prepared
from storage_repo.hbase._read import Reader
from storage_repo.hbase._state import Watermark
from storage_repo.hbase.names import Column, HbaseNames, KeyRange
from storage_repo.hbase.values import encode_value

_ROWS_PER_CHUNK = 256
"""Rows in one call of a scan; the next call of a limited scan asks only for what is missing."""


class HbaseSnapshot:
    """A consistent read-only view at one timestamp; may be used by several threads."""

    def __init__(self, reader: Reader, names: HbaseNames, watermark: Watermark, ts: int) -> None:
        self._reader, self._names, self._watermark, self._ts = reader, names, watermark, ts

    @property
    def ts(self) -> int:
        """Timestamp of this view."""
        return self._ts

    def get(self, table: str, row: str, columns: Sequence[str] | None = None) -> Row:
        """Read one row; {} if nothing is visible. Raises SnapshotTooOld, UnknownTable, LimitExceeded (row key)."""
        return self._read([(table, row)], {} if columns is None else {table: columns})[table, row]

    def get_many(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]] | None = None) -> dict[RowId, Row]:
        """Read many rows of several tables, normally in one round trip per table, at the same time.

        Every asked row is in the answer, in the order asked.
        """
        return self._read(rows, columns or {})

    def scan(
        self,
        table: str,
        *,
        prefix: str = "",
        after: str = "",
        before: str = "",
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Row]]:
        """Yield (row, cells) in key order; raises SnapshotTooOld when it has taken longer than versions are kept.

        Rows without any of `columns` are left out. Holds nothing between two rows. A salted table is read in all its
        ranges at once, and the rows are merged.
        """
        ranges = self._names.ranges(table, prefix, after, before)
        if columns is not None:
            for column in columns:
                self._names.column(table, column)
            if not columns:
                return iter(())
        return self._scan(table, ranges, columns, limit)

    def _read(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]]) -> dict[RowId, Row]:
        names = self._names
        asked: dict[str, dict[bytes, VisibleRow]] = {}
        found: dict[RowId, VisibleRow] = {}
        for row_id in rows:
            if row_id not in found:
                found[row_id] = asked.setdefault(row_id[0], {})[names.row_key(*row_id)] = {}
        for table, wanted in columns.items():
            for column in wanted:
                names.column(table, column)
        self._reader.rows(self._ts, asked, {table: columns.get(table) for table in asked})
        self._watermark.check(self._ts, asked)
        answer = {row_id: values_of(visible) for row_id, visible in found.items()}
        self._reader.count(rows_read=len(answer), cells_read=sum(map(len, answer.values())))
        return answer

    def _scan(
        self, table: str, ranges: Sequence[KeyRange], columns: Collection[str] | None, limit: int | None
    ) -> Iterator[tuple[str, Row]]:
        if limit is not None and limit <= 0:
            return
        parts = [self._scan_range(table, over, columns, limit) for over in ranges]
        merged = parts[0] if len(parts) == 1 else heapq.merge(*parts, key=itemgetter(0))
        for count, found in enumerate(merged, 1):
            yield found
            if count == limit:
                return

    def _scan_range(
        self, table: str, over: KeyRange, columns: Collection[str] | None, limit: int | None
    ) -> Iterator[tuple[str, Row]]:
        start: bytes | None = over.start
        left = limit
        while start is not None:
            wanted = _ROWS_PER_CHUNK if left is None else min(max(left, 1), _ROWS_PER_CHUNK)
            rows, start = self._reader.scan(self._ts, table, KeyRange(start, over.stop), columns, wanted)
            self._watermark.check(self._ts, (table,))
            for key, visible in rows:
                if row := values_of(visible):
                    self._reader.count(rows_read=1, cells_read=len(row))
                    yield self._names.row_of(table, key), row
                    if left is not None:
                        left -= 1


class HbaseTransaction(HbaseSnapshot):
    """A snapshot with buffered writes. Not for use by several threads."""

    def __init__(
        self,
        reader: Reader,
        names: HbaseNames,
        watermark: Watermark,
        ts: int,
        *,
        start: int | None,
        origin: Origin,
        limits: Limits,
        commit: Callable[[HbaseTransaction], int],
    ) -> None:
        super().__init__(reader, names, watermark, ts)
        self._start, self._origin, self._limits, self._commit = start, origin, limits, commit
        self._writes: dict[RowId, dict[str, bytes | None]] = {}
        self._columns: dict[RowId, list[Column]] = {}
        self._promoted: dict[tuple[RowId, str], Cell] = {}
        self._size = 0
        self._closed = ""

    @property
    def origin(self) -> Origin:
        """Who writes."""
        return self._origin

    def get(self, table: str, row: str, columns: Sequence[str] | None = None) -> Row:
        """Read one row with the own writes."""
        self.check_open()
        found = super().get(table, row, columns)
        if own := self._writes.get((table, row)):
            overlay(found, own, columns)
        return found

    def get_many(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]] | None = None) -> dict[RowId, Row]:
        """Read many rows with the own writes."""
        self.check_open()
        found = super().get_many(rows, columns)
        for row_id in found.keys() & self._writes.keys():
            overlay(found[row_id], self._writes[row_id], columns.get(row_id[0]) if columns else None)
        return found

    def scan(
        self,
        table: str,
        *,
        prefix: str = "",
        after: str = "",
        before: str = "",
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Row]]:
        """Yield (row, cells) in key order with the own writes made before this call."""
        self.check_open()
        own = {
            row: dict(cells)
            for (of_table, row), cells in self._writes.items()
            if of_table == table and row.startswith(prefix) and row > after and (not before or row < before)
        }
        stored = super().scan(
            table, prefix=prefix, after=after, before=before, columns=columns, limit=None if own else limit
        )
        return self._merged(stored, own, columns, limit)

    def put(self, table: str, row: str, column: str, value: bytes) -> None:
        """Buffer a write. Raises LimitExceeded, UnknownTable."""
        if not isinstance(value, bytes):
            raise TypeError(f"cell {table}/{row!r} {column}: the value is {type(value).__name__}, not bytes")
        if len(value) > self._limits.max_value_bytes:
            raise LimitExceeded(
                f"cell {table}/{row[:80]!r} {column}: the value has {len(value)} bytes, "
                f"max_value_bytes is {self._limits.max_value_bytes}"
            )
        self._buffer(table, row, column, value)

    def delete(self, table: str, row: str, column: str) -> None:
        """Buffer a tombstone for one cell. Raises LimitExceeded, UnknownTable."""
        self._buffer(table, row, column, None)

    def promote(self, table: str, row: str, column: str) -> None:
        """Put a cell that was only read into the conflict set. Raises LimitExceeded, UnknownTable."""
        self.check_open()
        self._promoted[(table, row), column] = (table, row, self._checked(table, row, column))
        self._check_size()

    def commit(self) -> int:
        """Commit durably and return the timestamp. Raises Conflict, SnapshotTooOld, StoreUnavailable.

        Whatever the outcome, the transaction is closed then.
        """
        return self._commit(self)

    def abort(self) -> None:
        """Forget all writes; does nothing on a closed transaction."""
        self._closed = self._closed or "aborted"
        self._forget()

    def prepare(self) -> Prepared | None:
        """Close the transaction and encode it for the commit; None if it has nothing to write. For the engine."""
        self.check_open()
        self._closed = "committed"
        if not self._writes:
            self._forget()
            return None
        writes = {}
        for row_id, values in self._writes.items():
            stored = (b"" if value is None else encode_value(value) for value in values.values())
            writes[row_id] = list(zip(self._columns[row_id], stored, strict=True))
        promoted = [
            cell for (row_id, column), cell in self._promoted.items() if column not in self._writes.get(row_id, ())
        ]
        prepared = Prepared(self.ts, self._start, writes, promoted, encode_origin(self._origin))
        self._forget()
        return prepared

    def check_open(self) -> None:
        """Raise TransactionClosed after commit or abort."""
        if self._closed:
            raise TransactionClosed(f"transaction at {self.ts} has been {self._closed}; begin another one")

    def belongs_to(self, reader: Reader) -> bool:
        """Tell whether this transaction was begun on the repo that has this reader."""
        return self._reader is reader

    def _checked(self, table: str, row: str, column: str) -> Column:
        self._names.row_key(table, row)
        found = self._names.column(table, column)
        self._names.check_cell(table, row, found)
        return found

    def _buffer(self, table: str, row: str, column: str, value: bytes | None) -> None:
        if self._closed:
            self.check_open()
        row_id = (table, row)
        cells = self._writes.get(row_id)
        if cells is None or column not in cells:
            found = self._checked(table, row, column)
            self._check_size(1)
            self._size += 1
            if cells is None:
                cells = self._writes[row_id] = {}
                self._columns[row_id] = []
            self._columns[row_id].append(found)
        cells[column] = value

    def _merged(
        self,
        stored: Iterator[tuple[str, Row]],
        own: dict[str, dict[str, bytes | None]],
        columns: Sequence[str] | None,
        limit: int | None,
    ) -> Iterator[tuple[str, Row]]:
        if limit is not None and limit <= 0:
            return
        for count, found in enumerate(merge(stored, own, columns), 1):
            self.check_open()
            yield found
            if count == limit:
                return

    def _forget(self) -> None:
        self._writes, self._columns, self._promoted, self._size = {}, {}, {}, 0

    def _check_size(self, more: int = 0) -> None:
        limit = self._limits.max_cells_per_transaction
        if self._size + len(self._promoted) + more > limit:
            raise LimitExceeded(f"transaction at {self.ts} has more than max_cells_per_transaction = {limit} cells")
