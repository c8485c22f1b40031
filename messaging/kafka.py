"""The Kafka log: the interface of `messaging.api` on a Kafka cluster, by kafka-python.

The stages of an update's path read and write Kafka through this log: it has an order of priority between topics, and
the same stage runs over the embedded log. A stage that is a stream app in the plain sense - topics in, a keyed table
out, nobody waiting - is a Faust app (`messaging.reports_stage`). In our one measurement (one broker, four partitions,
20,000 records of 300 bytes, batches of 500) this log with a commit per batch took 9 us of processor time a record and
an untuned Faust agent with `take` 190 us; other settings were not tried.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from types import TracebackType

from kafka.protocol.consumer import OffsetSpec

from messaging._exceptions import LogError, LogUnavailable, UnknownTopic
from messaging._kafka_admin import Admin
from messaging._kafka_batches import REQUEST_BYTES, Producer
from messaging._kafka_consumer import KafkaConsumer
from messaging._kafka_reader import Reader
from messaging._limits import check_name, encode_key, partition_of
from messaging.api import Log, OutRecord, Position, Record
from messaging.kafka_settings import KafkaSettings

__all__ = ["KafkaLog", "KafkaSettings", "open_kafka_log"]

RECORD_SETTINGS = {"max.message.bytes": str(REQUEST_BYTES)}
"""Settings of every topic that this package creates."""

logging.getLogger("kafka").addHandler(logging.NullHandler())  # it repeats each failure that we report ourselves


def open_kafka_log(url: str, *, prefix: str = "", create_topics: bool = True) -> Log:
    """Open the log at a `kafka://` URL (see `KafkaSettings`). Raises LogError for a bad URL and LogUnavailable.

    `prefix` goes before every topic and group name, after the URL's own. Without
    `create_topics`, ensure_topic only checks: a missing topic is an error that names the command to create it.
    """
    settings = KafkaSettings.parse(url)
    return KafkaLog(settings, prefix=settings.prefix + prefix, create_topics=create_topics)


class KafkaLog:
    """A log on a Kafka cluster (implements `api.Log`). Safe for threads.

    publish() waits until all in-sync replicas have the records (idempotent producer, so that a retry appends nothing
    twice), then stores the positions: at least once. A process killed in between leaves its last batch without its
    position, and whoever goes on sends that batch again; a position without its records there never is. Kafka's
    transactions would do both in one step for some 3 ms more per publish (8.0 against 11.2 ms for one record, 11.9
    against 15.1 for fifty, medians on a busy machine), but each also takes an offset of every partition it touched, so
    that no count of what waits would be exact, and every reader waits for its end. Every effect of this pipeline is
    idempotent, so they would buy nothing.
    The partition of a key is the same as in the embedded log. While brokers are away, publish and every question wait
    up to publish_timeout_ms and then raise LogUnavailable; polls return nothing and go on by themselves.
    """

    def __init__(self, settings: KafkaSettings, *, prefix: str = "", create_topics: bool = True) -> None:
        """Connect. Raises LogUnavailable."""
        if prefix:
            check_name("prefix", prefix)
        self.settings, self.prefix, self._create = settings, prefix, create_topics
        self.admin = Admin(settings, prefix)
        self._producer = Producer(settings)
        self._reader = Reader(settings, self.admin, prefix)
        self._lock = threading.Lock()
        self._consumers: set[KafkaConsumer] = set()
        self._open = True
        self._published_records = 0
        self._published_bytes = 0
        self._publishes = 0
        self._polled_records = 0

    # ---- topics ----

    def ensure_topic(self, topic: str, partitions: int) -> None:
        """Create the topic if missing (see `open_kafka_log`). Raises LogError if its partitions are another number."""
        from messaging.topics import settings_of

        self._check_open()
        check_name("topic", topic)
        if partitions < 1:
            raise LogError(f"topic {topic} needs at least 1 partition, not {partitions}")
        try:
            found = self.admin.partitions(topic)
        except UnknownTopic:
            if not self._create:
                raise
            self.admin.create(topic, partitions, {**RECORD_SETTINGS, **settings_of(topic)})
            found = self.admin.partitions(topic)
        if found != partitions:
            raise LogError(
                f"topic {topic} has {found} partitions, not {partitions}; the number cannot change, because keys would "
                "move to other partitions and lose their order"
            )

    def topics(self) -> dict[str, int]:
        """Topic -> number of partitions."""
        self._check_open()
        return self.admin.topics()

    # ---- publishing ----

    def publish(self, records: Sequence[OutRecord], positions: Sequence[Position] = ()) -> None:
        """Append all records, then store all positions (see the class). Raises as `api.Log.publish` says."""
        self._check_open()
        encoded = []
        size = 0
        for record in records:
            count = self.admin.partitions(record.topic)
            key = encode_key(record)
            size += len(key) + len(record.value)
            encoded.append((self.prefix + record.topic, partition_of(key, count), key, record.value))
        self.admin.check(positions)
        if encoded:
            self._producer.send(encoded)
        self._store(positions)
        if encoded or positions:
            with self._lock:
                self._publishes += 1
                self._published_records += len(records)
                self._published_bytes += size

    def set_committed(self, positions: Sequence[Position]) -> None:
        """Store positions durably. Only a group without members, or with members of this object, can be moved."""
        self._check_open()
        self.admin.check(positions)
        self._store(positions)

    def _store(self, positions: Sequence[Position]) -> None:
        left = list(positions)
        if left:
            with self._lock:
                consumers = [consumer for consumer in self._consumers if any(p.group == consumer.group for p in left)]
            for consumer in consumers:
                left = consumer.store_for_publish(left)
        if left:
            self.admin.store(left)

    # ---- reading ----

    def consumer(self, group: str, topics: Sequence[str], *, member: str = "") -> KafkaConsumer:
        """Return a new member of a group; it takes its share of the partitions at its first poll.

        `topics` are in order of priority; `member` is a name for people who look at the broker's list of members.
        """
        self._check_open()
        self.admin.group_name(group)
        if member:
            check_name("member", member)
        wanted = list(dict.fromkeys(topics))
        for topic in wanted:
            self.admin.partitions(topic)
        consumer = KafkaConsumer(self.settings, self.admin, group, wanted, member, self.prefix, self._consumer_closed)
        with self._lock:
            self._consumers.add(consumer)
        return consumer

    def read(self, topic: str, partition: int, offset: int, max_records: int) -> list[Record]:
        """Read up to `max_records` (about 1 MiB) without a group; [] only at the end.

        Raises UnknownTopic, LogUnavailable, and OffsetTrimmed, naming the oldest offset left.
        """
        self._check_open()
        place = self.admin.check_partition(topic, partition)
        if max_records < 1:
            return []
        return self._reader.read(place, offset, max_records)

    def wait(self, topics: Sequence[str], positions: Mapping[tuple[str, int], int], timeout_s: float) -> bool:
        """Block until a partition of `topics` has a record at or after its position; False after `timeout_s`.

        A partition without a position counts from its oldest record. What is found is kept for the next read().
        """
        self._check_open()
        places = [place for topic in topics for place in self.admin.all_partitions(topic)]
        wanted = {place: positions.get((place.topic[len(self.prefix) :], place.partition), -1) for place in places}
        return self._reader.wait(wanted, timeout_s)

    # ---- offsets and positions ----

    def end_offsets(self, topic: str) -> dict[int, int]:
        """Partition -> offset that the next record will get."""
        return self._bounds(topic, OffsetSpec.LATEST)

    def start_offsets(self, topic: str) -> dict[int, int]:
        """Partition -> oldest offset kept."""
        return self._bounds(topic, OffsetSpec.EARLIEST)

    def _bounds(self, topic: str, spec: OffsetSpec) -> dict[int, int]:
        self._check_open()
        found = self.admin.bounds(self.admin.all_partitions(topic), spec)
        return {place.partition: offset for place, offset in found.items()}

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """Partition -> next offset to read for the group; 0 where it never committed."""
        self._check_open()
        places = self.admin.all_partitions(topic)
        stored = self.admin.positions(group, places)
        return {place.partition: stored[place].offset if place in stored else 0 for place in places}

    def committed_metadata(self, group: str, topic: str) -> dict[int, str]:
        """Partition -> metadata stored with the group's position; "" where there is none."""
        self._check_open()
        places = self.admin.all_partitions(topic)
        stored = self.admin.positions(group, places)
        return {place.partition: (stored[place].metadata or "") if place in stored else "" for place in places}

    def groups(self) -> list[tuple[str, str]]:
        """(group, topic) pairs that have a stored position."""
        self._check_open()
        return self.admin.groups()

    def trim(self, topic: str, partition: int, before_offset: int) -> int:
        """Forget records below an offset (at most up to the end); return how many offsets that were."""
        self._check_open()
        place = self.admin.check_partition(topic, partition)
        start = self.admin.bounds([place], OffsetSpec.EARLIEST)[place]
        target = min(before_offset, self.admin.bounds([place], OffsetSpec.LATEST)[place])
        if target <= start:
            return 0
        self.admin.delete_before(place, target)
        self._reader.forget(place)
        return target - start

    def statistics(self) -> Mapping[str, int]:
        """Counters of this log object since open, and sizes.

        publishes, published_records, published_bytes, polled_records: through this object (polled: closed consumers
        and open ones); consumers: open ones; readers: connections for read() and wait(); file_bytes: of our topics on
        all brokers.
        """
        self._check_open()
        size = self.admin.bytes_on_disk()
        with self._lock:
            polled = self._polled_records + sum(consumer.polled_records for consumer in self._consumers)
            return {
                "publishes": self._publishes,
                "published_records": self._published_records,
                "published_bytes": self._published_bytes,
                "polled_records": polled,
                "consumers": len(self._consumers),
                "readers": self._reader.connections,
                "file_bytes": size,
            }

    def close(self) -> None:
        """Close consumers and connections; safe to call twice."""
        with self._lock:
            was_open, self._open = self._open, False
            consumers = list(self._consumers)
        for consumer in consumers:
            consumer.close()
        self._reader.close()
        if was_open:
            self._producer.close()
            self.admin.close()

    def __enter__(self) -> KafkaLog:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._open:
            raise LogUnavailable(f"the log at {self.settings.place} is closed; open it again")

    def _consumer_closed(self, consumer: KafkaConsumer) -> None:
        with self._lock:
            self._consumers.discard(consumer)
            self._polled_records += consumer.polled_records
