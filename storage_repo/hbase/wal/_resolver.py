"""Looks after transactions whose end nobody has seen: finds out, heals, or gives up with a reason.

Every instance reads its share of the partitions of `walproxy.pending`. What nobody has taken back after a grace period
is looked up in HBase: its writer may be slow, may have aborted, or may have died between commit and shadow cells.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec
import structlog

from messaging.api import Consumer, Log, OutRecord, Position, Record
from messaging.headers import now_us
from messaging.topics import PENDING, PENDING_GROUP
from storage_repo.hbase.wal._cells import RowEdits, RowKey, TableColumns
from storage_repo.hbase.wal._pending import Pending, decode_pending
from storage_repo.hbase.wal._rows import Rows, StoredRow
from storage_repo.hbase.wal._tracker import Taken, Tracker
from storage_repo.omid.layout import CommitEntry

_POLL = 2_000
_LOOK_UP = 1_000
"""Rows looked up at once: two or three round trips of at most 0.1 s each."""
_SLOWEST_LOOK_S = 60.0
"""Between two looks at a transaction that goes on and on; also how long a stored position may lag behind."""
_HBASES_CLOCK = range(10**12, 10**17)
"""Versions that are milliseconds since the epoch: of writers without transactions, which leave the version to HBase.
Omid's are nanoseconds, far above, or count transactions, far below."""
_TRIM_S, _TRIM_IDLE_S = 10.0, 0.5
"""Between two stored positions; sooner when nothing waits, so that their lag tells that nothing does."""


@dataclass(slots=True)
class _Waiting:
    pending: Pending
    offset: int
    due: float


@dataclass(slots=True)
class _Partition:
    """A partition that this instance reads."""

    position: int
    """Next offset to read."""
    stored: int = -1
    waiting: dict[RowKey, _Waiting] = field(default_factory=dict)

    def settled(self) -> int:
        """Return the offset below which nothing waits."""
        return min((waiting.offset for waiting in self.waiting.values()), default=self.position)


