"""The change feed: which rows of the ads DB changed, in commit order, and waiting for the next one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from catalog import Catalog, Table
from gateway import _capture
from gateway._capture import CHANGES
from gateway._exceptions import AdsDbUnavailable
from gateway._sqlite import transaction, translated
from gateway._wal_watch import WalWatch
from gateway.sqlite_ads_db import SqliteAdsDb
from messaging import Position
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP

_TRIM_CHUNK = 10_000
"""Rows forgotten in one transaction: some milliseconds during which applications cannot write."""

_SETTLE = (0.0002, 0.0004, 0.0008, 0.0015, 0.003, 0.006, 0.012, 0.025)
"""Seconds between looks after the file was written: the write is seen before the commit's fsync makes it visible."""


class Change(msgspec.Struct, frozen=True, gc=False):
    """A row of the ads DB changed. `seq` only grows; `key` is as the database holds it."""

    seq: int
    source_table: str
    key: object
    changed_at_us: int
    backfill: bool = False
    """True for rows that were enqueued as a whole: they take the low lane."""
    trace_id: str = ""


class ChangeFeed(Protocol):
    """Changes of the ads DB in commit order; SQLite's change table and MySQL's binlog implement it."""

    hold_s: float
    """How far, in seconds, the stored position may lag behind what is published, a batch at most: so much is published
    again after a crash. 0 means that nothing is, given a log that stores positions in one step with records."""

    def begin(self, committed: int) -> int:
        """Return the number after which to read, given the position stored in the log."""

    def gap(self, after: int, changes: Sequence[Change]) -> str:
        """Return why changes between `after` and those read are missing, "" when none is."""

    def stored(self, upto: int) -> Position | None:
        """Return the position to store once everything up to a number is published; None when there is no new one."""

    def read(self, after: int, limit: int) -> list[Change]:
        """Return up to `limit` changes with seq > `after`, oldest first. Raises AdsDbUnavailable."""

    def wait(self, after: int, timeout_s: float) -> bool:
        """Block without busy polling until there is a change with seq > `after`; False after `timeout_s`."""

    def start(self) -> int:
        """Return the oldest seq kept; end() + 1 when none is."""

    def end(self) -> int:
        """Return the newest seq ever given; 0 when none was."""

    def trim(self, upto: int) -> int:
        """Forget changes with seq <= `upto`; return how many."""

    def resync(self, next_seq: int) -> int:
        """Enqueue every row again, numbered from `next_seq` or later; return how many."""

    def schema_version(self) -> int:
        """Return a number that changes when the ads DB's schema does."""

    def close(self) -> None:
        """Release files; safe to call twice."""


