"""What a commit leaves for later: done by one thread, in batches, in a bounded queue.

Nothing here decides whether a transaction is committed, and losing all of it (kill -9) loses nothing: entries of the
commit table that nobody removes, and cells of aborted transactions, are garbage that readers do not mind; missing
shadow cells are written by whoever reads the row first, or by the WAL proxy.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from storage_repo._exceptions import StoreUnavailable
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase.connections import HbaseConnections, HbaseRefused

_CAPACITY = 50_000
"""Units of work (entries, rows) that may wait; then commits wait with them. About a second's worth under full load."""

_BATCH = 2_000
"""Units taken at once: some tens of milliseconds of work for the server."""

_CLOSE_SECONDS = 5.0
"""How long close() goes on trying when HBase does not answer."""

_RETRY_SECONDS = 0.5

_log = structlog.get_logger()


class Background:
    """One thread's queue of finishing work. Puts come before removals in every batch."""

    def __init__(self, connections: HbaseConnections, commit_table: CommitTable, faults: Callable[[str], None]) -> None:
        self._connections, self._commit_table, self._faults = connections, commit_table, faults
        self._changed = threading.Condition()
        self._puts: deque[tuple[bytes, Any]] = deque()
        self._deletes: deque[tuple[bytes, Any]] = deque()
        self._entries: deque[int] = deque()
        self._busy = False
        self._closing_at: float | None = None
        self.counters: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="hbase-background", daemon=True)
        self._thread.start()

    def remove_entries(self, starts: Sequence[int]) -> None:
        """Remove commit-table entries of transactions whose shadow cells are all written."""
        self._add(self._entries, starts)

    def write_shadow_cells(self, table: bytes, puts: Sequence[Any], then_remove: Sequence[int] = ()) -> None:
        """Write shadow cells that a commit could not, or that a reader found missing; then remove entries."""
        self._add(self._puts, [(table, put) for put in puts])
        self._add(self._entries, then_remove)

    def delete_cells(self, table: bytes, deletes: Sequence[Any]) -> None:
        """Delete cells of aborted transactions, each at exactly its version."""
        self._add(self._deletes, [(table, delete) for delete in deletes])

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until nothing is left to do; False if the time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy and not self._waiting(), timeout_s)

    def close(self) -> None:
        """Do what is left, for some seconds at most, and end the thread."""
        with self._changed:
            self._closing_at = time.monotonic()
            self._changed.notify_all()
        self._thread.join()

    def _add(self, queue: deque[Any], items: Sequence[Any]) -> None:
        if not items:
            return
        with self._changed:
            while self._waiting() > _CAPACITY and self._closing_at is None:
                self._changed.wait(1.0)
            queue.extend(items)
            self._changed.notify_all()

    def _waiting(self) -> int:
        return len(self._puts) + len(self._deletes) + len(self._entries)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting() and self._closing_at is None:
                    self._changed.wait()
                if not self._waiting():
                    return
                # Entries go after the shadow cells that were queued before them, never with some still to be written.
                puts = _take(self._puts, _BATCH)
                deletes = _take(self._deletes, _BATCH)
                entries = [] if self._puts else _take(self._entries, _BATCH)
                self._busy = True
            try:
                self._do(puts, deletes, entries)
            except HbaseRefused as error:  # a table that has been dropped
                self.counters["background_refused"] += len(puts) + len(deletes) + len(entries)
                _log.warning("hbase_background_refused", error=str(error))
            except StoreUnavailable as error:
                self._retry_later(puts, deletes, entries, error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _do(self, puts: list[Any], deletes: list[Any], entries: list[int]) -> None:
        for table, batch in _by_table(puts).items():
            self._connections.put(table, batch)
        self.counters["shadow_cells_later"] += len(puts)
        puts.clear()
        if entries:
            self._faults("before-entry-removal")
            self._commit_table.remove(entries)
            entries.clear()
        for table, batch in _by_table(deletes).items():
            self._connections.delete(table, batch)
        self.counters["rollback_rows"] += len(deletes)
        deletes.clear()

    def _retry_later(self, puts: list[Any], deletes: list[Any], entries: list[int], error: StoreUnavailable) -> None:
        with self._changed:
            self.counters["background_retries"] += 1
            if self._closing_at is not None and time.monotonic() > self._closing_at + _CLOSE_SECONDS:
                left = self._waiting() + len(puts) + len(deletes) + len(entries)
                _log.warning("hbase_background_given_up", left=left, error=str(error))
                for queue in (self._puts, self._deletes, self._entries):
                    queue.clear()
                return
            self._puts.extendleft(reversed(puts))
            self._deletes.extendleft(reversed(deletes))
            self._entries.extendleft(reversed(entries))
            self._changed.wait(_RETRY_SECONDS)


def _take(queue: deque[Any], most: int) -> list[Any]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]


def _by_table(items: Sequence[tuple[bytes, Any]]) -> dict[bytes, list[Any]]:
    grouped: defaultdict[bytes, list[Any]] = defaultdict(list)
    for table, item in items:
        grouped[table].append(item)
    return grouped
