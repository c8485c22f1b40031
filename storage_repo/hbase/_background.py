"""What a commit leaves for later: done by one thread, in batches, in a bounded queue.

Nothing here decides whether a transaction is committed, and losing all of it (kill -9) loses nothing: entries of the
commit table that nobody removes, and cells of aborted transactions, are garbage that readers do not mind; missing
shadow cells are written by whoever reads the row first, or by the WAL proxy.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from storage_repo._exceptions import StoreUnavailable
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase.connections import HbaseConnections, HbaseRefused

_CAPACITY = 50_000
"""Units of work (entries, rows) that may wait; then commits wait with them. About a second's worth under full load."""

_BATCH = 2_000
"""Units taken at once: some tens of milliseconds of work for the server."""

_FULL_SECONDS = 5.0
"""How long commits wait for room while nothing gets done; then their work is left out, for HBase is away."""

_CLOSE_SECONDS = 5.0
"""How long close() goes on when HBase does not answer: below the 8 s after which a supervisor kills."""

_RETRY_SECONDS = 0.5

_log = structlog.get_logger()


class _Finish:
    """Transactions whose entries go when all of their shadow cells are written, and never before."""

    __slots__ = ("left", "starts")

    def __init__(self, starts: Sequence[int], left: int) -> None:
        self.starts: Sequence[int] = starts
        self.left = left
        """Puts not written yet. One that is refused is never taken off, so the entries stay: they are what tells
        readers, for ever, that the transaction is committed."""


_Put = tuple[bytes, Any, _Finish | None]


class Background:
    """One thread's queue of finishing work. An entry is queued for removal when the last of its puts is written."""

    def __init__(self, connections: HbaseConnections, commit_table: CommitTable, faults: Callable[[str], None]) -> None:
        self._connections, self._commit_table, self._faults = connections, commit_table, faults
        self._changed = threading.Condition()
        self._puts: deque[_Put] = deque()
        self._deletes: deque[tuple[bytes, Any]] = deque()
        self._entries: deque[int] = deque()
        self._busy = False
        self._progress_at = time.monotonic()
        self._closing_at: float | None = None
        self.counters: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="hbase-background", daemon=True)
        self._thread.start()

    def remove_entries(self, starts: Sequence[int]) -> None:
        """Remove commit-table entries of transactions whose shadow cells are all written."""
        self._add(self._entries, starts)

    def write_shadow_cells(self, puts: Mapping[bytes, Sequence[Any]], then_remove: Sequence[int] = ()) -> None:
        """Write shadow cells, by table, that a commit could not, or that a reader found missing.

        When all of them are written, and only then, remove the entries of `then_remove`.
        """
        count = sum(map(len, puts.values()))
        finish = _Finish(then_remove, count) if then_remove else None
        self._add(self._puts, [(table, put, finish) for table, of_table in puts.items() for put in of_table])

    def delete_cells(self, table: bytes, deletes: Sequence[Any]) -> None:
        """Delete cells of aborted transactions, each at exactly its version."""
        self._add(self._deletes, [(table, delete) for delete in deletes])

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until nothing is left to do; False if the time ran out."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy and not self._waiting(), timeout_s)

    def close(self) -> None:
        """Do what is left, for some seconds at most, and end the thread; one that hangs in a call ends with it."""
        with self._changed:
            self._closing_at = time.monotonic()
            self._changed.notify_all()
        self._thread.join(_CLOSE_SECONDS + _RETRY_SECONDS)
        if self._thread.is_alive():
            with self._changed:
                left = self._forget_all()
            _log.warning("hbase_background_given_up", left=left, error="HBase does not answer")

    def _add(self, queue: deque[Any], items: Sequence[Any]) -> None:
        """Queue work. Where there is no room and none comes, leave it out: nothing here decides over a transaction."""
        if not items:
            return
        with self._changed:
            while self._waiting() > _CAPACITY and self._closing_at is None:
                patience = self._progress_at + _FULL_SECONDS - time.monotonic()
                if patience <= 0:
                    self.counters["background_left_out"] += len(items)
                    return
                self._changed.wait(patience)
            if not self._waiting():
                self._progress_at = time.monotonic()
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
                puts = _take(self._puts, _BATCH)
                deletes = _take(self._deletes, _BATCH)
                entries = _take(self._entries, _BATCH)
                self._busy = True
            try:
                self._do(puts, deletes, entries)
            except StoreUnavailable as error:
                self._retry_later(puts, deletes, entries, error)
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _do(self, puts: list[_Put], deletes: list[tuple[bytes, Any]], entries: list[int]) -> None:
        """Do a batch; what is done is taken out of the lists. Raises StoreUnavailable with the rest in them."""
        for table in dict.fromkeys(table for table, *_ in puts):
            of_table = [unit for unit in puts if unit[0] == table]
            if self._unless_refused(lambda t, u: self._connections.put(t, [put for _, put, _ in u]), table, of_table):
                self.counters["shadow_cells_later"] += len(of_table)
                for _, _, finish in of_table:
                    if finish is not None:
                        finish.left -= 1
                        if not finish.left:
                            entries += finish.starts
            puts[:] = [unit for unit in puts if unit[0] != table]
        if entries:
            self._faults("before-entry-removal")
            self._unless_refused(lambda _, starts: self._commit_table.remove(starts), b"", entries)
            entries.clear()
            self._progressed()
        for table in dict.fromkeys(table for table, _ in deletes):
            rows = [delete for of, delete in deletes if of == table]
            if self._unless_refused(self._connections.delete, table, rows):
                self.counters["rollback_rows"] += len(rows)
            deletes[:] = [unit for unit in deletes if unit[0] != table]

    def _unless_refused(self, work: Callable[[bytes, Any], None], table: bytes, units: Sequence[Any]) -> bool:
        """Do it for a table; False if HBase will never do it, which only costs the work of this table."""
        try:
            work(table, units)
        except HbaseRefused as error:  # a table that has been dropped
            self.counters["background_refused"] += len(units)
            _log.warning("hbase_background_refused", error=str(error), units=len(units))
            return False
        self._progressed()
        return True

    def _progressed(self) -> None:
        with self._changed:
            self._progress_at = time.monotonic()

    def _retry_later(
        self, puts: list[_Put], deletes: list[tuple[bytes, Any]], entries: list[int], error: StoreUnavailable
    ) -> None:
        with self._changed:
            self.counters["background_retries"] += 1
            self._puts.extendleft(reversed(puts))
            self._deletes.extendleft(reversed(deletes))
            self._entries.extendleft(reversed(entries))
            if self._closing_at is not None and time.monotonic() > self._closing_at + _CLOSE_SECONDS:
                left = self._forget_all()
                _log.warning("hbase_background_given_up", left=left, error=str(error))
                return
            self._changed.wait(_RETRY_SECONDS)

    def _forget_all(self) -> int:
        left = self._waiting()
        for queue in (self._puts, self._deletes, self._entries):
            queue.clear()
        return left


def _take(queue: deque[Any], most: int) -> list[Any]:
    return [queue.popleft() for _ in range(min(most, len(queue)))]
