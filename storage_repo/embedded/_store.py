"""The store's file: an LMDB environment opened once per process, its databases, and its one state record.

=========== ============================= =====================================================================
database    key                           value
=========== ============================= =====================================================================
current     cell                          commit ts u64, mark u8, value: the newest version of every cell
history     cell, 00, 2^64-1 - ts u64     mark u8, value: older versions, newest first
txns        commit ts u64                 live versions u32, committed u64, epoch u32, steady u64, origin: see below
changes     commit ts u64                 msgpack [(table, row, columns)]: what its consumer has not taken yet
tombstones  commit ts u64, cell           nothing: cells that may be removed once the tombstone is old
pins        name                          ts u64, epoch u32, steady time of its end u64, time to live u64
meta        "state", "boot", "format"     the state record, id of the machine's boot, version of this layout
            "id"                          random, given at creation
            "table:" name                 table id u8
=========== ============================= =====================================================================

All integers are big-endian. A mark has bit 7 set for a tombstone; its lower bits count overwrites since the last inline
trim. Reading the newest state costs one entry per cell; only a cell newer than the snapshot is looked up in `history`.

Ages never come from the wall clock: a commit is stamped with the machine's steady clock and an epoch that grows with
every reboot, so a wall clock that jumps neither hastens nor delays collection. A commit of an earlier epoch is at least
as old as the machine has been up. `committed`, for people, is the wall clock made monotone.
"""

from __future__ import annotations

import os
import struct
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, cast

import lmdb

from storage_repo._exceptions import StoreUnavailable
from storage_repo.api import RepoSchema
from storage_repo.embedded._clock import Clock

if TYPE_CHECKING:
    from storage_repo.embedded._commit import GroupCommit

MAP_SIZE = 1 << 40
"""Upper bound of the file, in bytes. It is sparse; a bound that is never reached spares every process the dance of
growing the map together."""

FORMAT = b"adsindex-store-1"
TOMBSTONE = 0x80
MAX_TS = (1 << 64) - 1
STATE = struct.Struct(">QQQI")
PIN = struct.Struct(">QIQQ")
TXN = struct.Struct(">IQIQ")
U64 = struct.Struct(">Q")
INVERTED = bytes(255 - i for i in range(256))
"""Translation table: ts.translate(INVERTED) is 2^64-1 - ts in big-endian bytes."""

CHUNK = 2000
"""Entries changed per write transaction of housekeeping, so that commits wait for milliseconds at most."""

_MAX_READERS = 512
_MAX_TABLES = 255
_OPEN_ATTEMPTS = 50  # another process may be creating the file: each attempt costs well under a millisecond


@dataclass(slots=True)
class State:
    """The store's state record, read and written in the same LMDB transaction as what depends on it."""

    last_ts: int
    low_watermark: int
    committed_at_us: int
    epoch: int

    def pack(self) -> bytes:
        """Return the stored form."""
        return STATE.pack(self.last_ts, self.low_watermark, self.committed_at_us, self.epoch)


