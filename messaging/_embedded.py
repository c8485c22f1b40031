"""The embedded log: durable topics in one file, shared by the processes of one machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from messaging._embedded_consumer import EmbeddedConsumer
from messaging._embedded_env import OFFSETS, U64, Environment, Write
from messaging._embedded_topics import Partitions, Topic, split_position_key
from messaging._exceptions import LogUnavailable, OffsetTrimmed
from messaging._limits import check_name, encode_key, partition_of
from messaging._wake import Waiter, wait_until, wake
from messaging.api import OutRecord, Position, Record

if TYPE_CHECKING:
    from messaging._embedded_env import Txn

_READ_BYTES = 64 << 20  # a read ends early here, so that large records cannot fill the memory
_TRIM_CHUNK = 5_000  # records forgotten in one transaction: a few milliseconds during which publishers wait


class EmbeddedLog:
    """A durable partitioned log in a directory (implements `api.Log`).

    Every publish is on disk (fsync) when it returns; threads that publish at once share one fsync. Safe for several
    threads and processes on one machine and local file system; not across fork(). The partition of a key is CRC-32 of
    its UTF-8 form modulo the number of partitions, so records with an empty key are all in partition 0.
    """

    def __init__(self, path: Path, wake_dir: Path) -> None:
        """Open the log in directory `path`, creating it if missing. Raises LogUnavailable."""
        self._env = Environment.acquire(path)
        self._partitions = Partitions(self._env)
        self._wake_dir = wake_dir
        self._groups_dir = path.resolve() / "groups"
        self._lock = threading.Lock()
        self._consumers: set[EmbeddedConsumer] = set()
        self._waiters: dict[tuple[str, ...], list[Waiter]] = {}  # idle ones; their pipes collect hints in the meantime
        self._open = True
        self._published_records = 0
        self._published_bytes = 0
        self._publishes = 0
        self._polled_records = 0

    def ensure_topic(self, topic: str, partitions: int) -> None:
        """Create the topic if missing. Raises LogError if it exists with another number of partitions."""
        self._check_open()
        self._partitions.ensure(topic, partitions)

    def topics(self) -> dict[str, int]:
        """Topic -> number of partitions."""
        self._check_open()
        return {topic.name: topic.partitions for topic in self._partitions.all()}

    def publish(self, records: Sequence[OutRecord], positions: Sequence[Position] = ()) -> None:
        """Append all records and store all positions in one durable transaction, then wake the topics' readers.

        Raises UnknownTopic, RecordTooLarge, LogUnavailable, LogError for a bad position, and then nothing was stored.
        A process killed inside may or may not have published; it is all or nothing.
        """
        self._check_open()
        write = Write(positions=self._partitions.encode(positions))
        names: set[str] = set()
        size = 0
        for record in records:
            topic = self._partitions.topic(record.topic)
            key = encode_key(record)
            size += len(key) + len(record.value)
            prefix = topic.prefixes[partition_of(key, len(topic.prefixes))]
            body = len(key).to_bytes(2, "big") + key + record.value
            write.appends.setdefault(prefix, []).append(body)
            names.add(record.topic)
        if not write.appends and not write.positions:
            return
        self._env.append(write)
        wake(self._wake_dir, names)
        with self._lock:
            self._publishes += 1
            self._published_records += len(records)
            self._published_bytes += size

    def consumer(self, group: str, topics: Sequence[str], *, member: str = "") -> EmbeddedConsumer:
        """Return a new member of a group; it takes its share of the partitions at its first poll.

        `topics` are in order of priority; `member` is a name for people who look at the lock files.
        """
        self._check_open()
        try:
            consumer = EmbeddedConsumer(
                self._partitions,
                check_name("group", group),
                [self._partitions.topic(name) for name in dict.fromkeys(topics)],
                check_name("member", member) if member else "x",
                groups_dir=self._groups_dir,
                wake_dir=self._wake_dir,
                closed=self._consumer_closed,
            )
        except OSError as error:
            raise LogUnavailable(f"cannot register a consumer in {self._wake_dir}: {error}") from error
        with self._lock:
            self._consumers.add(consumer)
        return consumer

    def read(self, topic: str, partition: int, offset: int, max_records: int) -> list[Record]:
        """Read up to `max_records` (64 MiB at most) without a group; [] at the end.

        Raises UnknownTopic, and OffsetTrimmed, naming the oldest offset left, when `offset` is below it.
        """
        self._check_open()
        found = self._partitions.topic(topic)
        with self._partitions.reading() as view:
            start, end = view.bounds(found, partition)
            if offset < start:
                raise OffsetTrimmed(topic, partition, offset, start)
            count = min(max_records, end - offset)
            return view.records(found, partition, offset, count, max_bytes=_READ_BYTES)[0] if count > 0 else []

    def wait(self, topics: Sequence[str], positions: Mapping[tuple[str, int], int], timeout_s: float) -> bool:
        """Block until a partition of `topics` has a record at or after its position; False after `timeout_s`.

        A partition without a position counts from offset 0.
        """
        self._check_open()
        found = [self._partitions.topic(topic) for topic in topics]
        deadline = time.monotonic() + timeout_s
        if self._any_after(found, positions):
            return True
        waiter = self._borrow_waiter(tuple(topics))
        try:
            while not self._any_after(found, positions):
                if not wait_until(waiter, deadline):
                    return False
        finally:
            self._give_back(tuple(topics), waiter)
        return True

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Partition -> offset that the next record will get."""
        return {partition: end for partition, (_, end) in self._bounds(topic).items()}

    def start_offsets(self, topic: str) -> dict[int, int]:
        """Partition -> oldest offset kept."""
        return {partition: start for partition, (start, _) in self._bounds(topic).items()}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> next offset to read for the group; 0 where it never committed."""
        self._check_open()
        found = self._partitions.topic(topic)
        with self._partitions.reading() as view:
            return {partition: view.committed(group, found, partition) for partition in range(found.partitions)}

    def committed_metadata(self, group: str, topic: str) -> dict[int, str]:
        """Partition -> metadata stored with the group's position; "" where there is none."""
        self._check_open()
        found = self._partitions.topic(topic)
        with self._partitions.reading() as view:
            return {partition: view.metadata(group, found, partition) for partition in range(found.partitions)}

    def set_committed(self, positions: Sequence[Position]) -> None:
        """Store positions durably. Members that hold the partitions go on where they are: move idle groups only."""
        self._check_open()
        self._partitions.store(positions)

    def groups(self) -> list[tuple[str, str]]:
        """(group, topic) pairs that have a stored position."""
        self._check_open()
        names = {topic.id: topic.name for topic in self._partitions.all()}
        with self._env.reading() as txn, txn.cursor(self._env.positions) as cursor:
            keys = {split_position_key(key) for key in cursor.iternext(keys=True, values=False)}
        return sorted((group, names[topic_id]) for group, topic_id in keys)

    def trim(self, topic: str, partition: int, before_offset: int) -> int:
        """Forget records below an offset (at most up to the end); return how many.

        Killed inside, it has forgotten a part, from the oldest on.
        """
        self._check_open()
        prefix = self._partitions.topic(topic).prefix(partition)

        def forget(txn: Txn) -> tuple[int, bool]:
            start, end = self._env.bounds(txn, prefix)
            target = min(before_offset, end)
            upto = min(target, start + _TRIM_CHUNK)
            for offset in range(start, upto):
                txn.delete(prefix + U64.pack(offset), db=self._env.records)
            if upto > start:
                txn.put(prefix, OFFSETS.pack(upto, end), db=self._env.offsets)
            return max(upto - start, 0), upto < target

        forgotten, more = 0, True
        while more:
            count, more = self._env.write(forget)
            forgotten += count
        return forgotten

    def statistics(self) -> Mapping[str, int]:
        """Counters of this log object since open, and sizes of the file.

        publishes, published_records, published_bytes, polled_records: through this object (polled: closed consumers
        and open ones); durable_writes: fsyncs of this process; consumers: open ones; file_bytes, records_bytes,
        records_kept: of the file (`file_bytes` minus free pages is more than `records_bytes`; the file never shrinks).
        """
        self._check_open()
        with self._lock:
            polled = self._polled_records + sum(consumer.polled_records for consumer in self._consumers)
            counters = {
                "publishes": self._publishes,
                "published_records": self._published_records,
                "published_bytes": self._published_bytes,
                "polled_records": polled,
                "consumers": len(self._consumers),
            }
        return counters | {"durable_writes": self._env.committed_writes} | self._env.sizes()

    def close(self) -> None:
        """Close the consumers and release the file; safe to call twice. No other thread may be using the log."""
        with self._lock:
            was_open, self._open = self._open, False
            consumers = list(self._consumers)
            waiters = [waiter for idle in self._waiters.values() for waiter in idle]
            self._waiters.clear()
        for waiter in waiters:
            waiter.close()
        for consumer in consumers:
            consumer.close()
        if was_open:
            self._env.release()

    def __enter__(self) -> EmbeddedLog:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise LogUnavailable(f"the log at {self._env.path} is closed; open it again")

    def _borrow_waiter(self, names: tuple[str, ...]) -> Waiter:
        """Take an idle waiter for these topics, or a new one: making a pipe costs more than a short wait."""
        with self._lock:
            if idle := self._waiters.get(names):
                return idle.pop()
        try:
            return Waiter(self._wake_dir, names)
        except OSError as error:
            raise LogUnavailable(f"cannot wait in {self._wake_dir}: {error}") from error

    def _give_back(self, names: tuple[str, ...], waiter: Waiter) -> None:
        with self._lock:
            if self._open:
                self._waiters.setdefault(names, []).append(waiter)
                return
        waiter.close()

    def _consumer_closed(self, consumer: EmbeddedConsumer) -> None:
        with self._lock:
            self._consumers.discard(consumer)
            self._polled_records += consumer.polled_records

    def _bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        self._check_open()
        found = self._partitions.topic(topic)
        with self._partitions.reading() as view:
            return {partition: view.bounds(found, partition) for partition in range(found.partitions)}

    def _any_after(self, topics: Sequence[Topic], positions: Mapping[tuple[str, int], int]) -> bool:
        with self._partitions.reading() as view:
            return any(
                view.bounds(topic, partition)[1] > positions.get((topic.name, partition), 0)
                for topic in topics
                for partition in range(topic.partitions)
            )