class Resolver:
    """Used by one thread: call `step` again and again."""

    def __init__(
        self,
        log: Log,
        rows: Rows,
        tracker: Tracker,
        tables: Mapping[bytes, TableColumns],
        *,
        grace_s: float,
        max_age_s: float,
    ) -> None:
        self._log, self._rows, self._tracker, self._tables = log, rows, tracker, tables
        self._grace_s, self._max_age_s = grace_s, max_age_s
        self._consumer: Consumer = log.consumer(PENDING_GROUP, [PENDING])
        self._partitions: dict[int, _Partition] = {}
        self._trimmed = time.monotonic()
        self._holds_first = False
        self.healed = 0
        """Rows of transactions that got their missing shadow cells."""
        self.notifications = 0
        self.ignored: Counter[str] = Counter()

    @property
    def waiting(self) -> int:
        """How many rows of transactions wait for their end, in this instance's share."""
        return sum(len(partition.waiting) for partition in self._partitions.values())

    def holds_first(self) -> bool:
        """Tell whether this instance reads the first partition: one of all does. Safe for threads."""
        return self._holds_first

    def step(self, timeout_s: float) -> None:
        """Read what has come, look up what is due. Raises LogError and RepoError: then nothing is forgotten."""
        records = self._consumer.poll(_POLL, timeout_s)
        held = {partition for topic, partition in self._consumer.assigned() if topic == PENDING}
        self._holds_first = 0 in held
        for partition in self._partitions.keys() - held:
            del self._partitions[partition]  # whoever has it now reads it from the stored position
        for record in records:
            self._read(record)
        self._look_up()
        self._store_positions()

    def close(self) -> None:
        """Store how far it has come and give the partitions to others. Raises LogError."""
        try:
            self._store_positions(force=True)
        finally:
            self._consumer.close()

    def _read(self, record: Record) -> None:
        partition = self._partitions.get(record.partition)
        if partition is None or record.offset < partition.position:  # taken (again): read from the stored position
            partition = self._partitions[record.partition] = _Partition(record.offset, record.offset)
        partition.position = record.offset + 1
        try:
            pending = decode_pending(record.value)
        except msgspec.DecodeError as error:
            self.ignored["bad_pending"] += 1
            structlog.get_logger().error("bad_pending", offset=record.offset, error=str(error))
            return
        if pending.settled:
            partition.waiting.pop(pending.key, None)
        elif pending.table not in self._tables:
            self.ignored["table"] += 1
        elif pending.key not in partition.waiting:
            delay = min(self._grace_s * 4 ** min(pending.looks, 8), max(_SLOWEST_LOOK_S, self._grace_s))
            partition.waiting[pending.key] = _Waiting(pending, record.offset, time.monotonic() + delay)

    def _look_up(self) -> None:
        now = time.monotonic()
        due = [
            (partition, waiting)
            for partition in self._partitions.values()
            for waiting in partition.waiting.values()
            if waiting.due <= now
        ][:_LOOK_UP]
        if not due:
            return
        found = self._rows.read([waiting.pending.key for _, waiting in due])
        open_starts = {key[2] for key, row in found.items() if row.commit_ts is None and row.cells}
        commits = self._rows.commits(open_starts) if open_starts else {}
        taken, heal = Taken(), dict[RowKey, tuple[StoredRow, int]]()
        again: list[Pending] = []
        for _, waiting in due:
            self._judge(waiting.pending, found[waiting.pending.key], commits, taken, heal, again)
        again = self._drop_expired(again, taken)
        self._rows.heal(heal)
        self._tracker.notify(taken, now_us())
        taken.records += self._ask_again(again)
        self._log.publish(taken.records)
        self._tracker.remember(taken.notified)
        self.healed += len(heal)
        self.notifications += taken.notifications
        self.ignored.update(taken.ignored)
        for partition, waiting in due:
            del partition.waiting[waiting.pending.key]
        structlog.get_logger().info(
            "looked_up", rows=len(due), healed=len(heal), notifications=taken.notifications, again=len(again),
            ignored=dict(taken.ignored),
        )  # fmt: skip

    def _judge(
        self,
        pending: Pending,
        stored: StoredRow,
        commits: Mapping[int, CommitEntry],
        taken: Taken,
        heal: dict[RowKey, tuple[StoredRow, int]],
        again: list[Pending],
    ) -> None:
        key = pending.key
        if stored.commit_ts is not None:
            if not stored.cells <= stored.shadows.keys():
                heal[key] = stored, stored.commit_ts
            edits = stored.edits(self._tables[key[0]])
            if edits.columns <= edits.shadows:
                self._already_committed(key, edits, taken)
        elif not stored.cells:
            taken.ignored["gone"] += 1  # rolled back, or collected because a newer version is committed
        elif (entry := commits.get(pending.start)) is None:
            again.append(pending)
        elif entry.commit_ts is None:
            taken.ignored["invalidated"] += 1
        else:
            heal[key] = stored, entry.commit_ts

    def _already_committed(self, key: RowKey, edits: RowEdits, taken: Taken) -> None:
        """The shadow cells are there: their edit went to another instance, or is late, or was never logged.

        The last happens when a compaction makes them; so, unless this process knows better, notify (again).
        """
        changed = self._tables[key[0]].changed(edits.columns, edits.shadows)
        notified = self._tracker.notified(key)
        if fresh := changed - notified:
            self._tracker.change_of(taken, key, edits, fresh)
            taken.notified[key] = changed | notified
        elif changed:
            taken.ignored["repeated"] += 1

    def _drop_expired(self, again: Iterable[Pending], taken: Taken) -> list[Pending]:
        """Return those that are still to be asked for: all that may commit yet, however old they are.

        Of those that Omid lets commit no more a last look at their rows decides: a writer that finished between our
        looks at row and commit table has removed its entry.
        """
        oldest_us = now_us() - int(self._max_age_s * 1e6)
        left = [pending for pending in again if pending.first_us >= oldest_us]
        expired = [pending for pending in again if pending.first_us < oldest_us]
        if expired:
            forbidden = self._rows.forbid(pending.start for pending in expired)
            found = self._rows.read([pending.key for pending in expired])
            for pending in expired:
                never = pending.start in forbidden or pending.start in _HBASES_CLOCK
                if never and found[pending.key].commit_ts is None:
                    taken.ignored["never_committed"] += 1
                else:
                    left.append(pending)
        return left

    def _ask_again(self, again: Iterable[Pending]) -> list[OutRecord]:
        """Return new records at the topic's end, so that old ones do not hold up the stored position."""
        return [self._tracker.pending(p.key, first_us=p.first_us, looks=p.looks + 1) for p in again]

    def _store_positions(self, *, force: bool = False) -> None:
        """Store how far all is settled, and forget what is before it."""
        moved = {
            number: settled
            for number, partition in self._partitions.items()
            if (settled := partition.settled()) > partition.stored
        }
        now = time.monotonic()
        patience = _TRIM_S if self.waiting else _TRIM_IDLE_S
        if not moved or (now - self._trimmed < patience and not force):
            return
        self._trimmed = now
        self._log.publish([], [Position(PENDING_GROUP, PENDING, number, at) for number, at in moved.items()])
        for number, at in moved.items():
            self._log.trim(PENDING, number, at)
            self._partitions[number].stored = at