class _Unusable:
    """Stands in for the environment of a repo that must not be used any more."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, _: str) -> NoReturn:
        raise StoreUnavailable(self._why)


class Store:
    """One open environment; shared by all repos of this process on the same path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users = 0
        self.counters: Counter[str] = Counter()
        self.counters_lock = threading.Lock()
        self.commits: GroupCommit | None = None
        self.env = self._open_env()
        try:
            self._open_databases()
            with self.env.begin(write=True) as txn:
                self._check_format(txn)
            self.env.reader_check()
        except lmdb.Error as error:
            self.env.close()
            raise self.unavailable("open", error) from error
        except StoreUnavailable:
            self.env.close()
            raise

    def _open_env(self) -> lmdb.Environment:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for attempt in range(_OPEN_ATTEMPTS):
                try:
                    return lmdb.open(
                        os.fspath(self.path),
                        map_size=MAP_SIZE,
                        max_dbs=16,
                        max_readers=_MAX_READERS,
                        max_spare_txns=8,
                        readahead=False,
                        meminit=False,
                        lib_version=0,  # 0.9: the file format that has been stable for ten years
                    )
                except lmdb.MapResizedError:
                    if attempt == _OPEN_ATTEMPTS - 1:
                        raise
                    time.sleep(0.001)
        except (lmdb.InvalidError, lmdb.VersionMismatchError) as error:
            raise StoreUnavailable(
                f"{self.path} is not a store of this program ({error}); move it away, or open it with what wrote it"
            ) from error
        except (lmdb.Error, OSError) as error:
            raise self.unavailable("open", error) from error
        raise AssertionError("unreachable")

    def _open_databases(self) -> None:
        self.current = self.env.open_db(b"current")
        self.history = self.env.open_db(b"history")
        self.txns = self.env.open_db(b"txns")
        self.changes = self.env.open_db(b"changes")
        self.tombstones = self.env.open_db(b"tombstones")
        self.pins = self.env.open_db(b"pins")
        self.meta = self.env.open_db(b"meta")

    def _check_format(self, txn: lmdb.Transaction[bytes]) -> None:
        found = txn.get(b"format", db=self.meta)
        if found is None:
            txn.put(b"format", FORMAT, db=self.meta)
            txn.put(b"state", State(0, 0, 0, 0).pack(), db=self.meta)
        elif found != FORMAT:
            raise StoreUnavailable(
                f"{self.path} has format {found!r}, this program writes {FORMAT!r}; open it with the version that "
                "wrote it, or move it away and rebuild from the ads DB (data sync)"
            )
        if txn.get(b"id", db=self.meta) is None:
            txn.put(b"id", uuid.uuid4().hex.encode(), db=self.meta)

    def unavailable(self, doing: str, error: Exception) -> StoreUnavailable:
        """Return the error that says what went wrong with the file, and what to do."""
        match error:
            case lmdb.MapFullError():
                advice = f"the store has reached {MAP_SIZE >> 30} GiB; collect garbage or delete documents"
            case lmdb.ReadersFullError():
                advice = f"more than {_MAX_READERS} readers; run fewer processes"
            case lmdb.CorruptedError() | lmdb.PageNotFoundError() | lmdb.PanicError():
                advice = "the file is damaged; move it away and rebuild from the ads DB (data sync)"
            case _:
                advice = "check free space, permissions and the disk"
        return StoreUnavailable(f"cannot {doing} the store at {self.path}: {error}; {advice}")

    def register_tables(self, schema: RepoSchema) -> dict[str, int]:
        """Return the ids of the schema's tables, giving numbers to new ones."""
        try:
            with self.env.begin(write=True) as txn:
                ids = self._table_ids(txn)
                for table in schema.tables:
                    if table.name not in ids:
                        if len(ids) >= _MAX_TABLES:
                            raise StoreUnavailable(f"{self.path} has {_MAX_TABLES} tables; it cannot take {table.name}")
                        ids[table.name] = max(ids.values(), default=0) + 1
                        txn.put(b"table:" + table.name.encode(), bytes([ids[table.name]]), db=self.meta)
                return ids
        except lmdb.Error as error:
            raise self.unavailable("open", error) from error

    def _table_ids(self, txn: lmdb.Transaction[bytes]) -> dict[str, int]:
        ids = {}
        cursor = txn.cursor(self.meta)
        if cursor.set_range(b"table:"):
            for key, value in cursor.iternext():
                if not key.startswith(b"table:"):
                    break
                ids[key[6:].decode()] = value[0]
        return ids

    def state(self, txn: lmdb.Transaction[bytes]) -> State:
        """Return the state as of an LMDB transaction."""
        packed = txn.get(b"state", db=self.meta)
        if packed is None:
            raise StoreUnavailable(f"{self.path} has lost its state record; move it away and rebuild (data sync)")
        return State(*STATE.unpack(packed))

    def epoch(self, txn: lmdb.Transaction[bytes], state: State, clock: Clock) -> int:
        """Return the epoch of now: the stored one, or the next when the machine has booted since."""
        return state.epoch if txn.get(b"boot", db=self.meta) == clock.boot_id() else state.epoch + 1

    def release_versions(self, txn: lmdb.Transaction[bytes], dropped: Counter[bytes]) -> None:
        """Take dropped versions (commit ts -> how many) off their transactions' records; remove unneeded records."""
        for ts, count in dropped.items():
            record = txn.get(ts, db=self.txns)
            if record is None:
                raise StoreUnavailable(f"{self.path} has lost the record of transaction {int.from_bytes(ts, 'big')}")
            live = int.from_bytes(record[:4], "big") - count
            if live <= 0 and txn.get(ts, db=self.changes) is None:
                txn.delete(ts, db=self.txns)
            else:
                txn.put(ts, live.to_bytes(4, "big") + record[4:], db=self.txns)

    def count(self, **increments: int) -> None:
        """Add to the counters of this process."""
        with self.counters_lock:
            for name, increment in increments.items():
                self.counters[name] += increment

    def retire(self, why: str) -> lmdb.Environment:
        """Make every later use raise StoreUnavailable; return the environment."""
        env, self.env = self.env, cast(lmdb.Environment, _Unusable(why))
        return env


_stores: dict[Path, Store] = {}
_stores_lock = threading.Lock()
_inherited: list[lmdb.Environment] = []  # kept for ever in a forked child: closing them there would disturb the parent


def acquire(path: Path) -> Store:
    """Open the store at `path`, or share it if this process has it open: LMDB allows one environment per process."""
    path = path.resolve()
    with _stores_lock:
        store = _stores.get(path)
        if store is None:
            store = _stores[path] = Store(path)
        store.users += 1
        return store


def release(store: Store) -> None:
    """Give back an acquired store; the last one closes it."""
    with _stores_lock:
        store.users -= 1
        if store.users == 0:
            _stores.pop(store.path, None)
            store.retire(f"the repo at {store.path} has been closed").close()


def _retire_after_fork() -> None:
    global _stores_lock
    _stores_lock = threading.Lock()
    for store in _stores.values():
        _inherited.append(
            store.retire(f"the repo at {store.path} was opened before fork(); start processes by spawn or exec")
        )
    _stores.clear()


os.register_at_fork(after_in_child=_retire_after_fork)