class SqliteChangeFeed:
    """The change table of the SQLite ads DB (implements ChangeFeed). For one thread."""

    hold_s = 0.0

    def __init__(self, db: SqliteAdsDb, catalog: Catalog) -> None:
        """Follow `db`; only `end` may be asked before capture is installed on it. Raises AdsDbUnavailable."""
        self._db, self._catalog = db, catalog
        self._connection = db.connect()
        self._watch = WalWatch(db.path)
        self._file = self._identity()
        self._captured = False

    def begin(self, committed: int) -> int:
        """Return the number after which to read: the last one published."""
        return max(0, committed - 1)

    def gap(self, after: int, changes: Sequence[Change]) -> str:
        """Return why changes are missing: the table's numbers have no holes. Raises AdsDbUnavailable."""
        if changes:
            return "" if changes[-1].seq - after == len(changes) else "changes are missing from the change table"
        if self.end() < after or self.start() > after + 1:
            return "the change table does not reach back to the published position"
        return ""

    def stored(self, upto: int) -> Position | None:
        """Return the position after a number."""
        return Position(GATEWAY_GROUP, CHANGE_FEED, 0, upto + 1)

    def read(self, after: int, limit: int) -> list[Change]:
        """Return up to `limit` changes with seq > `after`, oldest first. Raises AdsDbUnavailable."""
        query = (
            f"SELECT seq, source_table, key, changed_at_us, backfill FROM {CHANGES} WHERE seq > ? ORDER BY seq LIMIT ?"
        )
        with translated(self._db.path):
            rows = self._connection.execute(query, (after, limit)).fetchall()
        return [Change(seq, table, key, at, bool(backfill)) for seq, table, key, at, backfill in rows]

    def wait(self, after: int, timeout_s: float) -> bool:
        """Block until there is a change with seq > `after`; False after `timeout_s` seconds.

        Woken by the kernel when the database's write-ahead log is written; looks again every quarter of a second all
        the same. Raises AdsDbUnavailable, also when the file was removed or replaced.
        """
        deadline = time.monotonic() + timeout_s
        while not self._has_after(after):
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            if not self._watch.wait(left):
                self._check_file()
                continue
            version = self._data_version()
            for pause in _SETTLE:
                if self._has_after(after):
                    return True
                time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
                if self._data_version() != version:
                    break
        return True

    def start(self) -> int:
        """Return the oldest seq kept; end() + 1 when none is."""
        oldest = self._one(f"SELECT min(seq) FROM {CHANGES}")
        return oldest if oldest is not None else self.end() + 1

    def end(self) -> int:
        """Return the newest seq ever given; 0 when none was, or capture is not installed yet."""
        if not self._captured:
            query = "SELECT 1 FROM sqlite_master WHERE name = ?"
            self._captured = self._one(query, CHANGES) is not None
            if not self._captured:
                return 0
        return self._one("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", CHANGES) or 0

    def trim(self, upto: int) -> int:
        """Forget changes with seq <= `upto`, in short transactions; return how many. Raises AdsDbUnavailable."""
        forgotten = 0
        with translated(self._db.path):
            while (oldest := self.start()) <= upto and oldest <= self.end():
                with transaction(self._connection) as writing:
                    last = min(upto, oldest + _TRIM_CHUNK - 1)
                    forgotten += writing.execute(f"DELETE FROM {CHANGES} WHERE seq <= ?", (last,)).rowcount
        return forgotten

    def resync(self, next_seq: int) -> int:
        """Enqueue every row again, numbered from `next_seq` or later; return how many. Raises AdsDbUnavailable.

        Rows that were deleted in the ads DB meanwhile are not noticed by this: see `enqueue_missing`.
        """
        with translated(self._db.path):
            return _capture.enqueue_all(self._connection, self._catalog, next_seq)

    def enqueue_missing(self, table: Table, keys: Iterable[int | str]) -> int:
        """Enqueue those of `keys` that the table's main ads DB table does not have; return how many.

        They are published as deleted, at low priority, unless they are there again by then. Raises AdsDbUnavailable.
        """
        with translated(self._db.path):
            return _capture.enqueue_missing(self._connection, table, keys)

    def enqueue(self, table: Table, keys: Iterable[int | str]) -> int:
        """Enqueue entities by their keys, to be sent at low priority as they are then; return how many.

        Raises AdsDbUnavailable.
        """
        with translated(self._db.path):
            return _capture.enqueue_keys(self._connection, table, keys)

    def schema_version(self) -> int:
        """Return SQLite's count of schema changes. Raises AdsDbUnavailable."""
        with translated(self._db.path):
            return _capture.schema_version(self._connection)

    def close(self) -> None:
        """Release files; safe to call twice."""
        self._watch.close()
        self._connection.close()

    def _has_after(self, after: int) -> bool:
        return self._one(f"SELECT 1 FROM {CHANGES} WHERE seq > ? LIMIT 1", after) is not None

    def _data_version(self) -> int | None:
        return self._one("PRAGMA data_version")

    def _one(self, query: str, *parameters: object) -> int | None:
        with translated(self._db.path):
            row = self._connection.execute(query, parameters).fetchone()
        return None if row is None else row[0]

    def _identity(self) -> tuple[int, int]:
        try:
            status = self._db.path.stat()
        except OSError as error:
            raise AdsDbUnavailable(f"ads DB {self._db.path} is gone: {error}; put the file back") from error
        return status.st_dev, status.st_ino

    def _check_file(self) -> None:
        if self._identity() != self._file:
            raise AdsDbUnavailable(f"ads DB {self._db.path} was replaced by another file; it is opened again")
