"""Connections of our own to the brokers: fetch requests exactly when and for what we ask.

kafka-python's consumer prefetches in the background, so it cannot tell what is in the log *now* and cannot let an
earlier topic pass a later one. Its event loop and its protocol classes can, and are all that is used here. Records are
decoded by aiokafka's compiled reader, which faust-streaming brings along: a third of the processor time.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aiokafka.record.memory_records import MemoryRecords
from kafka import errors
from kafka.future import Future
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector
from kafka.protocol.consumer import FetchRequest
from kafka.structs import TopicPartition

from messaging._exceptions import LogUnavailable
from messaging.api import Record
from messaging.kafka_settings import KafkaSettings

APPENDED_US = "us"
"""Record header: when it was published, eight bytes. Kafka's own timestamps have milliseconds."""

_FETCH_VERSION = 12  # from 13 on topics are named by id, which kafka-python does not do yet
_FETCH_BYTES = 32 << 20
_PARTITION_BYTES = 1 << 20  # a larger record is sent all the same, alone (KIP-74)
_RETRY_S = 0.1
_ANSWER_S = 10.0  # beyond the time that the broker may wait for records


@dataclass(slots=True)
class Fetched:
    """What one partition had: records from the offset asked for, and where to go on.

    `out_of_range`: the offset asked for is below the oldest record or beyond the end. `end`: the offset of the next
    record to be appended, as the broker saw it; -1 if unknown.
    """

    records: list[Record] = field(default_factory=list)
    following: int = 0
    end: int = -1
    out_of_range: bool = False


@dataclass(slots=True)
class _Sent:
    future: Future
    offsets: dict[TopicPartition, int]


