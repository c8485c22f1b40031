"""Materialization, the Gateway's pure core: changed rows in; whole entities, budget states and dead letters out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from catalog import Catalog, Column, InvalidValue, LaneName, Table, ValueType
from catalog.values import check, check_source, encode, refused, source_encoder
from gateway._exceptions import SchemaMismatch
from gateway.feed import Change
from gateway.streams import STAGE, Entity, EntityStream, Published, Updates, streams_of
from messaging import OutRecord
from messaging.dead_letters import dead_letter, out_record
from messaging.headers import lane_of, new_header
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import CHANGE_FEED, LANE_NUMBER

MAX_KEY_BYTES = 190
"""The Repo takes row keys of 400 bytes, and an index row holds two keys with a separator."""

MAX_UPDATE_BYTES = 4 << 20
"""An entity with more than this is an accident; the log takes records of 8 MiB."""

_NONE: frozenset[str] = frozenset()

_MAX_QUOTED = 400
"""Characters of an offending value or message that a dead letter quotes."""


@dataclass(frozen=True, slots=True)
class RowQuery:
    """Read `columns` of the rows of an ads DB table whose `key` is one of `keys`."""

    source_table: str
    key: str
    columns: tuple[str, ...]
    keys: tuple[int | str, ...]


class RowSource(Protocol):
    """Reads rows of the ads DB."""

    def rows(self, queries: Sequence[RowQuery]) -> Iterator[tuple[RowQuery, object, Sequence[object]]]:
        """Yield (query, key, column values) for every row found, all of one state of the database.

        Values are as the database holds them, invalid UTF-8 as bytes. Raises AdsDbUnavailable, and SchemaMismatch
        naming the tables that do not have what a query names.
        """


@dataclass(slots=True)
class Materialized:
    """What a batch of changes became."""

    published: list[Published] = field(default_factory=list)
    dead_letters: list[pb.DeadLetter] = field(default_factory=list)

    @property
    def updates(self) -> list[pb.EntityUpdate]:
        """The updates that feed the Repo."""
        return [
            p.message for p in self.published if p.stream == Updates.name and isinstance(p.message, pb.EntityUpdate)
        ]

    @property
    def budgets(self) -> list[pb.BudgetState]:
        """The budget states of all streams."""
        return [p.message for p in self.published if isinstance(p.message, pb.BudgetState)]

    def counts(self) -> Counter[str]:
        """Return stream -> messages."""
        return Counter(p.stream for p in self.published)

    def records(self, entered_us: int) -> list[OutRecord]:
        """Return the log records; `entered_us` is when the Gateway took the changes."""
        return [*(p.record(entered_us) for p in self.published), *(out_record(letter) for letter in self.dead_letters)]


@dataclass(frozen=True, slots=True)
class _Read:
    """What is read of one ads DB table for a Repo table: position in the row -> columns that come from there."""

    source_table: str
    key: str
    names: tuple[str, ...]
    columns: tuple[tuple[Column, ...], ...]
    encoders: tuple[tuple[tuple[Column, Callable[[Any], bytes]], ...], ...]
    """The same columns, each with what checks and encodes its values."""
    collected: bool
    """Any number of rows belong to an entity, and its columns are lists."""


class _Entity(msgspec.Struct):
    table: Table
    row: str
    key: int | str
    last: Change
    origin_us: int
    lane: LaneName
    header: pb.Header
    seen: set[str] = set()
    values: dict[str, bytes] = {}
    collected: dict[str, list[tuple[object, ...]]] = {}
    """Ads DB table of a collection -> its rows."""
    problems: dict[str, tuple[Column, str, str]] = {}

    def forget(self) -> None:
        """Forget what was read."""
        for held in (self.seen, self.values, self.collected, self.problems):
            held.clear()


class Materializer:
    """Turns changes into whole entities, as one catalogue declares them. Has no state; safe for threads."""

    def __init__(self, catalog: Catalog, streams: Sequence[EntityStream] | None = None) -> None:
        """Prepare what has to be read for every entity table; `streams` are the catalogue's, or those given."""
        self.streams = tuple(streams_of(catalog) if streams is None else streams)
        self._tables = catalog.source_tables()
        self._reads: dict[str, tuple[_Read, ...]] = {}
        for table in catalog.entity_tables():
            self._reads[table.name] = tuple(
                self._read_of(table, source_table, key) for source_table, key in _sources(table).items()
            )

    def materialize(self, changes: Iterable[Change], source: RowSource) -> Materialized:
        """Read every changed entity once, whole, and return its updates; `changes` are in order of seq.

        Several changes of one entity become one update with the highest seq as version and the earliest time as
        origin. A value that its column does not allow is sent as refused with a dead letter: it counts neither as the
        value before nor as none; an entity whose table lacks a declared column is left as it was, with a dead letter.
        """
        result = Materialized()
        entities = self._group(changes, result)
        while entities:
            try:
                self._read(entities, source)
                break
            except SchemaMismatch as error:
                entities = self._without_broken(entities, error, result)
                for entity in entities.values():
                    entity.forget()
        for entity in entities.values():
            self._emit(entity, result)
        return result

    def _group(self, changes: Iterable[Change], result: Materialized) -> dict[tuple[str, str], _Entity]:
        entities: dict[tuple[str, str], _Entity] = {}
        for change in changes:
            found = self._tables.get(change.source_table)
            if found is None:
                text = f"ads DB table {change.source_table!r} is not in the catalogue; add it, or drop its triggers"
                result.dead_letters.append(_letter(change, "unknown_table", text))
                continue
            table = found[0]
            if change.key is None and table.source is not None and change.source_table in table.source.collections:
                continue  # it belongs to no entity
            lane = LaneName.LOW if change.backfill else table.lane
            row, key, fault = _row_key(table, change.key)
            if fault:
                text = f"the key of a row of {change.source_table!r} {fault}; correct it in the ads DB"
                header = new_header(lane, change.changed_at_us, change.trace_id or None)
                result.dead_letters.append(_letter(change, "bad_key", text, header, table.name))
                continue
            entity = entities.get((table.name, row))
            if entity is None:
                header = new_header(lane, change.changed_at_us, change.trace_id or None)
                entities[table.name, row] = _Entity(table, row, key, change, change.changed_at_us, lane, header)
                continue
            if change.seq >= entity.last.seq:
                entity.last = change
            entity.origin_us = min(entity.origin_us, change.changed_at_us)
            if not change.backfill:
                entity.lane = table.lane
                entity.header.lane = LANE_NUMBER[entity.lane]
            entity.header.origin_us = entity.origin_us
        return entities

    def _read(self, entities: Mapping[tuple[str, str], _Entity], source: RowSource) -> None:
        keys: dict[str, list[int | str]] = {}
        for entity in entities.values():
            keys.setdefault(entity.table.name, []).append(entity.key)
        reads: dict[RowQuery, tuple[str, _Read]] = {}
        for name, wanted in keys.items():
            for read in self._reads[name]:
                reads[RowQuery(read.source_table, read.key, read.names, tuple(wanted))] = (name, read)
        # Row by row: a value of many megabytes is judged and dropped before the next one is read.
        last: RowQuery | None = None
        for query, key, values in source.rows(list(reads)):
            if query is not last:  # a query has hundreds of keys: looking it up for every row would hash them all
                name, read = reads[query]
                last = query
            found = entities.get((name, str(key)))
            if found is None:  # a collation may find more than was asked for
                continue
            if read.collected:
                found.collected.setdefault(read.source_table, []).append(tuple(values))
            else:
                _take(found, read, values)
        for entity in entities.values():
            for read in self._reads[entity.table.name]:
                if read.collected:
                    _collect(entity, read)

    def _without_broken(
        self, entities: Mapping[tuple[str, str], _Entity], error: SchemaMismatch, result: Materialized
    ) -> dict[tuple[str, str], _Entity]:
        kept: dict[tuple[str, str], _Entity] = {}
        for key, entity in entities.items():
            if error.source_tables.isdisjoint(_sources(entity.table)):
                kept[key] = entity
                continue
            text = f"{error}; {entity.table.name} {entity.row} stays as it was: mend the schema, then replay this"
            letter = _letter(entity.last, "schema_mismatch", text, entity.header, entity.table.name, entity.row)
            result.dead_letters.append(letter)
        if len(kept) == len(entities):
            raise error
        return kept

    def _emit(self, entity: _Entity, result: Materialized) -> None:
        source = entity.table.source
        deleted = source is None or source.table not in entity.seen
        if not deleted:
            values = entity.values
            while sum(map(len, values.values())) > MAX_UPDATE_BYTES:
                name = max(values, key=lambda n: len(values[n]))
                text = f"{len(values[name])} bytes, but an entity may have {MAX_UPDATE_BYTES} in all"
                entity.problems[name] = (entity.table.columns[name], "entity_too_large", text)
                values[name] = refused("entity_too_large")  # null would lift the condition that it puts
        whole = Entity(
            table=entity.table,
            row=entity.row,
            version=entity.last.seq,
            header=entity.header,
            deleted=deleted,
            values=entity.values,
            invalid=frozenset(entity.problems) if entity.problems else _NONE,
        )
        for stream in self.streams:
            result.published.extend(stream.publish(whole))
        for column, reason, text in entity.problems.values() if not deleted else ():
            error = (
                f"{column.source} of row {entity.row} is refused: {text[:_MAX_QUOTED]}; correct the value in the ads DB"
            )
            letter = _letter(entity.last, reason, error, entity.header, entity.table.name, entity.row)
            result.dead_letters.append(letter)

    @staticmethod
    def _read_of(table: Table, source_table: str, key: str) -> _Read:
        by_name: dict[str, list[Column]] = {}
        for column in table.columns.values():
            if column.source_table == source_table:
                by_name.setdefault(str(column.source_column), []).append(column)
        collected = table.source is not None and source_table in table.source.collections
        encoders = tuple(tuple((column, source_encoder(column)) for column in columns) for columns in by_name.values())
        return _Read(source_table, key, tuple(by_name), tuple(map(tuple, by_name.values())), encoders, collected)


