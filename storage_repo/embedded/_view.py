"""Snapshots and transactions as users hold them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from storage_repo._exceptions import LimitExceeded, TransactionClosed
from storage_repo._origin import encode_origin
from storage_repo._overlay import merge, overlay
from storage_repo.api import Limits, Origin, Row, RowId
from storage_repo.embedded._commit import Prepared
from storage_repo.embedded._keys import KeyCodec
from storage_repo.embedded._reads import Range, Reader
from storage_repo.embedded._store import Store

_encode = msgspec.msgpack.encode


class EmbeddedSnapshot:
    """A consistent read-only view at one timestamp; may be used by several threads."""

    def __init__(self, store: Store, codec: KeyCodec, ts: int) -> None:
        self._codec = codec
        self._reader = Reader(store, codec, ts)

    @property
    def ts(self) -> int:
        """Timestamp of this view."""
        return self._reader.ts

    def get(self, table: str, row: str, columns: Sequence[str] | None = None) -> Row:
        """Read one row; {} if nothing is visible. Raises SnapshotTooOld, UnknownTable, LimitExceeded (row key)."""
        codec = self._codec
        wanted = None if columns is None else [codec.column(table, column) for column in columns]
        row_id = (table, row)
        return self._reader.rows(((row_id, codec.row(table, row), wanted),))[row_id]

    def get_many(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]] | None = None) -> dict[RowId, Row]:
        """Read many rows of several tables in one go; every asked row is in the answer, in the order asked."""
        codec = self._codec
        wanted = {
            table: [codec.column(table, column) for column in dict.fromkeys(names)]
            for table, names in (columns or {}).items()
        }
        prefix, columns_of = codec.row, wanted.get
        unique = rows if len(rows) < 2 else dict.fromkeys(rows)
        return self._reader.rows([(row_id, prefix(*row_id), columns_of(row_id[0])) for row_id in unique])

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

        Rows without any of `columns` are left out. Holds nothing between two rows.
        """
        codec = self._codec
        within = codec.bound(table, prefix)
        start = max(within, codec.bound(table, after) + b"\1") if after else within
        stop = codec.bound(table, before) if before else None
        wanted = None if columns is None else frozenset(codec.column(table, column) for column in columns)
        return self._reader.scan(Range(start, within, stop, wanted), limit)


class EmbeddedTransaction(EmbeddedSnapshot):
    """A snapshot with buffered writes. Not for use by several threads."""

    def __init__(
        self,
        store: Store,
        codec: KeyCodec,
        ts: int,
        *,
        origin: Origin,
        limits: Limits,
        commit: Callable[[EmbeddedTransaction], int],
    ) -> None:
        super().__init__(store, codec, ts)
        self._origin, self._limits, self._commit = origin, limits, commit
        self._writes: dict[RowId, dict[str, bytes | None]] = {}
        self._promoted: set[bytes] = set()
        self._cells: dict[bytes, tuple[RowId, str]] = {}
        self._prefixes: dict[RowId, bytes] = {}
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
        if self._writes:
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
        self._promoted.add(self._codec.cell(table, row, column))
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
        rows = [(table, row, tuple(cells)) for (table, row), cells in self._writes.items()]
        writes = self._writes
        prepared = Prepared(
            start_ts=self.ts,
            cells=[(key, writes[row_id][column]) for key, (row_id, column) in self._cells.items()],
            promoted=[key for key in self._promoted if key not in self._cells],
            origin=encode_origin(self._origin),
            rows=_encode(rows),
            versions_kept=self._limits.versions_kept,
            decode=self._codec.decode,
        )
        self._forget()
        return prepared

    def belongs_to(self, store: Store) -> bool:
        """Tell whether this transaction was begun on the given store."""
        return self._reader.store is store

    def _buffer(self, table: str, row: str, column: str, value: bytes | None) -> None:
        if self._closed:
            self.check_open()
        row_id = (table, row)
        cells = self._writes.get(row_id)
        if cells is None or column not in cells:
            prefix = self._prefixes[row_id] if cells is not None else self._codec.row(table, row)
            key = self._codec.cell_in(prefix, table, row, column)
            self._check_size(1)
            self._cells[key] = (row_id, column)
            if cells is None:
                self._prefixes[row_id] = prefix
                cells = self._writes[row_id] = {}
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
        self._writes, self._cells, self._prefixes, self._promoted = {}, {}, {}, set()

    def check_open(self) -> None:
        """Raise TransactionClosed after commit or abort."""
        if self._closed:
            raise TransactionClosed(f"transaction at {self.ts} has been {self._closed}; begin another one")

    def _check_size(self, more: int = 0) -> None:
        limit = self._limits.max_cells_per_transaction
        if len(self._cells) + len(self._promoted) + more > limit:
            raise LimitExceeded(f"transaction at {self.ts} has more than max_cells_per_transaction = {limit} cells")
