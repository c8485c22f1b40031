"""A consumer-group member on Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import structlog
from kafka import errors
from kafka.protocol.consumer import OffsetSpec
from kafka.structs import TopicPartition

from messaging._exceptions import LogError
from messaging._kafka_admin import Admin
from messaging._kafka_group import Expelled, GroupMember
from messaging._kafka_wire import Wire
from messaging._lanes import parts
from messaging.api import Position, Record
from messaging.kafka_settings import KafkaSettings

_LOOK_S = 0.25
"""How often an idle member looks whether the group is sharing anew."""
_HAND_OVER_S = 1.0
"""commit() waits this long for the group to agree when it has just given the partitions up; poll() goes on with it."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    """A partition owned. `position`: next to poll; `fetch_at`: next to ask for; `buffer`: fetched and not yet polled,
    from `taken` on; records below `takeover_end` may be repeats."""

    position: int
    committed: int
    fetch_at: int
    takeover_end: int
    buffer: list[Record] = field(default_factory=list)
    taken: int = 0

    @property
    def ready(self) -> int:
        """Records fetched and not yet polled."""
        return len(self.buffer) - self.taken


class KafkaConsumer:
    """One member of a consumer group; use it from one thread. `KafkaLog.consumer` makes it.

    It is a member of a Kafka group by the classic protocol with eager rebalances and round-robin shares, so that every
    lane is shared evenly. A member with a name is a static one (KIP-345): killed and started again, it has its
    partitions back at once. Heartbeats and joins are a
    thread's of its own; partitions change hands in poll and commit only.
    While the group wants to share anew, nothing more is polled until all that was polled is committed; then the
    partitions are given up, so no record is with two members at once. A member that dies is missed after
    session_timeout_ms; a partition's uncommitted records go to the next owner (at least once). A member that was
    expelled (it hung, or was cut off for longer than that) learns of it at its next call: what it had not committed
    goes to others, its late commits change nothing and are logged.
    While brokers are away, poll returns [] and recovers by itself.
    """

    def __init__(
        self,
        settings: KafkaSettings,
        admin: Admin,
        group: str,
        topics: Sequence[str],
        member: str,
        prefix: str,
        closed: Callable[[KafkaConsumer], None],
    ) -> None:
        self.group = group
        self._settings, self._admin, self._topics, self._prefix = settings, admin, list(topics), prefix
        self._member, self._closed = member, closed
        self._open = True
        self._lock = threading.RLock()  # Log.publish stores positions through us, perhaps from another thread
        self._held: dict[tuple[str, int], _Held] = {}
        self._generation = -1
        self._turn = 0
        self._paused: frozenset[str] = frozenset()
        self._quiet_until = 0.0
        self._wire = Wire(settings, f"adsindex-{group}-{member or 'x'}", prefix)
        self._membership = GroupMember(
            settings, self._wire, admin.group_name(group), [prefix + topic for topic in topics], member
        )
        self.polled_records = 0
        """Records returned so far."""

    # ---- the interface ----

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Return up to `max_records` records, or [] after `timeout_s`; see `api.Consumer.poll`.

        A position below the oldest record kept moves up to it, with a warning in the log.
        """
        self._check_open()
        if max_records < 1:
            raise ValueError(f"max_records must be at least 1, not {max_records}")
        deadline = time.monotonic() + timeout_s
        while True:
            shared = self._share(max(deadline - time.monotonic(), 0.0))
            if shared:
                # The broker answers at once when there is anything: looking before waiting would cost as much again.
                self._fetch(min(max(deadline - time.monotonic(), 0.0), _LOOK_S))
                # A process that slept through its session must not work on what others may have by now.
                records = self._take(max_records) if self._membership.in_session else []
                if records:
                    self.polled_records += len(records)
                    return records
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            if not shared or not self._held or not self._membership.in_session:
                # More members than partitions, a broker that is away, a session to be renewed, or records to be
                # committed first, which another thread may do by publishing.
                time.sleep(min(left, 0.05))

    def commit(self) -> None:
        """Store the positions of everything polled, durably; nothing is written when nothing was polled since."""
        self._check_open()
        with self._lock:
            self._store({key: (held.position, "") for key, held in self._held.items()})
        self._hand_over()

    def commit_upto(self, records: Sequence[Record]) -> None:
        """Store the positions after the given records; records below what is committed change nothing."""
        self._check_open()
        upto: dict[tuple[str, int], tuple[int, str]] = {}
        for record in records:
            key = record.topic, record.partition
            upto[key] = max(upto.get(key, (0, "")), (record.offset + 1, ""))
        with self._lock:
            self._store({key: position for key, position in upto.items() if key in self._held})
        self._hand_over()

    def pause(self, topics: Collection[str]) -> None:
        """Leave the records of these topics in the log, and of no others, until called again. Partitions stay held."""
        self._paused = frozenset(topics)

    def assigned(self) -> list[tuple[str, int]]:
        """(topic, partition) pairs now held; none before the first poll."""
        return sorted(self._held)

    def close(self) -> None:
        """Leave the group; safe to call twice. Uncommitted records are delivered to the next owner."""
        if not self._open:
            return
        self._open = False
        try:
            if self._membership.close() and self._member:
                self._admin.leave(self.group, self._member)
        except errors.KafkaError as error:  # the group misses us after the session time-out
            _log.warning("consumer_left_late", group=self.group, error=str(error))
        finally:
            self._held.clear()
            self._wire.close()
            self._closed(self)

    def __enter__(self) -> KafkaConsumer:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def store_for_publish(self, positions: Sequence[Position]) -> list[Position]:
        """Store those of the positions that belong to partitions held here; return the others."""
        with self._lock:
            mine = [p for p in positions if p.group == self.group and (p.topic, p.partition) in self._held]
            self._store({(p.topic, p.partition): (p.offset, p.metadata) for p in mine})
        return [p for p in positions if p not in mine]

    # ---- positions ----

    def _check_open(self) -> None:
        if not self._open:
            raise LogError(f"this consumer of group {self.group} is closed; ask the log for a new one")

    def _store(self, positions: dict[tuple[str, int], tuple[int, str]]) -> None:
        ahead = {key: value for key, value in positions.items() if value[0] > self._held[key].committed}
        if not ahead:
            return
        try:
            self._membership.commit({self._name(key): value for key, value in ahead.items()})
        except Expelled as error:
            # Others have these partitions, or will at our next poll, from what was committed before.
            _log.warning("commit_refused", group=self.group, partitions=len(ahead), error=str(error))
            self._held.clear()
            self._generation = -1
            return
        for key, (offset, _) in ahead.items():
            self._held[key].committed = offset

    def _name(self, key: tuple[str, int]) -> TopicPartition:
        return TopicPartition(self._prefix + key[0], key[1])

    def _uncommitted(self) -> bool:
        return any(held.position > held.committed for held in self._held.values())

    # ---- sharing ----

    def _hand_over(self) -> None:
        """If the group waits for us to share anew, do it now that all is committed."""
        if self._held and self._membership.wants_to_share and not self._uncommitted():
            self._share(_HAND_OVER_S)

    def _share(self, wait_s: float) -> bool:
        """Take part in the group; return whether records may be polled now."""
        membership = self._membership
        if membership.wants_to_share and membership.in_group and self._uncommitted():
            return False  # drain first: records polled must not go to somebody else while they are worked on
        try:
            generation = membership.share(wait_s)
        except errors.KafkaError as error:
            self._complain(str(error))
            return False
        if generation is None:
            return False
        if generation != self._generation:
            self._adopt(missed_none=generation == self._generation + 1)
            self._generation = generation
        return True

    def _adopt(self, *, missed_none: bool) -> None:
        """Take over what the group gave us: go on where it was committed. With `missed_none` nobody else can have had
        the partitions that we hold since; else others may have worked on records after the position committed."""
        mine = self._membership.assigned()
        stored = self._admin.positions(self.group, mine) if mine else {}
        ends = self._admin.bounds(mine, OffsetSpec.LATEST)
        before, held = self._held, {}
        for partition in mine:
            key = partition.topic[len(self._prefix) :], partition.partition
            committed = stored[partition].offset if partition in stored else 0
            kept = before.get(key) if missed_none else None
            if kept is not None and kept.position == committed:
                kept.committed = committed
                held[key] = kept
            else:
                held[key] = _Held(committed, committed, committed, ends[partition])
        with self._lock:
            self._held = held

    # ---- records ----

    def _fetch(self, wait_s: float) -> None:
        wanted = {
            self._name(key): held.fetch_at
            for topic in self._topics
            for key, held in self._held.items()
            if key[0] == topic and topic not in self._paused and not held.ready
        }
        if not wanted:
            if not self._ready():
                time.sleep(min(wait_s, 0.05))  # everything is paused
            return
        if self._ready():
            wait_s = 0.0  # something is here already
        for partition, fetched in self._wire.fetch(wanted, wait_s).items():
            held = self._held[partition.topic[len(self._prefix) :], partition.partition]
            if fetched.out_of_range:
                self._skip(partition, held)
                continue
            held.buffer, held.taken, held.fetch_at = fetched.records, 0, fetched.following
            if not fetched.records:
                held.position = max(held.position, fetched.following)  # only markers or compacted records
        if self._wire.problem:
            self._complain(self._wire.problem)

    def _ready(self) -> bool:
        return any(held.ready for key, held in self._held.items() if key[0] not in self._paused)

    def _take(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        self._turn += 1
        lanes = [
            [held for key, held in self._held.items() if key[0] == topic and held.ready]
            for topic in self._topics
            if topic not in self._paused
        ]
        rooms = parts([sum(held.ready for held in waiting) for waiting in lanes], max_records)
        for lane, room in zip(lanes, rooms, strict=True):
            end = len(records) + room
            rotate = self._turn % len(lane) if lane else 0
            waiting = lane[rotate:] + lane[:rotate]
            while waiting and len(records) < end:
                # Equal parts of what is left; what a short partition leaves over goes to others in the next round.
                part = -(-(end - len(records)) // len(waiting))
                for held in waiting:
                    records += _next_records(held, min(part, end - len(records)))
                waiting = [held for held in waiting if held.ready]
        return records

    def _skip(self, partition: TopicPartition, held: _Held) -> None:
        """The position is not in the log: trimmed, or, after an unclean leader election, beyond the end."""
        oldest = self._admin.bounds([partition], OffsetSpec.EARLIEST)[partition]
        end = self._admin.bounds([partition], OffsetSpec.LATEST)[partition]
        if oldest <= held.fetch_at <= end:
            return  # it is by now
        target = oldest if held.fetch_at < oldest else end
        _log.warning(
            "consumer_skipped_trimmed" if target == oldest else "consumer_position_beyond_end",
            group=self.group,
            topic=partition.topic,
            partition=partition.partition,
            position=held.position,
            oldest=oldest,
            end=end,
        )
        held.position = held.fetch_at = target
        held.committed = min(held.committed, target)

    def _complain(self, problem: str) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + 5.0
            _log.warning("kafka_away", group=self.group, member=self._member, error=problem)


def _next_records(held: _Held, count: int) -> list[Record]:
    taken = held.buffer[held.taken : held.taken + count]
    held.taken += len(taken)
    if not held.ready:
        held.buffer, held.taken, held.position = [], 0, held.fetch_at
    else:
        held.position = held.buffer[held.taken].offset
    if taken and taken[0].offset < held.takeover_end:
        return [record if record.offset >= held.takeover_end else _repeated(record) for record in taken]
    return taken


def _repeated(record: Record) -> Record:
    return Record(record.topic, record.partition, record.offset, record.key, record.value, record.appended_us, True)