def change_of(message: pb.Change, position: int) -> Change:
    """Return the change that an RPC names; `position` stands in where the message has none."""
    return Change(
        seq=message.position or position,
        source_table=message.source_table,
        key=message.key,
        changed_at_us=message.header.origin_us,
        backfill=lane_of(message.header) is LaneName.LOW and message.header.lane != pb.LANE_UNSPECIFIED,
        trace_id=message.header.trace_id,
    )


def _sources(table: Table) -> dict[str, str]:
    return table.source.tables() if table.source is not None else {}


def _take(entity: _Entity, read: _Read, values: Sequence[object]) -> None:
    twice = read.source_table in entity.seen
    entity.seen.add(read.source_table)
    taken = entity.values
    for columns, value in zip(read.encoders, values, strict=True):
        for column, encoded in columns:
            try:
                if twice:
                    text = f"several rows of {read.source_table!r} have this key; keep one"
                    raise InvalidValue(column.ref, "several_rows", text)
                taken[column.name] = encoded(value)
            except InvalidValue as error:
                entity.problems[column.name] = (column, error.reason, str(error))
                taken[column.name] = refused(error.reason)


def _collect(entity: _Entity, read: _Read) -> None:
    """Turn the rows of a collection into lists, in an order that depends on nothing but the rows."""
    rows = sorted(entity.collected.get(read.source_table, ()), key=_order)
    for place, columns in enumerate(read.columns):
        for column in columns:
            try:
                element = column.element()
                checked = [check_source(element, row[place]) for row in rows]
                values = check(column, [value for value in checked if value is not None])
                entity.values[column.name] = encode(values) if values else b""
            except InvalidValue as error:
                entity.problems[column.name] = (column, error.reason, str(error))
                entity.values[column.name] = refused(error.reason)


