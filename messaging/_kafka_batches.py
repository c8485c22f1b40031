"""Publishing to Kafka in whole batches: one request per leader and publish, each partition's records in one batch.

kafka-python's producer takes records one by one, for applications that have one at a time: some 70 us of processor time
for each. Here all records of a publish are there at once. The batches are encoded by aiokafka's compiled builder, which
faust-streaming brings along; kafka-python's event loop sends them.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from kafka import errors
from kafka.protocol.producer import InitProducerIdRequest, ProduceRequest
from kafka.structs import TopicPartition

from messaging._exceptions import LogUnavailable, RecordTooLarge
from messaging._kafka_wire import APPENDED_US, Wire
from messaging._limits import MAX_RECORD_BYTES
from messaging.kafka_settings import KafkaSettings

REQUEST_BYTES = MAX_RECORD_BYTES + (1 << 20)
"""Of a produce request: the largest record with its headers and batch. Topics are created with the same limit."""

BATCH_BYTES = 512 << 10
"""Below the 1 MiB that a broker takes of topics that we did not create. A larger record is a batch of its own."""

_RECORD_OVERHEAD = 64
"""More than lengths, offset, timestamp and our header add to a record's key and value."""

_VERSION = 9
"""Of the produce request: from 13 on topics are named by id, and 9 is the first with flexible fields."""

_RETRY_S = 0.1
_PASSING = (errors.RetriableError, errors.UnknownBrokerIdError)
"""A broker that restarts, a leader that moves, an answer that was lost: the same batch is sent again."""

_Item = tuple[bytes, bytes]


@dataclass(slots=True)
class _Session:
    """A connection with its producer id; `sequences` is the number of the next record of each partition."""

    wire: Wire
    producer_id: int
    epoch: int
    sequences: dict[TopicPartition, int]


