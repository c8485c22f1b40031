"""The pure core: batches of edits in, notifications and pending records out.

A shadow cell in the log means committed, and its value is the commit timestamp: it gives the notification. What was
seen of a transaction before its shadow cells came (columns, origin) is remembered. Memory is only a help: what is not
in it, because it came before this process or to another one, is read from HBase by whoever calls.

Memory has all of a transaction's row only if the origin cell was seen: our writers put a row with its origin in one
step, which is one entry of the log. A Java client puts cell by cell, and each may go to another process. So without an
origin nothing is closed from memory: a commit has its row read, and a roll-back is left to the resolver.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import msgspec

from messaging.api import OutRecord
from storage_repo._origin import decode_origin
from storage_repo.api import CommittedChange, Origin, RowChange
from storage_repo.hbase.names import HbaseNames
from storage_repo.hbase.wal._cells import Batch, RowEdits, RowKey, TableColumns
from storage_repo.hbase.wal._pending import Pending, pending_record
from storage_repo.wal_proxy import ChangeNotifier, notification_record

V = TypeVar("V")

_REMEMBERED = 50_000
"""Rows of transactions in one of two generations, about 20 MiB: minutes of traffic. A backlog needs one batch."""
_WORLD_TIME_SINCE = 10**17
"""Commit timestamps above this are nanoseconds since the epoch (Omid's WORLD_TIME), below it plain numbers."""


class Recent(Generic[V]):
    """A dict that forgets the entries that were set longest ago. Readers in other threads see one state or the next."""

    def __init__(self, size: int = _REMEMBERED) -> None:
        self._size = size
        self._new: dict[RowKey, V] = {}
        self._old: dict[RowKey, V] = {}

    def get(self, key: RowKey) -> V | None:
        """Return what is remembered."""
        found = self._new.get(key)
        return self._old.get(key) if found is None else found

    def put(self, key: RowKey, value: V) -> None:
        """Remember."""
        if len(self._new) >= self._size:
            self._old, self._new = self._new, {}
        self._new[key] = value

    def forget(self, key: RowKey) -> None:
        """Forget, if it is there."""
        self._new.pop(key, None)
        self._old.pop(key, None)

    def __len__(self) -> int:
        return len(self._new) + len(self._old)


@dataclass(frozen=True, slots=True)
class Open:
    """What is known of a transaction in a row whose end has not been seen; a record of it lies in the log."""

    columns: frozenset[str]
    shadows: frozenset[str]
    origin: bytes | None
    complete: bool
    """Whether `columns` are all that the transaction did in the row: its origin was seen, or the row was read."""


@dataclass(slots=True)
class Taken:
    """What a batch leads to: records to publish, and then, by `Tracker.done`, what to remember."""

    records: list[OutRecord] = field(default_factory=list)
    changes: list[CommittedChange] = field(default_factory=list)
    opened: dict[RowKey, Open] = field(default_factory=dict)
    closed: list[RowKey] = field(default_factory=list)
    notified: dict[RowKey, frozenset[str]] = field(default_factory=dict)
    notifications: int = 0
    ignored: Counter[str] = field(default_factory=Counter)


class Tracker:
    """What is known of transactions. One thread gives it batches; `notified` may be asked by any."""

    def __init__(self, names: HbaseNames, tables: Mapping[bytes, TableColumns], notifier: ChangeNotifier) -> None:
        self._names, self._tables, self._notifier = names, tables, notifier
        self._open: Recent[Open] = Recent()
        self._notified: Recent[frozenset[str]] = Recent()
        self._lock = threading.Lock()

    def notified(self, key: RowKey) -> frozenset[str]:
        """Return the columns of the transaction's change of the row that this process has notified."""
        return self._notified.get(key) or frozenset()

    def unknown(self, batch: Batch) -> list[RowKey]:
        """Return what must be read from HBase for `take`: commits of whose data cells others may have had some."""
        return [key for key, edits in batch.rows.items() if edits.commit_ts is not None and self._partial(key, edits)]

    def take(self, batch: Batch, read: Mapping[RowKey, RowEdits], entered_us: int) -> Taken:
        """Return what a batch leads to; `read` has the rows of `unknown`. Changes nothing: a batch may come again."""
        taken = Taken(ignored=Counter(batch.ignored))
        for key, edits in batch.rows.items():
            if edits.commit_ts is None:
                self._uncommitted(taken, key, edits, entered_us)
            else:
                self._committed(taken, key, edits, read.get(key), entered_us)
        self.notify(taken, entered_us)
        return taken

    def notify(self, taken: Taken, entered_us: int) -> None:
        """Turn the changes of `taken` into records, first of all."""
        found = self._notifier.notifications(taken.changes, entered_us)
        taken.notifications = len(found)
        taken.records[:0] = map(notification_record, found)

    def done(self, taken: Taken) -> None:
        """Remember what a batch led to, once its records are in the log."""
        for key, opened in taken.opened.items():
            self._open.put(key, opened)
        for key in taken.closed:
            self._open.forget(key)
        self.remember(taken.notified)

    def remember(self, notified: Mapping[RowKey, frozenset[str]]) -> None:
        """Remember notifications that are in the log. Safe for threads."""
        with self._lock:
            for key, columns in notified.items():
                self._notified.put(key, columns)

    def change_of(self, taken: Taken, key: RowKey, edits: RowEdits, columns: Iterable[str]) -> None:
        """Add the change of a committed transaction in a row to `taken`."""
        assert edits.commit_ts is not None
        table = self._names.table_of(key[0])
        assert table is not None
        origin = Origin("")
        if edits.origin is None:
            taken.ignored["no_origin"] += 1
        else:
            try:
                origin = decode_origin(edits.origin)
            except (msgspec.DecodeError, TypeError):
                taken.ignored["bad_origin"] += 1
        at_us = edits.commit_ts // 1000 if edits.commit_ts > _WORLD_TIME_SINCE else edits.write_ms * 1000
        row = RowChange(table, self._names.row_of(table, key[1]), tuple(sorted(columns)))
        taken.changes.append(CommittedChange(edits.commit_ts, at_us, origin, (row,)))

    def pending(self, key: RowKey, *, settled: bool = False, first_us: int = 0, looks: int = 0) -> OutRecord:
        """Return the record that tells of a row of a transaction without an end, or takes it back."""
        table = self._names.table_of(key[0])
        assert table is not None
        place = f"{table}/{self._names.row_of(table, key[1])}"
        return pending_record(Pending(*key, settled, first_us, looks), place)

    def _partial(self, key: RowKey, edits: RowEdits) -> bool:
        """Tell whether the row may have more than what is known of it."""
        if edits.origin is not None:
            return False
        known = self._open.get(key)
        if known is not None:
            return not known.complete
        notified = self._notified.get(key)
        return notified is None or not edits.columns <= notified

    def _uncommitted(self, taken: Taken, key: RowKey, edits: RowEdits, entered_us: int) -> None:
        known, notified = self._open.get(key), self._notified.get(key)
        if notified is not None and edits.columns <= notified:
            taken.ignored["repeated"] += 1
            return
        columns = frozenset(edits.columns | known.columns if known else edits.columns) - edits.deleted
        if not columns:
            if edits.columns or known is not None:
                taken.ignored["rolled_back"] += 1
            elif edits.deleted:
                taken.ignored["collected"] += 1  # an old version; or rolled back, and the data came to somebody else
            if known is not None:
                taken.closed.append(key)
                if known.complete or edits.origin is not None:
                    taken.records.append(self.pending(key, settled=True))
            return
        if known is not None and columns == known.columns:
            taken.ignored["repeated"] += 1
            return
        shadows, origin = (known.shadows, known.origin) if known else (frozenset(), None)
        complete = edits.origin is not None or (known is not None and known.complete and edits.columns <= known.columns)
        taken.opened[key] = Open(columns, shadows, edits.origin or origin, complete)
        if known is None:
            taken.records.append(self.pending(key, first_us=entered_us))

    def _committed(
        self, taken: Taken, key: RowKey, edits: RowEdits, read: RowEdits | None, entered_us: int
    ) -> None:  # fmt: skip
        known, notified = self._open.get(key), self._notified.get(key)
        complete = read is not None or not self._partial(key, edits)
        columns, shadows = edits.columns, edits.shadows
        for earlier in (known, read):
            if earlier is not None:
                columns, shadows = columns | earlier.columns, shadows | earlier.shadows
                edits.origin = edits.origin or earlier.origin
        if not columns and not shadows:
            return
        changed = self._tables[key[0]].changed(columns, shadows)
        fresh = changed - notified if notified else changed
        if fresh:
            self.change_of(taken, key, edits, fresh)
            taken.notified[key] = changed | notified if notified else changed
        else:
            taken.ignored["repeated"] += 1
        if not complete or not columns <= shadows:  # the writer is about to finish; or died, and somebody must heal
            taken.opened[key] = Open(frozenset(columns), frozenset(shadows), edits.origin, complete)
            if known is None:
                taken.records.append(self.pending(key, first_us=entered_us))
        elif known is not None or read is not None:
            taken.closed.append(key)
            taken.records.append(self.pending(key, settled=True))
