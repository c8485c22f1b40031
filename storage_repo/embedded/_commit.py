"""Commit: optimistic conflict check and write of a batch of transactions in one durable LMDB transaction."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lmdb
import structlog

from messaging._wake import wake
from storage_repo._exceptions import Conflict, SnapshotTooOld
from storage_repo._origin import decode_origin as decode_stored_origin
from storage_repo.api import CommitOutcome, Origin
from storage_repo.embedded._clock import Clock
from storage_repo.embedded._store import INVERTED, TOMBSTONE, TXN, U64, State, Store

CHANGES_NAME = "repo.changes"
"""What those who wait for changes are registered under in the wake directory."""

_TRIM_EVERY = 16
"""Overwrites of one cell between inline trims; must stay below 128, the room in a mark."""

_TRIM_AT_MOST = 256
"""Versions dropped by one inline trim, so that a commit never pays for a long backlog; the sweep takes the rest."""

_GROUP = 256
"""Transactions of concurrent threads that share one durable write. Beyond this the fsync no longer dominates."""


_log = structlog.get_logger()


def decode_origin(record: bytes) -> tuple[int, Origin]:
    """Return (committed_at_us, origin) of a stored transaction record."""
    return int(TXN.unpack_from(record)[1]), decode_stored_origin(record[TXN.size :])


@dataclass(slots=True)
class Prepared:
    """A transaction ready to be checked and written; everything that can be encoded before the write lock is."""

    start_ts: int
    cells: list[tuple[bytes, bytes | None]]
    promoted: list[bytes]
    origin: bytes
    rows: bytes
    versions_kept: int
    decode: Callable[[bytes], tuple[str, str, str]]


def apply(store: Store, clock: Clock, batch: Sequence[Prepared]) -> list[CommitOutcome]:
    """Commit a batch in order with one fsync; each transaction is checked against those before it as well.

    Raises StoreUnavailable, and then none of the batch is visible.
    """
    try:
        with store.env.begin(write=True) as txn:
            group = _Group(store, txn, clock)
            outcomes = [group.commit(prepared) for prepared in batch]
            group.finish()
    except lmdb.Error as error:
        raise store.unavailable("write to", error) from error
    store.count(groups=1, **group.counts)
    return outcomes


class _Group:
    """Transactions that go into one LMDB write transaction."""

    def __init__(self, store: Store, txn: lmdb.Transaction[bytes], clock: Clock) -> None:
        self.counts: Counter[str] = Counter()
        self._store, self._txn, self._boot_id = store, txn, clock.boot_id()
        self._state = state = store.state(txn)
        self._begun = State(state.last_ts, state.low_watermark, state.committed_at_us, state.epoch)
        state.epoch = store.epoch(txn, state, clock)
        state.committed_at_us = max(state.committed_at_us, clock.wall_us())
        self._steady_us = clock.steady_us()
        self._dropped: Counter[bytes] = Counter()

    def commit(self, prepared: Prepared) -> CommitOutcome:
        """Check one transaction and put its cells and records."""
        state, counts, start_ts = self._state, self.counts, prepared.start_ts
        if start_ts < state.low_watermark:
            counts["snapshots_too_old"] += 1
            return SnapshotTooOld(start_ts, state.low_watermark)
        store = self._store
        get, put, current, history = self._txn.get, self._txn.put, store.current, store.history
        newer = U64.pack(start_ts + 1)  # an entry >= this has a later commit timestamp
        olds = []
        for key, _ in prepared.cells:
            old = get(key, db=current)
            if old is not None and old >= newer:
                return self._conflict(prepared, key, old)
            olds.append(old)
        for key in prepared.promoted:
            old = get(key, db=current)
            if old is not None and old >= newer:
                return self._conflict(prepared, key, old)

        state.last_ts += 1
        ts = U64.pack(state.last_ts)
        for (key, value), old in zip(prepared.cells, olds, strict=True):
            overwrites = 0
            if old is not None:
                put(key + b"\0" + old[:8].translate(INVERTED), old[8:], db=history)
                overwrites = (old[8] & ~TOMBSTONE) + 1
                if overwrites >= _TRIM_EVERY:
                    overwrites = 0
                    self._trim(key, prepared.versions_kept)
            if value is None:
                put(key, ts + bytes((overwrites | TOMBSTONE,)), db=current)
                put(ts + key, b"", db=store.tombstones)
            else:
                put(key, ts + bytes((overwrites,)) + value, db=current)
        stamp = TXN.pack(len(prepared.cells), state.committed_at_us, state.epoch, self._steady_us)
        put(ts, stamp + prepared.origin, append=True, db=store.txns)
        put(ts, prepared.rows, append=True, db=store.changes)
        counts["commits"] += 1
        counts["cells_written"] += len(prepared.cells)
        return state.last_ts

    def finish(self) -> None:
        """Put what belongs to the group as a whole."""
        if self._state.last_ts == self._begun.last_ts:
            return  # nothing committed: leave the store untouched
        if self._dropped:
            self._store.release_versions(self._txn, self._dropped)
        if self._state.epoch != self._begun.epoch:
            self._txn.put(b"boot", self._boot_id, db=self._store.meta)
        self._txn.put(b"state", self._state.pack(), db=self._store.meta)

    def _conflict(self, prepared: Prepared, key: bytes, old: bytes) -> Conflict:
        self.counts["conflicts"] += 1
        return Conflict(*prepared.decode(key), prepared.start_ts, int.from_bytes(old[:8], "big"))

    def _trim(self, key: bytes, kept: int) -> None:
        """Drop versions of a cell that is just being overwritten; a cheap share of what the sweep does."""
        prefix = key + b"\0"
        cursor = self._txn.cursor(self._store.history)
        # The newest version at or before the watermark is what the oldest live snapshot reads; those after it are dead.
        if not cursor.set_range(prefix + U64.pack(self._state.low_watermark).translate(INVERTED)):
            return
        visible_at_watermark = cursor.key()
        cursor.set_range(prefix)
        for _ in range(kept - 1):  # the version now being written is the first of those kept
            if not cursor.key().startswith(prefix) or not cursor.next():
                return
        if cursor.key() <= visible_at_watermark:
            cursor.set_key(visible_at_watermark)
            cursor.next()
        for _ in range(_TRIM_AT_MOST):
            if not cursor.key().startswith(prefix):
                return
            self._dropped[cursor.key()[-8:].translate(INVERTED)] += 1
            cursor.delete()
            self.counts["versions_dropped"] += 1


class _Request:
    """A thread's transactions waiting for the group commit."""

    __slots__ = ("clock", "done", "error", "leads", "outcomes", "prepared", "wake_dir")

    def __init__(self, prepared: Sequence[Prepared], clock: Clock, wake_dir: Path) -> None:
        self.prepared, self.clock, self.wake_dir = prepared, clock, wake_dir
        self.done = threading.Event()
        self.leads = False
        self.outcomes: list[CommitOutcome] = []
        self.error: BaseException | None = None