class Producer:
    """Idempotent and safe for threads: a batch sent again because its answer was lost is not appended twice.

    After a failure it starts anew with another producer id, since a gap in sequence numbers would stop it for good.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._session: _Session | None = None

    def send(self, records: Sequence[tuple[str, int, bytes, bytes]]) -> None:
        """Append (topic, partition, key, value) records and wait until all in-sync replicas have them.

        Records of one partition keep their order, also among publishes of several threads, which go one by one.
        Raises RecordTooLarge, and LogUnavailable when a broker did not answer within publish_timeout_ms: some may have
        been appended.
        """
        with self._lock:
            try:
                session = self._open()
                timestamp_us = time.time_ns() // 1000
                for batches in _rounds(records):
                    encoded = {at: _encode(session, at, items, timestamp_us) for at, items in batches.items()}
                    session.wire.net.run(self._produce, session, encoded)
                    for at, items in batches.items():
                        session.sequences[at] += len(items)
            except errors.MessageSizeTooLargeError as error:
                self._discard()
                raise RecordTooLarge(
                    f"the broker refuses a record: {error}; give the topic max.message.bytes={REQUEST_BYTES} "
                    "(`./adsindex topics apply`)"
                ) from error
            except errors.KafkaError as error:
                self._discard()
                raise LogUnavailable(
                    f"cannot publish at {self._settings.place}: {error}; it is tried for publish_timeout_ms="
                    f"{self._settings.publish_timeout_ms}; publish again when the brokers are back"
                ) from error
            except OSError as error:
                self._discard()
                raise LogUnavailable(f"cannot publish at {self._settings.place}: {error}") from error
            except BaseException:
                # Some batches may have been appended: a later record with the numbers of theirs would count as a repeat
                # of it, acknowledged and lost.
                self._discard()
                raise

    def close(self) -> None:
        """Close the connections; safe to call twice."""
        with self._lock:
            self._discard()

    def _open(self) -> _Session:
        if self._session is None:
            wire = Wire(self._settings, "adsindex-producer", "")
            try:
                answer = wire.net.run(self._producer_id, wire)
            except BaseException:
                wire.close()
                raise
            self._session = _Session(wire, answer.producer_id, answer.producer_epoch, defaultdict(int))
        return self._session

    def _discard(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.wire.close()

    async def _producer_id(self, wire: Wire) -> Any:
        deadline = self._deadline()
        while True:
            request = InitProducerIdRequest(
                transactional_id=None,
                transaction_timeout_ms=0,
                producer_id=-1,
                producer_epoch=-1,
                max_version=4,
            )
            try:
                answer = await wire.manager.send(request)
                code = errors.for_code(answer.error_code)
                if code is errors.NoError:
                    return answer
                raise code("no producer id")
            except _PASSING:
                if time.monotonic() >= deadline:
                    raise
                await wire.net.sleep(_RETRY_S)

    async def _produce(self, session: _Session, batches: Mapping[TopicPartition, bytes]) -> None:
        """Send one batch per partition until every one of them is acknowledged."""
        deadline = self._deadline()
        left = dict(batches)
        problem: errors.KafkaError = errors.KafkaTimeoutError("no leader is known")
        while left:
            cluster = session.wire.manager.cluster
            sent = []
            for node, of_node in (await _leaders(session.wire, left)).items():
                sent.append(session.wire.manager.send(_request(of_node, self._settings), node_id=node))
            for future in sent:
                try:
                    answer = await session.wire.manager.wait_for(future, self._settings.publish_timeout_ms)
                except _PASSING as error:
                    problem = error
                    continue
                for topic in answer.responses:
                    for part in topic.partition_responses:
                        at = TopicPartition(topic.name, part.index)
                        code = errors.for_code(part.error_code)
                        if code in (errors.NoError, errors.DuplicateSequenceNumberError):
                            left.pop(at, None)
                            continue
                        problem = code(f"{at.topic}[{at.partition}]: {part.error_message or code.__name__}")
                        if not issubclass(code, _PASSING):
                            raise problem
            if left:
                if time.monotonic() >= deadline:
                    raise problem
                cluster.request_update()
                await session.wire.net.sleep(_RETRY_S)

    def _deadline(self) -> float:
        return time.monotonic() + self._settings.publish_timeout_ms / 1000


def _rounds(records: Sequence[tuple[str, int, bytes, bytes]]) -> list[dict[TopicPartition, list[_Item]]]:
    """Cut records into rounds of at most one batch per partition and REQUEST_BYTES in all; order within a partition
    is the order of rounds."""
    rounds: list[dict[TopicPartition, list[_Item]]] = []
    sizes: list[int] = []
    state: dict[TopicPartition, tuple[int, int]] = {}  # partition -> round of its last batch, bytes of that batch
    names: dict[tuple[str, int], TopicPartition] = {}
    for topic, partition, key, value in records:
        at = names.get((topic, partition))
        if at is None:
            at = names[topic, partition] = TopicPartition(topic, partition)
        size = len(key) + len(value) + _RECORD_OVERHEAD
        turn, used = state.get(at, (0, 0))
        if used and used + size > BATCH_BYTES:
            turn, used = turn + 1, 0
        while turn < len(rounds) and sizes[turn] and sizes[turn] + size > REQUEST_BYTES:
            turn, used = turn + 1, 0
        if turn == len(rounds):
            rounds.append({})
            sizes.append(0)
        state[at] = turn, used + size
        sizes[turn] += size
        batch = rounds[turn].get(at)
        if batch is None:
            rounds[turn][at] = [(key, value)]
        else:
            batch.append((key, value))
    return rounds


def _encode(session: _Session, at: TopicPartition, items: Sequence[_Item], timestamp_us: int) -> bytes:
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=False,
        producer_id=session.producer_id,
        producer_epoch=session.epoch,
        base_sequence=session.sequences[at] & 0x7FFFFFFF,  # sequence numbers begin again at 0 after 2^31 - 1
        batch_size=REQUEST_BYTES + BATCH_BYTES,
    )
    headers = [(APPENDED_US, timestamp_us.to_bytes(8, "big"))]
    timestamp_ms = timestamp_us // 1000
    for offset, (key, value) in enumerate(items):
        if builder.append(offset, timestamp_ms, key, value, headers) is None:
            raise errors.MessageSizeTooLargeError(f"{len(key) + len(value)} bytes")
    return bytes(builder.build())


def _request(batches: Mapping[TopicPartition, bytes], settings: KafkaSettings) -> ProduceRequest:
    topic_type = ProduceRequest.TopicProduceData
    by_topic: dict[str, list[Any]] = defaultdict(list)
    for at, records in batches.items():
        by_topic[at.topic].append(topic_type.PartitionProduceData(index=at.partition, records=records))
    return ProduceRequest(
        transactional_id=None,
        acks=-1,
        timeout_ms=min(10_000, settings.publish_timeout_ms),
        topic_data=[topic_type(name=topic, partition_data=parts) for topic, parts in by_topic.items()],
        min_version=3,
        max_version=_VERSION,
    )


async def _leaders(wire: Wire, batches: Mapping[TopicPartition, bytes]) -> dict[Any, dict[TopicPartition, bytes]]:
    """Group batches by the broker that leads their partition; partitions without a known leader are left out."""
    cluster = wire.manager.cluster
    for attempt in range(2):
        grouped: dict[Any, dict[TopicPartition, bytes]] = defaultdict(dict)
        for at, records in batches.items():
            node = cluster.leader_for_partition(at)
            if node is not None and node != -1:
                grouped[node][at] = records
        if sum(map(len, grouped.values())) == len(batches) or attempt:
            break
        update = cluster.set_topics(cluster._topics | {at.topic for at in batches})
        if update.is_done:
            update = cluster.request_update()
        try:
            await wire.manager.wait_for(update, 1_000)
        except _PASSING:
            break
    return grouped
