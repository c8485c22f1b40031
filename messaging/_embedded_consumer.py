"""A consumer-group member on the embedded log."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import structlog

from messaging._embedded_topics import Partitions, Topic, View
from messaging._exceptions import LogError, LogUnavailable
from messaging._lanes import LATER_SHARE, parts
from messaging._membership import Share
from messaging._wake import SAFETY_NET_S, Waiter, wait_until
from messaging.api import Position, Record

_POLL_BYTES = 64 << 20
"""A poll ends early once it holds this many bytes, so that large records cannot fill the memory."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Held:
    """A partition owned: `position` is the next offset to poll, records below `takeover_end` may be repeats."""

    topic: Topic
    partition: int
    position: int
    committed: int
    takeover_end: int
    draining: bool = False


class EmbeddedConsumer:
    """One member of a consumer group; use it from one thread. `EmbeddedLog.consumer` makes it.

    It joins at its first poll, and looks after its share of the partitions in poll and commit only, at most every
    SAFETY_NET_S. A partition that it must give up is drained: no more is polled from it, and it goes to the other
    member once everything polled is committed, so no record is with two members at once. Killed or closed before a
    commit, its uncommitted records go to the next owner (at least once). A member that stays busy or hangs keeps its
    partitions for as long as its process lives.
    """

    def __init__(
        self,
        partitions: Partitions,
        group: str,
        topics: Sequence[Topic],
        member: str,
        *,
        groups_dir: Path,
        wake_dir: Path,
        closed: Callable[[EmbeddedConsumer], None],
    ) -> None:
        self._partitions = partitions
        self._group = group
        self._topics = topics
        self._member = member
        self._groups_dir = groups_dir
        self._closed = closed
        self._open = True
        self._waiter = Waiter(wake_dir, [topic.name for topic in topics])
        self._shares: dict[str, Share] = {}
        self._held: dict[tuple[str, int], _Held] = {}
        self._next_balance = 0.0
        self._turn = 0
        self._paused: frozenset[str] = frozenset()
        self.polled_records = 0
        """Records returned so far."""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Return up to `max_records` records, or [] after `timeout_s`; see `api.Consumer.poll`.

        A position below the oldest record kept moves up to it, with a warning in the log.
        """
        self._check_open()
        if max_records < 1:
            raise ValueError(f"max_records must be at least 1, not {max_records}")
        deadline = time.monotonic() + timeout_s
        while True:
            if time.monotonic() >= self._next_balance:
                try:
                    self._balance()
                except OSError as error:
                    raise LogUnavailable(
                        f"group {self._group} cannot share partitions by lock files: {error}; look for a full disk or "
                        "too many open files"
                    ) from error
            records = self._fetch(max_records)
            if records or not wait_until(self._waiter, deadline):
                self.polled_records += len(records)
                return records

    def commit(self) -> None:
        """Store the positions of everything polled, durably; nothing is written when nothing was polled since."""
        self._check_open()
        self._store({key: held.position for key, held in self._held.items()})

    def commit_upto(self, records: Sequence[Record]) -> None:
        """Store the positions after the given records; records below what is committed change nothing."""
        self._check_open()
        upto: dict[tuple[str, int], int] = {}
        for record in records:
            key = record.topic, record.partition
            upto[key] = max(upto.get(key, 0), record.offset + 1)
        # A partition not held any more was given up after all that was polled from it had been committed.
        self._store({key: offset for key, offset in upto.items() if key in self._held})

    def pause(self, topics: Collection[str]) -> None:
        """Leave the records of these topics in the log, and of no others, until called again. Partitions stay held."""
        self._paused = frozenset(topics)

    def assigned(self) -> list[tuple[str, int]]:
        """(topic, partition) pairs now held; none before the first poll."""
        return sorted(self._held)

    def close(self) -> None:
        """Leave the group; safe to call twice. Uncommitted records are delivered to the next owner."""
        if self._open:
            self._open = False
            for share in self._shares.values():
                share.leave()
            self._held.clear()
            self._waiter.close()
            self._closed(self)

    def __enter__(self) -> EmbeddedConsumer:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise LogError(f"this consumer of group {self._group} is closed; ask the log for a new one")

    def _store(self, positions: dict[tuple[str, int], int]) -> None:
        ahead = {key: offset for key, offset in positions.items() if offset > self._held[key].committed}
        if ahead:
            self._partitions.store(
                [Position(self._group, topic, partition, offset) for (topic, partition), offset in ahead.items()]
            )
            for key, offset in ahead.items():
                self._held[key].committed = offset
        self._release_drained()

    def _release_drained(self) -> None:
        for key, held in list(self._held.items()):
            if held.draining and held.committed >= held.position:
                del self._held[key]
                self._shares[held.topic.name].release(held.partition)

    def _balance(self) -> None:
        for topic in self._topics:
            share = self._shares.get(topic.name)
            if share is None:
                directory = self._groups_dir / self._group / topic.name
                share = self._shares[topic.name] = Share(directory, topic.partitions, self._member)
            mine = [held for held in self._held.values() if held.topic is topic]
            excess = len(mine) - share.quota()
            if excess < 0:
                self._take(topic, share.take(-excess))
            elif excess > 0:
                self._refresh_committed(topic, mine)
            mine.sort(key=lambda held: (held.position > held.committed, held.partition))
            for rank, held in enumerate(mine):
                held.draining = rank < excess
        self._release_drained()
        self._next_balance = time.monotonic() + SAFETY_NET_S

    def _take(self, topic: Topic, taken: list[int]) -> None:
        if not taken:
            return
        with self._partitions.reading() as view:
            for partition in taken:
                committed = view.committed(self._group, topic, partition)
                _, end = view.bounds(topic, partition)
                self._held[topic.name, partition] = _Held(topic, partition, committed, committed, end)

    def _refresh_committed(self, topic: Topic, mine: list[_Held]) -> None:
        """Take note of positions that were stored by Log.publish instead of commit()."""
        with self._partitions.reading() as view:
            for held in mine:
                held.committed = max(held.committed, view.committed(self._group, topic, held.partition))

    def _fetch(self, max_records: int) -> list[Record]:
        records: list[Record] = []
        self._turn += 1
        with self._partitions.reading() as view:
            lanes = [self._waiting(view, topic) for topic in self._topics if topic.name not in self._paused]
            rooms = parts([sum(end - held.position for held, end in waiting) for waiting in lanes], max_records)
            # Of bytes too, large records in the topics before cannot keep a later one waiting.
            share, left_bytes = _POLL_BYTES // LATER_SHARE, _POLL_BYTES
            reserved = share * sum(1 for room in rooms if room)
            for waiting, room in zip(lanes, rooms, strict=True):
                if not room:
                    continue
                reserved -= share
                allowed = max(left_bytes - reserved, share)  # one before may have gone over by a whole record
                left_bytes -= self._take_records(view, waiting, room, allowed, records)
        return records

    def _waiting(self, view: View, topic: Topic) -> list[tuple[_Held, int]]:
        """Return the partitions of a topic that have records to poll, each with its end, another one first each time.

        Moves positions below the oldest record up to it.
        """
        waiting: list[tuple[_Held, int]] = []
        for held in self._held.values():
            if held.topic is topic and not held.draining:
                start, end = view.bounds(topic, held.partition)
                if held.position < start:
                    self._skip(held, start)
                if held.position < end:
                    waiting.append((held, end))
        rotate = self._turn % len(waiting) if waiting else 0
        return waiting[rotate:] + waiting[:rotate]

    def _take_records(
        self, view: View, waiting: list[tuple[_Held, int]], room: int, max_bytes: int, records: list[Record]
    ) -> int:
        """Add up to `room` records of one topic's partitions, about `max_bytes` of them; return their size in bytes."""
        left_bytes, full = max_bytes, len(records) + room
        while waiting and len(records) < full and left_bytes > 0:
            # Equal parts of what is left; what a short partition leaves over goes to others in the next round.
            part = -(-(full - len(records)) // len(waiting))
            for held, end in waiting:
                got, size = view.records(
                    held.topic,
                    held.partition,
                    held.position,
                    min(part, end - held.position, full - len(records)),
                    max_bytes=left_bytes,
                    repeated_below=held.takeover_end,
                )
                held.position += len(got)
                records += got
                left_bytes -= size
                if left_bytes <= 0 or len(records) >= full:
                    break
            waiting = [(held, end) for held, end in waiting if held.position < end]
        return max_bytes - left_bytes

    def _skip(self, held: _Held, start: int) -> None:
        _log.warning(
            "consumer_skipped_trimmed",
            group=self._group,
            topic=held.topic.name,
            partition=held.partition,
            position=held.position,
            oldest=start,
        )
        held.position = start