def _order(row: Sequence[Any]) -> tuple[tuple[bool, str, Any], ...]:
    """Sort rows by their declared columns, nulls last; the type's name keeps apart what cannot be compared."""
    return tuple((value is None, type(value).__name__, value) for value in row)


def _row_key(table: Table, key: object) -> tuple[str, int | str, str]:
    """Return (row, key to look up, fault)."""
    if type(key) is int and table.key_type is ValueType.INT and -(1 << 63) <= key < 1 << 63:
        return str(key), key, ""
    if isinstance(key, bytes) or not isinstance(key, int | str) or isinstance(key, bool):
        return "", "", f"is {'null' if key is None else 'not text: ' + repr(key)[:80]}"
    row = str(key)
    if table.key_type is ValueType.INT:
        digits = row.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and str(int(digits[:20])) == digits and len(digits) < 20):
            return "", "", f"must be a whole number, but is {row[:80]!r}"
        key = int(row)
        if not -(1 << 63) <= key < 1 << 63:
            return "", "", f"does not fit 64 bits: {row}"
    if not row:
        return "", "", "is empty"
    if any(c < " " for c in row):
        return "", "", f"has control characters: {row[:80]!r}"
    if len(row.encode(errors="surrogatepass")) > MAX_KEY_BYTES:
        return "", "", f"has more than {MAX_KEY_BYTES} bytes: {row[:80]!r}"
    return row, key, ""


def _letter(
    change: Change, reason: str, error: str, header: pb.Header | None = None, table: str = "", row: str = ""
) -> pb.DeadLetter:
    key = change.key if isinstance(change.key, str | int) else repr(change.key)
    message = pb.Change(
        header=header, source_table=change.source_table, key=_printable(str(key)[:1024]), position=change.seq
    )
    letter = dead_letter(
        STAGE,
        reason,
        _printable(error),
        header=header,
        table=table,
        row=row or _printable(str(key)[:200]),
        detail=f"change {change.seq} of {change.source_table}",
        payload=message.SerializeToString(),
        payload_type="Change",
    )
    letter.topic, letter.offset = CHANGE_FEED, change.seq
    return letter


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