class GroupCommit:
    """Threads that commit at the same time share one durable write: one leads, the others wait for its answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._waiting: list[_Request] = []
        self._led = False

    @classmethod
    def of(cls, store: Store) -> GroupCommit:
        """Return the one that all repos of this process on a store share."""
        with store.counters_lock:
            if store.commits is None:
                store.commits = cls(store)
            return store.commits

    def submit(self, prepared: Sequence[Prepared], clock: Clock, wake_dir: Path) -> list[CommitOutcome]:
        """Commit in order with one durable write. Raises StoreUnavailable, and then none is visible."""
        request = _Request(prepared, clock, wake_dir)
        with self._lock:
            self._waiting.append(request)
            if not self._led:
                self._led = request.leads = True
        if not request.leads:
            request.done.wait()
        if request.leads:
            self._lead(request)
        if request.error is not None:
            raise request.error
        return request.outcomes

    def _lead(self, own: _Request) -> None:
        with self._lock:
            group = self._waiting[:1]
            size = len(group[0].prepared)
            while len(group) < len(self._waiting) and size + len(self._waiting[len(group)].prepared) <= _GROUP:
                size += len(self._waiting[len(group)].prepared)
                group.append(self._waiting[len(group)])
            del self._waiting[: len(group)]
        try:
            outcomes = apply(self._store, own.clock, [p for request in group for p in request.prepared])
            at = 0
            for request in group:
                request.outcomes = outcomes[at : at + len(request.prepared)]
                at += len(request.prepared)
            for directory in {r.wake_dir for r in group if any(isinstance(o, int) for o in r.outcomes)}:
                self._wake(directory)
        except BaseException as error:
            for request in group:
                request.error = error
            raise
        finally:
            with self._lock:
                following = self._waiting[0] if self._waiting else None
                if following is None:
                    self._led = False
                else:
                    following.leads = True
            for request in (*group, *((following,) if following else ())):
                request.done.set()

    def _wake(self, directory: Path) -> None:
        try:
            wake(directory, (CHANGES_NAME,))
        except OSError as error:  # durable already, and those who wait look by themselves
            self._store.count(wake_failures=1)
            _log.warning("wake_failed", directory=str(directory), error=str(error))
