"""Low watermark, pins and the sweep: what may be forgotten, and when.

A version may go only if it is beyond the `versions_kept` newest of its cell AND was superseded at or before the low
watermark. The watermark follows the newest commit that is older than `max_transaction_age_s`, never passes a live pin,
and never goes back; reads and commits below it raise SnapshotTooOld in the same LMDB transaction in which they look.
"""

from __future__ import annotations

import threading
from collections import Counter

import lmdb

from storage_repo._exceptions import LimitExceeded, SnapshotTooOld
from storage_repo.api import Limits
from storage_repo.embedded._clock import Clock
from storage_repo.embedded._store import CHUNK, INVERTED, PIN, TOMBSTONE, TXN, U64, State, Store

_SCANNED_PER_READ = 20_000
"""History entries looked at in one LMDB read transaction (about 20 ms): a longer one would pin pages."""

_MAX_PIN_NAME_BYTES = 200


class Collector:
    """Housekeeping of one store for one repo."""

    def __init__(self, store: Store, clock: Clock, limits: Limits) -> None:
        self._store, self._clock = store, clock
        self._kept = limits.versions_kept
        self._max_age_us = round(limits.max_transaction_age_s * 1_000_000)
        self._lock = threading.Lock()
        self._position = b""  # where the sweep of the history goes on
        self._swept_upto = -1  # low watermark of the last complete sweep

    def pin(self, name: str, ts: int, ttl_s: float) -> None:
        """Store a pin durably, or renew it."""
        key = _pin_key(name)
        with self._store.env.begin(write=True) as txn:
            state = self._store.state(txn)
            if ts < state.low_watermark:
                raise SnapshotTooOld(ts, state.low_watermark)
            if ts > state.last_ts:
                raise ValueError(f"cannot pin {ts}: the newest commit is {state.last_ts}")
            ttl_us = round(ttl_s * 1_000_000)
            epoch = self._store.epoch(txn, state, self._clock)
            txn.put(key, PIN.pack(ts, epoch, self._clock.steady_us() + ttl_us, ttl_us), db=self._store.pins)

    def unpin(self, name: str) -> None:
        """Remove a pin."""
        with self._store.env.begin(write=True) as txn:
            txn.delete(_pin_key(name), db=self._store.pins)

    def collect(self, max_cells: int | None) -> int:
        """Advance the watermark and sweep; return how many versions went. `max_cells` bounds the entries looked at."""
        with self._lock:
            return self._collect(max_cells)

    def _collect(self, max_cells: int | None) -> int:
        self._store.env.reader_check()
        low = self._advance()
        dropped, left = 0, max_cells
        while self._swept_upto < low and (left is None or left > 0):
            budget = _SCANNED_PER_READ if left is None else min(left, _SCANNED_PER_READ)
            keys, scanned, finished = self._find(low, budget)
            for start in range(0, len(keys), CHUNK):
                dropped += self._drop(keys[start : start + CHUNK])
            if left is not None:
                left -= scanned
            if finished:
                dropped += self._drop_tombstones(low)
                self._swept_upto = low
        self._store.count(versions_dropped=dropped)
        return dropped

    def _advance(self) -> int:
        """Move the low watermark as far as ages and pins allow; drop pins that have run out."""
        store = self._store
        with store.env.begin(write=True) as txn:
            state = store.state(txn)
            now, epoch = self._clock.steady_us(), store.epoch(txn, state, self._clock)
            low = self._horizon(txn, state, now, epoch)
            ended = []
            for name, packed in txn.cursor(store.pins):
                ts, of_epoch, until, ttl = PIN.unpack(packed)
                if now < (until if of_epoch == epoch else ttl):  # of an earlier boot: it ended at least uptime ago
                    low = min(low, ts)
                else:
                    ended.append(name)
            for name in ended:
                txn.delete(name, db=store.pins)
            if low > state.low_watermark:
                state.low_watermark = low
                txn.put(b"state", state.pack(), db=store.meta)
            return state.low_watermark

    def _horizon(self, txn: lmdb.Transaction[bytes], state: State, now: int, epoch: int) -> int:
        """Return the newest commit that is older than the oldest allowed transaction, by bisection."""
        low, high = state.low_watermark, state.last_ts
        while low < high:
            middle = (low + high + 1) // 2
            record = txn.get(U64.pack(middle), db=self._store.txns)  # above the watermark every record exists
            if record is not None:
                _, _, of_epoch, stamp = TXN.unpack_from(record)
                age = now - (stamp if of_epoch == epoch else 0)
                if age <= self._max_age_us:
                    high = middle - 1
                    continue
            low = middle
        return low

    def _find(self, low_watermark: int, budget: int) -> tuple[list[bytes], int, bool]:
        """Return keys of dead history entries, how many were looked at, and whether the end was reached.

        What is dead stays dead, so it may be dropped later in a write transaction of its own.
        """
        dead: list[bytes] = []
        kept, scanned = self._kept, 0
        low = U64.pack(low_watermark)
        with self._store.env.begin() as txn:
            cursor = txn.cursor(self._store.history)
            if not cursor.set_range(self._position):
                self._position = b""
                return dead, scanned, True
            cell, rank, superseded = b"", 0, b""
            for key in cursor.iternext(keys=True, values=False):
                if key[:-8] != cell:
                    if scanned >= budget:
                        self._position = key
                        return dead, scanned, False
                    cell, rank = key[:-8], 0
                    newest = txn.get(key[:-9], db=self._store.current)
                    superseded = newest[:8] if newest is not None else low
                rank += 1  # the entry in `current` has rank 0
                scanned += 1
                if rank >= kept and superseded <= low:
                    dead.append(key)
                superseded = key[-8:].translate(INVERTED)
        self._position = b""
        return dead, scanned, True

    def _drop(self, keys: list[bytes]) -> int:
        store = self._store
        gone: Counter[bytes] = Counter()
        with store.env.begin(write=True) as txn:
            for key in keys:
                if txn.delete(key, db=store.history):  # unless a commit or another process was faster
                    gone[key[-8:].translate(INVERTED)] += 1
            store.release_versions(txn, gone)
        return gone.total()

    def _drop_tombstones(self, low_watermark: int) -> int:
        """Remove cells whose newest version is a tombstone at or before the watermark and that have no history."""
        store, dropped, start = self._store, 0, b""
        end = U64.pack(low_watermark + 1)
        while True:
            with store.env.begin(write=True) as txn:
                cursor = txn.cursor(store.tombstones)
                gone: Counter[bytes] = Counter()
                candidates: list[bytes] = []
                if cursor.set_range(start):
                    for key in cursor.iternext(keys=True, values=False):
                        if key >= end or len(candidates) >= CHUNK:
                            break
                        candidates.append(key)
                history = txn.cursor(store.history)
                for candidate in candidates:
                    ts, cell = candidate[:8], candidate[8:]
                    newest = txn.get(cell, db=store.current)
                    if newest is not None and newest[:8] == ts and newest[8] >= TOMBSTONE:
                        if history.set_range(cell + b"\0") and history.key().startswith(cell + b"\0"):
                            if self._kept == 1:
                                continue  # its history goes at a later sweep, and it with it
                        else:
                            txn.delete(cell, db=store.current)
                            gone[ts] += 1
                    txn.delete(candidate, db=store.tombstones)
                store.release_versions(txn, gone)
            dropped += gone.total()
            if len(candidates) < CHUNK:
                return dropped
            start = candidates[-1] + b"\0"


def _pin_key(name: str) -> bytes:
    key = name.encode()
    if not 0 < len(key) <= _MAX_PIN_NAME_BYTES:
        raise LimitExceeded(f"pin name {name[:80]!r} has {len(key)} bytes; use 1 to {_MAX_PIN_NAME_BYTES}")
    return key
