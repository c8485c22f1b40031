"""Streams: what the Gateway publishes of an entity that it has materialized, to which topic, in which lane.

A stream is a table, a filter, columns and a topic, declared in the catalogue (`streams:`) or made as a `Stream` here.
The updates that feed the Repo and the budgets' short cut to serving are two of them. A stream never looks at the ads
DB: every stream of a batch is made from the one read that materializes its entities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from catalog import Catalog, Column, Message, Stream, Table
from catalog.values import decode
from gateway._exceptions import MissingTopic
from messaging import Log, OutRecord, UnknownTopic
from messaging.headers import lane_of, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import LANE_NUMBER, PARTITIONS, UPDATES

STAGE = "gateway"
SOURCE = "ads_db"

OutMessage = pb.EntityUpdate | pb.BudgetState


class Entity(msgspec.Struct, frozen=True):
    """A whole entity as one read found it."""

    table: Table
    row: str
    version: int
    header: pb.Header
    deleted: bool
    values: Mapping[str, bytes]
    """Column -> encoded value; null ones are empty or not there, invalid ones marked as refused."""
    invalid: frozenset[str]
    """Columns whose value is not what the catalogue declares."""


class Published(msgspec.Struct, frozen=True):
    """One message on its way to a topic."""

    stream: str
    topic: str
    key: str
    message: OutMessage

    def record(self, entered_us: int) -> OutRecord:
        """Return the log record, with this stage's times in its header."""
        hop = self.message.header.hops.add()
        hop.stage = STAGE
        hop.entered_us = entered_us
        hop.left_us = now_us()
        return OutRecord(self.topic, self.key, self.message.SerializeToString())


class EntityStream(Protocol):
    """What a stream does. Pure: it has no state and reads nothing but the entity."""

    @property
    def name(self) -> str:
        """Name in metrics."""

    @property
    def topics(self) -> Mapping[str, int]:
        """Topics that it publishes to -> their partitions."""

    def publish(self, entity: Entity) -> Iterable[Published]:
        """Return what is published of one entity; nothing if the stream does not concern it."""


class Updates:
    """The updates that feed the Repo: every column of every entity table, by lane."""

    name = "updates"

    def __init__(self, catalog: Catalog) -> None:
        self.topics: Mapping[str, int] = {topic: PARTITIONS[topic] for topic in UPDATES.values()}
        self._columns = {t.name: {c.name: c for c in _source_columns(t)} for t in catalog.entity_tables()}

    def publish(self, entity: Entity) -> Iterable[Published]:
        """Return the whole entity, or that it is deleted."""
        update = _entity_update(entity, self._columns[entity.table.name], entity.deleted)
        key = f"{entity.table.name}/{entity.row}"
        yield Published(self.name, UPDATES[lane_of(entity.header)], key, update)


class DeclaredStream:
    """A stream as the catalogue declares it: an entity that does not match its filter is published as deleted."""

    def __init__(self, catalog: Catalog, declared: Stream) -> None:
        self.name = declared.name
        self.topics: Mapping[str, int] = {declared.topic: declared.partitions}
        self._declared = declared
        table = catalog.tables[declared.table]
        self._columns = {name: table.columns[column] for name, column in declared.columns.items()}
        self._judged = frozenset((*declared.columns.values(), *declared.where))
        self._required = tuple(declared.columns[name] for name in declared.required)
        self._message = MESSAGES[declared.message]

    def publish(self, entity: Entity) -> Iterable[Published]:
        """Return the entity's columns under the stream's names, or that it is (no longer) among the stream's."""
        declared = self._declared
        if entity.table.name != declared.table:
            return
        message = self._message(entity, self._columns, entity.deleted or not self._lets_in(entity))
        if declared.lane is not None:
            message.header.lane = LANE_NUMBER[declared.lane]
        yield Published(self.name, declared.topic, entity.row, message)

    def _lets_in(self, entity: Entity) -> bool:
        """Say whether every value is valid, the required ones are there, and the filter holds."""
        if not self._judged.isdisjoint(entity.invalid) or not all(entity.values.get(name) for name in self._required):
            return False
        return all(decode(entity.values.get(name)) in allowed for name, allowed in self._declared.where.items())


def streams_of(catalog: Catalog) -> tuple[EntityStream, ...]:
    """Return the updates, and the streams that the catalogue declares."""
    return (Updates(catalog), *(DeclaredStream(catalog, stream) for stream in catalog.streams.values()))


def ensure_stream_topics(log: Log, streams: Iterable[EntityStream]) -> None:
    """Create the topics of streams that are missing (embedded log), or check that they are there (Kafka).

    Raises MissingTopic naming the command that creates it, and LogError for one with another number of partitions.
    """
    for stream in streams:
        for topic, partitions in stream.topics.items():
            try:
                log.ensure_topic(topic, PARTITIONS.get(topic, partitions))
            except UnknownTopic as error:
                raise MissingTopic(
                    f"stream {stream.name} has no topic {topic}; create it by `./adsindex topics apply` (with "
                    "--catalog FILE if that is not yet the home's catalogue)"
                ) from error


def _source_columns(table: Table) -> tuple[Column, ...]:
    return tuple(column for column in table.columns.values() if column.source_table is not None)


def _entity_update(entity: Entity, columns: Mapping[str, Column], deleted: bool) -> pb.EntityUpdate:
    # Field by field: protobuf takes more than twice as long for keyword arguments.
    update = pb.EntityUpdate()
    update.header.CopyFrom(entity.header)
    update.table = entity.table.name
    update.row = entity.row
    update.source_version = entity.version
    update.source = SOURCE
    update.deleted = deleted
    if not deleted:
        values, add = entity.values, update.columns.add
        for name, column in columns.items():
            added = add()
            added.name = name
            added.value = values.get(column.name, b"")
    return update


def _budget_state(entity: Entity, columns: Mapping[str, Column], deleted: bool) -> pb.BudgetState:
    """Return a budget; one that is missing or not what it must be is deleted: nothing is spent on a guess."""
    state = pb.BudgetState(header=entity.header, campaign_id=entity.row, version=entity.version, deleted=deleted)
    if not deleted:
        for name, column in columns.items():
            if (value := decode(entity.values.get(column.name))) is not None:
                setattr(state, name, value)
    return state


MESSAGES: Mapping[Message, Callable[[Entity, Mapping[str, Column], bool], OutMessage]] = {
    Message.ENTITY: _entity_update,
    Message.BUDGET: _budget_state,
}
"""How an entity becomes a message: (entity, name -> column, deleted)."""
