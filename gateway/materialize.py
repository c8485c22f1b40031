"""Materialization, the Gateway's pure core: changed rows in; whole entities, budget states and dead letters out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from catalog import Catalog, Column, InvalidValue, LaneName, Table, ValueType
from catalog.values import check, decode, encode, refused
from gateway._exceptions import SchemaMismatch
from gateway.feed import Change
from messaging import OutRecord
from messaging.dead_letters import dead_letter, out_record
from messaging.headers import lane_of, leave, new_header
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import BUDGETS, CHANGE_FEED, UPDATES

STAGE = "gateway"
SOURCE = "ads_db"

MAX_KEY_BYTES = 190
"""The Repo takes row keys of 400 bytes, and an index row holds two keys with a separator."""

MAX_UPDATE_BYTES = 4 << 20
"""An entity with more than this is an accident; the log takes records of 8 MiB."""

_MAX_QUOTED = 400
"""Characters of an offending value or message that a dead letter quotes."""

BUDGET_COLUMNS = {
    "budget_daily_micros": "daily_micros",
    "budget_lifetime_micros": "lifetime_micros",
    "spent_today_micros": "spent_today_micros",
    "spent_total_micros": "spent_total_micros",
    "budget_currency": "currency",
}
"""Columns that, declared together on one table, make its rows' budget state: column -> field of BudgetState."""


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

    updates: list[pb.EntityUpdate] = field(default_factory=list)
    budgets: list[pb.BudgetState] = field(default_factory=list)
    dead_letters: list[pb.DeadLetter] = field(default_factory=list)

    def records(self, entered_us: int) -> list[OutRecord]:
        """Return the log records; `entered_us` is when the Gateway took the changes."""
        records: list[OutRecord] = []
        for update in self.updates:
            update.header.CopyFrom(leave(update.header, STAGE, entered_us))
            topic = UPDATES[lane_of(update.header)]
            records.append(OutRecord(topic, f"{update.table}/{update.row}", update.SerializeToString()))
        for budget in self.budgets:
            budget.header.CopyFrom(leave(budget.header, STAGE, entered_us))
            records.append(OutRecord(BUDGETS, budget.campaign_id, budget.SerializeToString()))
        records.extend(out_record(letter) for letter in self.dead_letters)
        return records


@dataclass(frozen=True, slots=True)
class _Read:
    """What is read of one ads DB table for a Repo table: position in the row -> columns that come from there."""

    source_table: str
    key: str
    names: tuple[str, ...]
    columns: tuple[tuple[Column, ...], ...]


@dataclass(slots=True)
class _Entity:
    table: Table
    row: str
    key: int | str
    last: Change
    origin_us: int
    lane: LaneName
    header: pb.Header
    seen: set[str] = field(default_factory=set)
    values: dict[str, bytes] = field(default_factory=dict)
    problems: dict[str, tuple[Column, str, str]] = field(default_factory=dict)