class Wire:
    """An event loop in a thread of its own with its connections. `fetch` is for one thread at a time."""

    def __init__(self, settings: KafkaSettings, name: str, prefix: str) -> None:
        """Connect. Raises LogUnavailable when no broker answers within publish_timeout_ms."""
        config = settings.client(name)
        self._prefix = prefix
        self.net = NetworkSelector(**config)
        self.manager = KafkaConnectionManager(self.net, **config)
        self.client = KafkaNetClient(self.net, self.manager)
        self._sent: dict[Any, _Sent] = {}
        self._warned = 0.0
        self.problem = ""
        """Why the last fetch got no answer from some broker; "" when all is well."""
        self.net.start()
        try:
            self.manager.bootstrap(settings.publish_timeout_ms)
        except errors.KafkaError as error:
            self.close()
            raise LogUnavailable(f"no Kafka broker answers at {settings.place}: {error}") from error

    def close(self) -> None:
        """Close the connections and end the thread; safe to call twice."""
        if not self.manager.closed:
            self.manager.close()
            self.net.stop(timeout_ms=2_000)
            self.net.close()

    def fetch(self, offsets: Mapping[TopicPartition, int], wait_s: float) -> dict[TopicPartition, Fetched]:
        """Ask the leaders for what lies at the given offsets; wait up to `wait_s` until there is anything.

        Partitions earlier in `offsets` come first when the answer is full. A partition is missing in the answer when
        its broker did not answer (see `problem`) or, with several brokers, has not answered yet.
        """
        raw = self.net.run(self._fetch, dict(offsets), wait_s)
        return {partition: self._decode(partition, *answer) for partition, answer in raw.items()}

    async def _fetch(self, offsets: dict[TopicPartition, int], wait_s: float) -> dict[TopicPartition, tuple[int, Any]]:
        deadline = time.monotonic() + wait_s
        for node, wanted in (await self._leaders(offsets, wait_s)).items():
            if node not in self._sent:
                request = _request(wanted, max(0, int((deadline - time.monotonic()) * 1000)))
                self._sent[node] = _Sent(self.manager.send(request, node_id=node), wanted)
        if not self._sent:
            await self.net.sleep(min(_RETRY_S, max(wait_s, 0.0)))
            return {}
        any_done = Future()
        for sent in self._sent.values():
            sent.future.add_both(lambda _: None if any_done.is_done else any_done.success(None))
        try:
            await self.manager.wait_for(any_done, (wait_s + _ANSWER_S) * 1000)
        except errors.KafkaTimeoutError:
            self.problem = "no answer"
        return await self._harvest(offsets, wait_s)

    async def _leaders(self, offsets: dict[TopicPartition, int], wait_s: float) -> dict[Any, dict[TopicPartition, int]]:
        cluster = self.manager.cluster
        grouped: dict[Any, dict[TopicPartition, int]] = defaultdict(dict)
        for attempt in range(2):
            grouped.clear()
            for partition, offset in offsets.items():
                node = cluster.leader_for_partition(partition)
                if node is not None and node != -1:
                    grouped[node][partition] = offset
            if attempt == 0 and sum(map(len, grouped.values())) < len(offsets):
                topics = {partition.topic for partition in offsets}
                update = cluster.set_topics(cluster._topics | topics)
                if update.is_done:
                    update = cluster.request_update()
                try:  # never less than a round trip: a poll with time-out 0 must see what is there
                    await self.manager.wait_for(update, max(wait_s, 1.0) * 1000)
                except errors.KafkaError as error:
                    self.problem = str(error)
            else:
                break
        return grouped

    async def _harvest(
        self, offsets: dict[TopicPartition, int], wait_s: float
    ) -> dict[TopicPartition, tuple[int, Any]]:
        answers: dict[TopicPartition, tuple[int, Any]] = {}
        failed = False
        for node, sent in list(self._sent.items()):
            if not sent.future.is_done:
                continue
            del self._sent[node]
            if sent.future.failed():
                failed, self.problem = True, str(sent.future.exception)
                continue
            self.problem = ""
            for topic in sent.future.value.responses:
                for data in topic.partitions:
                    partition = TopicPartition(topic.topic, data.partition_index)
                    code = errors.for_code(data.error_code)
                    if code in (errors.NoError, errors.OffsetOutOfRangeError):
                        if offsets.get(partition) == sent.offsets[partition]:
                            answers[partition] = sent.offsets[partition], data
                    else:
                        failed, self.problem = True, f"{topic.topic}[{data.partition_index}]: {code.__name__}"
        if failed:  # a leader moved or its broker is away: ask anew, not at once
            self.manager.cluster.request_update()
            await self.net.sleep(min(_RETRY_S, max(wait_s, 0.0)))
        return answers

    def _decode(self, partition: TopicPartition, offset: int, data: Any) -> Fetched:
        if errors.for_code(data.error_code) is errors.OffsetOutOfRangeError:
            return Fetched(following=offset, out_of_range=True)
        fetched = Fetched(following=offset, end=data.high_watermark)
        topic = partition.topic[len(self._prefix) :]
        batches = MemoryRecords(bytes(data.records or b""))
        while (batch := batches.next_batch()) is not None:
            if not batch.validate_crc():
                raise LogUnavailable(f"{topic}[{partition.partition}]@{batch.base_offset} is damaged: its CRC is wrong")
            if not batch.is_control_batch:
                fetched.records += [
                    Record(
                        topic,
                        partition.partition,
                        record.offset,
                        (record.key or b"").decode("utf-8", "surrogatepass"),
                        record.value or b"",  # a tombstone of a compacted topic
                        _appended_us(record),
                    )
                    for record in batch
                    if record.offset >= offset  # a batch may begin before the offset asked for
                ]
            fetched.following = max(offset, batch.next_offset)
        return fetched


def _appended_us(record: Any) -> int:
    for name, value in record.headers:
        if name == APPENDED_US:
            return int.from_bytes(value, "big")
    return int(record.timestamp) * 1000


def _request(offsets: Mapping[TopicPartition, int], wait_ms: int) -> FetchRequest:
    by_topic: dict[str, list[Any]] = {}
    for partition, offset in offsets.items():  # in order: what comes first fills the answer first
        by_topic.setdefault(partition.topic, []).append(
            FetchRequest.FetchTopic.FetchPartition(
                partition=partition.partition,
                current_leader_epoch=-1,
                fetch_offset=offset,
                last_fetched_epoch=-1,
                partition_max_bytes=_PARTITION_BYTES,
            )
        )
    return FetchRequest(
        max_wait_ms=wait_ms,
        min_bytes=1,
        max_bytes=_FETCH_BYTES,
        isolation_level=0,
        session_id=0,
        session_epoch=-1,
        topics=[FetchRequest.FetchTopic(topic=topic, partitions=parts) for topic, parts in by_topic.items()],
        forgotten_topics_data=[],
        rack_id="",
        min_version=4,
        max_version=_FETCH_VERSION,
    )
