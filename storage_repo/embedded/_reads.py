"""Reads at one timestamp: short LMDB read transactions, many rows in each, never one between two calls."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import lmdb

from storage_repo._exceptions import SnapshotTooOld
from storage_repo.api import Row, RowId
from storage_repo.embedded._keys import KeyCodec
from storage_repo.embedded._store import INVERTED, TOMBSTONE, U64, Store

Asked = tuple[RowId, bytes, Sequence[bytes] | None]
"""A row asked for: its name, its key prefix, and its encoded columns or None for all."""

_ROWS_PER_READ = 1024
"""Rows read in one LMDB transaction (about 10 ms): a longer one would pin pages that commits want to reuse."""

_ROWS_PER_CHUNK = 256
_CELLS_PER_CHUNK = 1 << 14
"""A scan's chunk ends after so many rows, or after the row that exceeds so many cells (deleted ones count)."""


class Range(NamedTuple):
    """What a scan covers: keys from `start` on while they begin with `within` and are below `stop`."""

    start: bytes
    within: bytes
    stop: bytes | None
    columns: Collection[bytes] | None


class Reader:
    """Reads the cells that are visible at one timestamp."""

    __slots__ = ("_after", "_codec", "_inverted", "_packed", "store", "ts")

    def __init__(self, store: Store, codec: KeyCodec, ts: int) -> None:
        self.ts = ts
        self.store, self._codec = store, codec
        self._packed = U64.pack(ts)
        self._after = U64.pack(ts + 1)  # an entry of `current` below this is visible
        self._inverted = self._packed.translate(INVERTED)

    def rows(self, asked: Sequence[Asked]) -> dict[RowId, Row]:
        """Return every asked row, {} where nothing is visible. Raises SnapshotTooOld, StoreUnavailable."""
        found: dict[RowId, Row] = {row_id: {} for row_id, _, _ in asked}
        ordered = sorted(asked, key=_prefix_of) if len(asked) > 1 else asked
        cells = 0
        try:
            for start in range(0, len(ordered), _ROWS_PER_READ):
                with self.store.env.begin() as txn:
                    self.check(txn)
                    cells += self._read(txn, ordered[start : start + _ROWS_PER_READ], found)
        except lmdb.Error as error:
            raise self.store.unavailable("read", error) from error
        self.store.count(cells_read=cells, rows_read=len(found))
        return found

    def check(self, txn: lmdb.Transaction[bytes]) -> None:
        """Raise SnapshotTooOld if versions of this timestamp may be gone as of the LMDB transaction."""
        state = txn.get(b"state", db=self.store.meta)
        if state is None or self._packed < state[8:16]:
            self.store.count(snapshots_too_old=1)
            raise SnapshotTooOld(self.ts, self.store.state(txn).low_watermark)

    def _read(self, txn: lmdb.Transaction[bytes], asked: Sequence[Asked], found: dict[RowId, Row]) -> int:
        names, after, current = self._codec.names, self._after, self.store.current
        cursor, get = txn.cursor(current), txn.get
        cells = 0
        for row_id, prefix, columns in asked:
            row = found[row_id]
            if columns is not None:
                for column in columns:
                    value = get(prefix + column, db=current)
                    if value is None:
                        continue
                    if value >= after:
                        older = self._older(txn, prefix + column)
                        if older is not None:
                            row[names[column]] = older
                    elif value[8] < TOMBSTONE:
                        row[names[column]] = value[9:]
            elif cursor.set_range(prefix):
                skip = len(prefix)
                for key, value in cursor.iternext():
                    if not key.startswith(prefix):
                        break
                    if value >= after:
                        older = self._older(txn, key)
                        if older is not None:
                            row[names[key[skip:]]] = older
                    elif value[8] < TOMBSTONE:
                        row[names[key[skip:]]] = value[9:]
            cells += len(row)
        return cells

    def _older(self, txn: lmdb.Transaction[bytes], key: bytes) -> bytes | None:
        """Return what the snapshot sees of a cell that has been overwritten since."""
        cursor = txn.cursor(self.store.history)
        prefix = key + b"\0"
        if cursor.set_range(prefix + self._inverted):
            found, value = cursor.item()
            if found.startswith(prefix) and value[0] < TOMBSTONE:
                return value[1:]
        return None

    def scan(self, over: Range, limit: int | None) -> Iterator[tuple[str, Row]]:
        """Yield (row, cells) in key order, a chunk of rows per LMDB transaction."""
        left = limit
        while left is None or left > 0:
            wanted = _ROWS_PER_CHUNK if left is None else min(left, _ROWS_PER_CHUNK)
            try:
                with self.store.env.begin() as txn:
                    self.check(txn)
                    rows, following = self._chunk(txn, over, wanted)
            except lmdb.Error as error:
                raise self.store.unavailable("read", error) from error
            self.store.count(cells_read=sum(len(row) for _, row in rows), rows_read=len(rows))
            yield from rows
            if following is None:
                return
            over = over._replace(start=following)
            if left is not None:
                left -= len(rows)

    def _chunk(
        self, txn: lmdb.Transaction[bytes], over: Range, wanted: int
    ) -> tuple[list[tuple[str, Row]], bytes | None]:
        """Return rows and the key to go on from; None at the end."""
        start, within, stop, columns = over
        names, after = self._codec.names, self._after
        rows: list[tuple[str, Row]] = []
        cursor = txn.cursor(self.store.current)
        if not cursor.set_range(start):
            return rows, None
        row: Row = {}
        prefix, skip, examined = b"\0", 1, 0  # no key begins with 00: table ids begin at 1
        for key, value in cursor.iternext():
            if not key.startswith(prefix):
                if row:
                    rows.append((prefix[1:-1].decode(), row))
                if len(rows) >= wanted or examined >= _CELLS_PER_CHUNK:
                    return rows, key
                if not key.startswith(within) or (stop is not None and key >= stop):
                    return rows, None
                skip = key.index(0, 1) + 1
                prefix = key[:skip]
                row = {}
            examined += 1
            if columns is not None and key[skip:] not in columns:
                continue
            if value >= after:
                older = self._older(txn, key)
                if older is not None:
                    row[names[key[skip:]]] = older
            elif value[8] < TOMBSTONE:
                row[names[key[skip:]]] = value[9:]
        if row:
            rows.append((prefix[1:-1].decode(), row))
        return rows, None


def _prefix_of(asked: Asked) -> bytes:
    return asked[1]