class Materializer:
    """Turns changes into whole entities, as one catalogue declares them. Has no state; safe for threads."""

    def __init__(self, catalog: Catalog) -> None:
        """Prepare what has to be read for every entity table."""
        self._tables = catalog.source_tables()
        self._reads: dict[str, tuple[_Read, ...]] = {}
        self._columns: dict[str, tuple[Column, ...]] = {}
        for table in catalog.entity_tables():
            self._columns[table.name] = tuple(c for c in table.columns.values() if c.source_table is not None)
            self._reads[table.name] = tuple(
                self._read_of(table, source_table, key) for source_table, key in _sources(table).items()
            )
        self._budget_tables = {t.name for t in catalog.entity_tables() if set(BUDGET_COLUMNS) <= set(t.columns)}

    def materialize(self, changes: Iterable[Change], source: RowSource) -> Materialized:
        """Read every changed entity once, whole, and return its updates; `changes` are in order of seq.

        Several changes of one entity become one update with the highest seq as version and the earliest time as
        origin. A value that its column does not allow is sent as null with a dead letter, so it never counts as the
        value before; an entity whose table lacks a declared column is left as it was, with a dead letter.
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
        for entity in entities.values():
            entity.header = new_header(entity.lane, entity.origin_us, entity.header.trace_id)
        return entities

    def _read(self, entities: Mapping[tuple[str, str], _Entity], source: RowSource) -> None:
        keys: dict[str, list[int | str]] = {}
        for entity in entities.values():
            keys.setdefault(entity.table.name, []).append(entity.key)
            entity.seen, entity.values, entity.problems = set(), {}, {}
        reads: dict[RowQuery, tuple[str, _Read]] = {}
        for name, wanted in keys.items():
            for read in self._reads[name]:
                reads[RowQuery(read.source_table, read.key, read.names, tuple(wanted))] = (name, read)
        # Row by row: a value of many megabytes is judged and dropped before the next one is read.
        for query, key, values in source.rows(list(reads)):
            name, read = reads[query]
            found = entities.get((name, str(key)))
            if found is not None:  # a collation may find more than was asked for
                _take(found, read, values)

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
        update = pb.EntityUpdate(
            header=entity.header,
            table=entity.table.name,
            row=entity.row,
            source_version=entity.last.seq,
            source=SOURCE,
            deleted=deleted,
        )
        if not deleted:
            values = entity.values
            while sum(map(len, values.values())) > MAX_UPDATE_BYTES:
                name = max(values, key=lambda n: len(values[n]))
                text = f"{len(values[name])} bytes, but an entity may have {MAX_UPDATE_BYTES} in all"
                entity.problems[name] = (entity.table.columns[name], "entity_too_large", text)
                values[name] = b""
            for column in self._columns[entity.table.name]:
                update.columns.add(name=column.name, value=values.get(column.name, b""))
        result.updates.append(update)
        if entity.table.name in self._budget_tables:
            result.budgets.append(_budget(entity, deleted))
        for column, reason, text in entity.problems.values() if not deleted else ():
            error = (
                f"{column.source} of row {entity.row} is sent as null: {text[:_MAX_QUOTED]}; "
                "correct the value in the ads DB"
            )
            letter = _letter(entity.last, reason, error, entity.header, entity.table.name, entity.row)
            result.dead_letters.append(letter)

    @staticmethod
    def _read_of(table: Table, source_table: str, key: str) -> _Read:
        by_name: dict[str, list[Column]] = {}
        for column in table.columns.values():
            if column.source_table == source_table:
                by_name.setdefault(str(column.source_column), []).append(column)
        return _Read(source_table, key, tuple(by_name), tuple(tuple(columns) for columns in by_name.values()))


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
    for columns, value in zip(read.columns, values, strict=True):
        for column in columns:
            try:
                if twice:
                    text = f"several rows of {read.source_table!r} have this key; keep one"
                    raise InvalidValue(column.ref, "several_rows", text)
                checked = check(column, value)
            except InvalidValue as error:
                entity.problems[column.name] = (column, error.reason, str(error))
                entity.values[column.name] = refused(error.reason)
            else:
                entity.values[column.name] = b"" if checked is None else encode(checked)


def _row_key(table: Table, key: object) -> tuple[str, int | str, str]:
    """Return (row, key to look up, fault)."""
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


def _budget(entity: _Entity, deleted: bool) -> pb.BudgetState:
    """A budget that is missing or not what it must be counts as none: nothing is spent on a guess."""
    state = pb.BudgetState(header=entity.header, campaign_id=entity.row, version=entity.last.seq)
    values = {name: decode(entity.values.get(name)) for name in BUDGET_COLUMNS}
    state.deleted = deleted or values["budget_daily_micros"] is None or not entity.problems.keys().isdisjoint(values)
    if not state.deleted:
        for name, value in values.items():
            if value is not None:
                setattr(state, BUDGET_COLUMNS[name], value)
    return state


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
