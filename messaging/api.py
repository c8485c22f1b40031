"""The message log's interface: topics of ordered partitions, consumer groups, at-least-once delivery.

The embedded log and Kafka implement it. Order holds within a partition; the key chooses the partition.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self


@dataclass(frozen=True, slots=True)
class OutRecord:
    """A record to publish. Records with equal keys of one topic go to one partition, in order."""

    topic: str
    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Record:
    """A record read. `maybe_redelivered`: it lay in the log uncommitted when this consumer took the partition, so an
    earlier owner may have processed it already."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    appended_us: int
    maybe_redelivered: bool = False


@dataclass(frozen=True, slots=True)
class Position:
    """A consumer group's progress to be stored: `offset` is the next one to read, `metadata` what belongs to it.

    A pseudo-topic has no records but positions in something else (a database's change feed): its offsets are that
    thing's sequence numbers and its metadata may hold what a number cannot, such as a GTID set.
    """

    group: str
    topic: str
    partition: int
    offset: int
    metadata: str = ""


class Consumer(Protocol):
    """One member of a consumer group. Partitions are shared among the live members; a dead member's are taken over."""

    def poll(self, max_records: int, timeout_s: float) -> list[Record]:
        """Return records as soon as there are any, in offset order per partition, fairly over partitions.

        Topics given earlier to `consumer()` come first, yet every topic that has records gets a 16th of a poll of 16
        records or more: a backlog in one slows the later ones down and stops none.
        Returns [] after `timeout_s`. Does not advance the committed position.
        """

    def commit(self) -> None:
        """Store the positions of everything that poll() has returned; call it when the effects are durable."""

    def commit_upto(self, records: Sequence[Record]) -> None:
        """Store the positions after the given records only (the highest per partition)."""

    def pause(self, topics: Collection[str]) -> None:
        """Leave the records of these topics in the log, and of no others, until called again. Partitions stay held."""

    def assigned(self) -> list[tuple[str, int]]:
        """(topic, partition) pairs now held."""

    def close(self) -> None:
        """Give partitions back; uncommitted records are delivered again."""


class Log(Protocol):
    """A durable partitioned log."""

    def ensure_topic(self, topic: str, partitions: int) -> None:
        """Create the topic if missing. Raises LogError if it exists with another number of partitions."""

    def topics(self) -> dict[str, int]:
        """Topic -> number of partitions."""

    def publish(self, records: Sequence[OutRecord], positions: Sequence[Position] = ()) -> None:
        """Append all records and then store all positions, durably; consumers wake up after it.

        A stored position means that the records are in the log. The embedded log does both in one step; Kafka stores
        the positions after the records were acknowledged, so a crash between the two publishes the records again.
        Raises UnknownTopic and RecordTooLarge, and then nothing was appended; LogUnavailable, and then nothing was
        appended to the embedded log, and perhaps a part to Kafka: publish again (at least once).
        """

    def consumer(self, group: str, topics: Sequence[str], *, member: str = "") -> Consumer:
        """Join a group. Topics are in order of priority."""

    def read(self, topic: str, partition: int, offset: int, max_records: int) -> list[Record]:
        """Read without a group, for inspection, replay and followers that keep their own position.

        Raises OffsetTrimmed, naming the oldest offset left, when `offset` is below it.
        """

    def wait(self, topics: Sequence[str], positions: Mapping[tuple[str, int], int], timeout_s: float) -> bool:
        """Block without busy polling until some (topic, partition) has a record at or after its position."""

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Partition -> offset that the next record will get."""

    def start_offsets(self, topic: str) -> dict[int, int]:
        """Partition -> oldest offset kept."""

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> next offset to read for the group; 0 where it never committed."""

    def committed_metadata(self, group: str, topic: str) -> dict[int, str]:
        """Partition -> metadata stored with the group's position; "" where there is none."""

    def set_committed(self, positions: Sequence[Position]) -> None:
        """Store positions durably."""

    def groups(self) -> list[tuple[str, str]]:
        """(group, topic) pairs that have a stored position."""

    def trim(self, topic: str, partition: int, before_offset: int) -> int:
        """Forget records below an offset; return how many."""

    def statistics(self) -> Mapping[str, int]:
        """Counters since open and sizes."""

    def close(self) -> None:
        """Release files; safe to call twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...
