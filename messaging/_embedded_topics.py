"""Topics and partitions of the embedded log: names and places of keys, and what a read transaction shows of them."""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from messaging._embedded_env import OFFSETS, TOPIC, U64, Environment, Write
from messaging._exceptions import LogError, UnknownTopic
from messaging._limits import check_name, check_position
from messaging.api import Position, Record

if TYPE_CHECKING:
    from messaging._embedded_env import Cursor, Txn

_HEAD = struct.Struct(">QH")
_MAX_ID = 0xFFFF


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic: its number in keys, and the key prefix of each partition."""

    name: str
    id: int
    prefixes: tuple[bytes, ...]

    @property
    def partitions(self) -> int:
        """Number of partitions."""
        return len(self.prefixes)

    def prefix(self, partition: int) -> bytes:
        """Return the prefix of a partition's keys; raises UnknownTopic when there is no such partition."""
        if not 0 <= partition < len(self.prefixes):
            raise UnknownTopic(f"{self.name} has partitions 0 to {len(self.prefixes) - 1}, there is no {partition}")
        return self.prefixes[partition]


class Partitions:
    """The log's topics, and views of their partitions."""

    def __init__(self, env: Environment) -> None:
        self.env = env
        self._topics: dict[str, Topic] = {}

    def topic(self, name: str) -> Topic:
        """Return a topic; raises UnknownTopic."""
        if topic := self._topics.get(name):
            return topic
        self.all()
        if topic := self._topics.get(name):
            return topic
        raise UnknownTopic(
            f"there is no topic {name!r} in the log at {self.env.path} (it has {', '.join(self._topics) or 'none'}); "
            "create it with ensure_topic, or start the stages once"
        )

    def all(self) -> list[Topic]:
        """Return all topics, sorted by name, those made by other processes included."""
        with self.env.reading() as txn, txn.cursor(self.env.topics) as cursor:
            found = {name.decode(): _topic(name.decode(), value) for name, value in cursor}
        for name, topic in found.items():
            self._topics.setdefault(name, topic)
        return [self._topics[name] for name in sorted(found)]

    def ensure(self, name: str, partitions: int) -> None:
        """Create a topic if missing. Raises LogError if it exists with another number of partitions."""
        check_name("topic", name)
        if not 1 <= partitions <= _MAX_ID:
            raise LogError(f"topic {name} needs 1 to {_MAX_ID} partitions, not {partitions}")

        def create(txn: Txn) -> bytes:
            if value := txn.get(name.encode(), db=self.env.topics):
                return bytes(value)
            topic_id = txn.stat(self.env.topics)["entries"]  # topics are never removed
            if topic_id > _MAX_ID:
                raise LogError(f"cannot create topic {name}: the log has {topic_id} topics, which is its limit")
            value = TOPIC.pack(topic_id, partitions)
            txn.put(name.encode(), value, db=self.env.topics)
            for prefix in _topic(name, value).prefixes:
                txn.put(prefix, OFFSETS.pack(0, 0), db=self.env.offsets)
            return value

        with self.env.reading() as txn:
            value = txn.get(name.encode(), db=self.env.topics)
        found = TOPIC.unpack(value or self.env.write(create))[1]
        if found != partitions:
            raise LogError(
                f"topic {name} has {found} partitions, not {partitions}; the number cannot change, because keys would "
                "move to other partitions and lose their order"
            )

    @contextlib.contextmanager
    def reading(self) -> Iterator[View]:
        """Open a view of one consistent state; keep it short."""
        with self.env.reading() as txn, txn.cursor(self.env.records) as cursor:
            yield View(self.env, txn, cursor)

    def store(self, positions: Sequence[Position]) -> None:
        """Store positions durably."""
        if positions:
            self.env.append(Write(positions=self.encode(positions)))

    def encode(self, positions: Sequence[Position]) -> dict[bytes, bytes]:
        """Return the stored form of positions; raises UnknownTopic and LogError for what cannot be stored."""
        encoded: dict[bytes, bytes] = {}
        for position in positions:
            prefix = self.topic(position.topic).prefix(position.partition)
            check_position(position)
            encoded[position_key(position.group, prefix)] = U64.pack(position.offset) + position.metadata.encode()
        return encoded


class View:
    """One consistent state of the log."""

    def __init__(self, env: Environment, txn: Txn, cursor: Cursor) -> None:
        self._env, self._txn, self._cursor = env, txn, cursor

    def bounds(self, topic: Topic, partition: int) -> tuple[int, int]:
        """Return the oldest offset kept and the offset of the next record."""
        return self._env.bounds(self._txn, topic.prefix(partition))

    def committed(self, group: str, topic: Topic, partition: int) -> int:
        """Return the group's next offset to read; 0 where it never committed."""
        value = self._txn.get(position_key(group, topic.prefix(partition)), db=self._env.positions)
        return int(U64.unpack_from(value)[0]) if value else 0

    def metadata(self, group: str, topic: Topic, partition: int) -> str:
        """Return what the group stored with its position; "" where there is nothing."""
        value = self._txn.get(position_key(group, topic.prefix(partition)), db=self._env.positions)
        return value[U64.size :].decode() if value else ""

    def records(
        self, topic: Topic, partition: int, offset: int, count: int, *, max_bytes: int, repeated_below: int = 0
    ) -> tuple[list[Record], int]:
        """Return up to `count` records from `offset`, which must be within bounds, and their size in bytes.

        Ends after the record that reaches `max_bytes`. Records below `repeated_below` are marked as maybe redelivered.
        """
        prefix, name = topic.prefix(partition), topic.name
        records: list[Record] = []
        size = 0
        self._cursor.set_range(prefix + U64.pack(offset))
        for place, (key, value) in enumerate(itertools.islice(self._cursor.iternext(), count), offset):
            if key != prefix + U64.pack(place):
                raise self._env.damaged(f"record {place} of {name}[{partition}] is missing")
            appended_us, key_length = _HEAD.unpack_from(value)
            body = _HEAD.size + key_length
            records.append(
                Record(
                    name,
                    partition,
                    place,
                    value[_HEAD.size : body].decode("utf-8", "surrogatepass"),
                    value[body:],
                    appended_us,
                    place < repeated_below,
                )
            )
            size += len(value)
            if size >= max_bytes:
                break
        return records, size


def position_key(group: str, prefix: bytes) -> bytes:
    """Return the key of a group's position; raises LogError for a group name that cannot be one."""
    return check_name("group", group).encode() + b"\0" + prefix


def split_position_key(key: bytes) -> tuple[str, int]:
    """Return the group and the topic id of a position's key."""
    return key[:-5].decode(), TOPIC.unpack(key[-4:])[0]


def _topic(name: str, value: bytes) -> Topic:
    topic_id, partitions = TOPIC.unpack(value)
    return Topic(name, topic_id, tuple(TOPIC.pack(topic_id, partition) for partition in range(partitions)))
