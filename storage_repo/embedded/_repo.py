"""The Repo over one LMDB file."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import lmdb
import msgspec

from messaging._wake import Waiter, wait_until
from storage_repo._exceptions import SnapshotTooOld, StoreUnavailable
from storage_repo.api import (
    CellVersion,
    CommitOutcome,
    CommittedChange,
    Origin,
    RepoSchema,
    RowChange,
    RowId,
    Transaction,
)
from storage_repo.embedded._clock import Clock, SystemClock
from storage_repo.embedded._collector import Collector
from storage_repo.embedded._commit import CHANGES_NAME, GroupCommit, Prepared, decode_origin
from storage_repo.embedded._keys import KeyCodec
from storage_repo.embedded._read_ahead import ReadAhead, reading_ahead
from storage_repo.embedded._store import CHUNK, INVERTED, MAX_TS, TOMBSTONE, U64, Store, acquire, release
from storage_repo.embedded._view import EmbeddedSnapshot, EmbeddedTransaction

_decode_rows = msgspec.msgpack.Decoder(list[tuple[str, str, tuple[str, ...]]]).decode

_COUNTERS = (
    "commits",
    "conflicts",
    "snapshots_too_old",
    "groups",
    "cells_read",
    "rows_read",
    "cells_written",
    "versions_dropped",
    "wake_failures",
)


class EmbeddedRepo:
    """A versioned column store in one directory, shared by threads and processes of one machine.

    Timestamps are a counter. Committed means on disk (fsync); transactions that threads commit at the same time, and
    those given to commit_many, share one fsync. A process that is killed leaves nothing half-done behind.
    """

    def __init__(self, store: Store, schema: RepoSchema, wake_dir: Path, clock: Clock) -> None:
        """For open() only."""
        self._store, self._wake_dir, self._clock = store, wake_dir, clock
        self._limits = schema.limits
        self._codec = KeyCodec(schema, store.register_tables(schema))
        self._commits = GroupCommit.of(store)
        self._collector = Collector(store, clock, schema.limits)
        self._waiters: list[Waiter] = []  # idle ones; their pipes collect hints in the meantime
        self._closed = False

    @classmethod
    def open(cls, path: Path, schema: RepoSchema, *, wake_dir: Path, clock: Clock | None = None) -> EmbeddedRepo:
        """Open the store in directory `path`, creating it if missing; tables new in `schema` are added.

        `wake_dir` is where waiting processes leave their pipes. Raises StoreUnavailable (wrong format, no space, no
        permission). Repos of one process on one path share the file; each has to be closed.
        """
        if schema.limits.versions_kept < 1:
            raise ValueError(f"versions_kept is {schema.limits.versions_kept}; keep at least the newest version")
        store = acquire(path)
        try:
            return cls(store, schema, wake_dir, clock or SystemClock())
        except BaseException:
            release(store)
            raise

    def snapshot(self, ts: int | None = None, *, transactions: int = 0) -> EmbeddedSnapshot:
        """Open a view at `ts`, or at the newest commit. Raises SnapshotTooOld, ValueError for a `ts` yet to come.

        Here `transactions` need no preparation.
        """
        return EmbeddedSnapshot(self._store, self._codec, self._readable_ts(ts))

    def begin(self, origin: Origin, ts: int | None = None) -> EmbeddedTransaction:
        """Start a transaction on the newest snapshot, or on the snapshot `ts` that its reads were made at.

        Raises SnapshotTooOld, ValueError for a `ts` yet to come.
        """
        return EmbeddedTransaction(
            self._store,
            self._codec,
            self._readable_ts(ts),
            origin=origin,
            limits=self._limits,
            commit=self._commit_one,
        )

    def commit_many(self, transactions: Sequence[Transaction]) -> list[CommitOutcome]:
        """Commit independent transactions in order with one durable write; each is checked against those before it.

        Raises TransactionClosed (before anything is written) and StoreUnavailable (none is visible then).
        """
        mine = [self._own(transaction) for transaction in transactions]
        for transaction in mine:
            transaction.check_open()
        outcomes: list[CommitOutcome] = [transaction.ts for transaction in mine]
        places: list[int] = []
        batch: list[Prepared] = []
        for place, transaction in enumerate(mine):
            if (prepared := transaction.prepare()) is not None:
                places.append(place)
                batch.append(prepared)
        if batch:
            for place, outcome in zip(places, self._submit(batch), strict=True):
                outcomes[place] = outcome
        return outcomes

    def store_id(self) -> str:
        """Return the random id of the store, which its copies share."""
        store = self._store
        try:
            with store.env.begin() as txn:
                found = txn.get(b"id", db=store.meta)
        except lmdb.Error as error:
            raise store.unavailable("read", error) from error
        if found is None:
            raise StoreUnavailable(f"{store.path} has lost its id; move it away and rebuild (data sync)")
        return found.decode()

    def advance(self, ts: int) -> None:
        """Give no commit a timestamp <= `ts` any more; durable when this returns.

        The collector takes the timestamps that are left out for old ones, so snapshots from before may end.
        """
        store = self._store
        if not 0 <= ts < MAX_TS // 2:
            raise ValueError(f"cannot advance the store to {ts}")
        try:
            with store.env.begin(write=True) as txn:
                state = store.state(txn)
                if ts > state.last_ts:
                    state.last_ts = ts
                    txn.put(b"state", state.pack(), db=store.meta)
        except lmdb.Error as error:
            raise store.unavailable("write to", error) from error

    def last_commit_ts(self) -> int:
        """Return the timestamp of the newest commit; 0 in an empty store."""
        try:
            with self._store.env.begin() as txn:
                return self._store.state(txn).last_ts
        except lmdb.Error as error:
            raise self._store.unavailable("read", error) from error

    def history(self, table: str, row: str, column: str | None = None) -> dict[str, list[CellVersion]]:
        """Return all readable versions per column, newest first, with who wrote them."""
        prefix = self._codec.row(table, row)
        first = prefix if column is None else self._codec.cell(table, row, column)
        raw: dict[str, list[tuple[bytes, int, bytes]]] = {}
        writers: dict[bytes, tuple[int, Origin | None]] = {}
        store, skip = self._store, len(prefix)
        try:
            with store.env.begin() as txn:
                cursor = txn.cursor(store.current)
                if cursor.set_range(first):
                    for key, value in cursor.iternext():
                        if not (key.startswith(prefix) if column is None else key == first):
                            break
                        name = self._codec.names[key[skip:]]
                        raw[name] = [(value[:8], value[8], value[9:])]
                cursor = txn.cursor(store.history)
                within = prefix if column is None else first + b"\0"
                if cursor.set_range(within):
                    for key, value in cursor.iternext():
                        if not key.startswith(within):
                            break
                        name = self._codec.names[key[skip:-9]]
                        raw[name].append((key[-8:].translate(INVERTED), value[0], value[1:]))
                for ts in {version[0] for versions in raw.values() for version in versions}:
                    record = txn.get(ts, db=store.txns)
                    writers[ts] = (0, None) if record is None else decode_origin(record)
        except lmdb.Error as error:
            raise store.unavailable("read", error) from error
        return {
            name: [
                CellVersion(int.from_bytes(ts, "big"), None if mark >= TOMBSTONE else value, *writers[ts])
                for ts, mark, value in versions
            ]
            for name, versions in raw.items()
        }

    def changed_since(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]], since_us: int) -> set[RowId]:
        """Return the rows of which a version of one of the columns was committed at a time or later, in one read."""
        found = set[RowId]()
        known: dict[bytes, bool] = {}  # timestamp -> whether it is late enough: transactions write many rows
        store = self._store
        cells = [((table, row), self._codec.cell(table, row, name)) for table, row in rows for name in columns[table]]
        try:
            with store.env.begin() as txn:
                for row_id, key in cells:
                    if row_id in found or (value := txn.get(key, db=store.current)) is None:
                        continue
                    if (late := known.get(ts := value[:8])) is None:
                        record = txn.get(ts, db=store.txns)
                        late = known[ts] = record is not None and decode_origin(record)[0] >= since_us
                    if late:
                        found.add(row_id)
        except lmdb.Error as error:
            raise store.unavailable("read", error) from error
        return found

    def changes(self, after_ts: int, limit: int) -> list[CommittedChange]:
        """Return committed changes with commit_ts > after_ts in commit order; those already trimmed are left out."""
        found: list[CommittedChange] = []
        if limit <= 0 or after_ts >= MAX_TS:
            return found
        store = self._store
        try:
            with store.env.begin() as txn:
                cursor = txn.cursor(store.changes)
                if not cursor.set_range(U64.pack(max(after_ts, -1) + 1)):
                    return found
                for key, rows in cursor.iternext():
                    record = txn.get(key, db=store.txns)
                    if record is None:
                        raise StoreUnavailable(f"{store.path} has lost the record of a change; rebuild (data sync)")
                    changed = tuple(RowChange(*row) for row in _decode_rows(rows))
                    found.append(CommittedChange(int.from_bytes(key, "big"), *decode_origin(record), changed))
                    if len(found) >= limit:
                        break
        except lmdb.Error as error:
            raise store.unavailable("read", error) from error
        return found

    def wait_for_changes(self, after_ts: int, timeout_s: float) -> bool:
        """Block without polling until last_commit_ts() > after_ts or the time is over; True if there is something."""
        if self.last_commit_ts() > after_ts:
            return True
        if timeout_s <= 0:
            return False
        deadline = time.monotonic() + timeout_s
        try:
            waiter = self._waiters.pop() if self._waiters else Waiter(self._wake_dir, (CHANGES_NAME,))
        except OSError as error:
            raise StoreUnavailable(f"cannot wait in {self._wake_dir}: {error}; check its permissions") from error
        try:
            while self.last_commit_ts() <= after_ts:
                if not wait_until(waiter, deadline):
                    return self.last_commit_ts() > after_ts
            return True
        finally:
            self._waiters.append(waiter)

    def trim_changes(self, upto_ts: int) -> int:
        """Forget change records <= upto_ts, which their consumer has taken; return how many."""
        store, trimmed = self._store, 0
        end = U64.pack(min(max(upto_ts, -1) + 1, MAX_TS))
        try:
            while True:
                with store.env.begin(write=True) as txn:
                    cursor = txn.cursor(store.changes)
                    count = 0
                    while count < CHUNK and cursor.first() and (ts := cursor.key()) < end:
                        cursor.delete()
                        count += 1
                        record = txn.get(ts, db=store.txns)
                        if record is not None and not any(record[:4]):  # no version refers to it any more
                            txn.delete(ts, db=store.txns)
                trimmed += count
                if count < CHUNK:
                    return trimmed
        except lmdb.Error as error:
            raise store.unavailable("write to", error) from error

    def pin(self, name: str, ts: int, ttl_s: float) -> None:
        """Keep snapshot `ts` readable for `ttl_s` seconds, durably; the same name again renews or moves the pin.

        Raises SnapshotTooOld when it is too late, ValueError for a `ts` yet to come or a `ttl_s` that is not positive.
        """
        if not (ttl_s > 0 and math.isfinite(ttl_s)):
            raise ValueError(f"pin {name!r}: ttl_s is {ttl_s}; give a positive number of seconds")
        try:
            self._collector.pin(name, ts, ttl_s)
        except lmdb.Error as error:
            raise self._store.unavailable("write to", error) from error

    def unpin(self, name: str) -> None:
        """Release a pin; unknown names are fine."""
        try:
            self._collector.unpin(name)
        except lmdb.Error as error:
            raise self._store.unavailable("write to", error) from error

    def collect_garbage(self, max_cells: int | None = None) -> int:
        """Advance the low watermark and drop versions that neither history nor a live snapshot needs; return count.

        `max_cells` bounds the history entries looked at; the next call goes on from there. Write transactions are
        short. Also frees the LMDB reader slots of dead processes. Call it every few seconds from one process.
        """
        try:
            return self._collector.collect(max_cells)
        except lmdb.Error as error:
            raise self._store.unavailable("write to", error) from error

    def bulk_read(self) -> AbstractContextManager[ReadAhead]:
        """Read the store's file in order beside the block, by a thread, if it fits into the free memory."""
        return reading_ahead(self._store.path / "data.mdb")

    def statistics(self) -> Mapping[str, int]:
        """Return counters of this process since open, and sizes.

        Counters: commits, conflicts, snapshots_too_old, groups (durable writes), cells_read, rows_read, cells_written,
        versions_dropped, wake_failures. Sizes: last_commit_ts, low_watermark, cells (tombstones included),
        history_versions, change_records, transaction_records, pins, file_bytes.
        """
        store = self._store
        try:
            with store.env.begin() as txn:
                state = store.state(txn)
                sizes = {
                    "cells": txn.stat(store.current)["entries"],
                    "history_versions": txn.stat(store.history)["entries"],
                    "change_records": txn.stat(store.changes)["entries"],
                    "transaction_records": txn.stat(store.txns)["entries"],
                    "pins": txn.stat(store.pins)["entries"],
                }
        except lmdb.Error as error:
            raise store.unavailable("read", error) from error
        with store.counters_lock:
            counters = {name: store.counters[name] for name in _COUNTERS}
        return {
            **counters,
            **sizes,
            "last_commit_ts": state.last_ts,
            "low_watermark": state.low_watermark,
            "file_bytes": (store.path / "data.mdb").stat().st_size,
        }

    def close(self) -> None:
        """Release files; safe to call twice. Everything that was acknowledged is on disk already."""
        if not self._closed:
            self._closed = True
            while self._waiters:
                self._waiters.pop().close()
            release(self._store)

    def _readable_ts(self, ts: int | None) -> int:
        try:
            with self._store.env.begin() as txn:
                state = self._store.state(txn)
        except lmdb.Error as error:
            raise self._store.unavailable("read", error) from error
        if ts is None:
            return state.last_ts
        if not 0 <= ts <= state.last_ts:
            raise ValueError(f"no snapshot at {ts}: the newest commit is {state.last_ts}")
        if ts < state.low_watermark:
            self._store.count(snapshots_too_old=1)
            raise SnapshotTooOld(ts, state.low_watermark)
        return ts

    def _commit_one(self, transaction: EmbeddedTransaction) -> int:
        prepared = transaction.prepare()
        if prepared is None:
            return transaction.ts
        outcome = self._submit((prepared,))[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _submit(self, batch: Sequence[Prepared]) -> list[CommitOutcome]:
        return self._commits.submit(batch, self._clock, self._wake_dir)

    def _own(self, transaction: Transaction) -> EmbeddedTransaction:
        if not isinstance(transaction, EmbeddedTransaction) or not transaction.belongs_to(self._store):
            raise TypeError("commit_many takes transactions that were begun on this repo")
        return transaction
