"""What an import wrote last time, kept beside the data, so that loading again changes only what the export changed.

`_import_rows` has, per source and entity, its position in the export's order and the values last imported. A value
that somebody changed in the ads DB since stays, unless the export itself has another one than last time.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from sqlalchemy import (
    Column,
    Connection,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.sql.schema import Column as SqlColumn

from batch_workflows._ads_import_rows import Value
from gateway.models import LONG_TEXT, Ad, Base

T = TypeVar("T")

_IN_LIST = 500

_encoder = msgspec.json.Encoder(order="sorted")
_metadata = MetaData()
IMPORT_ROWS = Table(
    "_import_rows",
    _metadata,
    Column("source", String(64), primary_key=True),
    Column("entity_table", String(64), primary_key=True),
    Column("entity_id", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("imported", LONG_TEXT, nullable=False),
    Index("_import_rows_position", "source", "entity_table", "position"),
)


@dataclass(slots=True)
class Written:
    """Rows per table that a load inserted, updated, or found unchanged."""

    inserted: Counter[str] = field(default_factory=Counter)
    updated: Counter[str] = field(default_factory=Counter)
    unchanged: Counter[str] = field(default_factory=Counter)


def ensure_state(connection: Connection) -> None:
    """Create the import's own table if missing."""
    _metadata.create_all(connection)


def canonical(values: Mapping[str, Value]) -> str:
    """Return the form in which imported values are remembered and compared."""
    return _encoder.encode(values).decode()


def key_column(table: Table) -> SqlColumn[Any]:
    """Return the one key column of an ads DB table."""
    (column,) = table.primary_key.columns
    return column


def write(
    connection: Connection, source: str, table_name: str, rows: Sequence[dict[str, Value]], written: Written
) -> None:
    """Bring rows of one table into the ads DB; values that are there already are not written again."""
    table = Base.metadata.tables[table_name]
    key = key_column(table)
    wanted = {str(row[key.name]): row for row in rows}
    before = _imported(connection, source, table_name, list(wanted))
    changed = {i: row for i, row in wanted.items() if before.get(i) != canonical(row)}
    if len(wanted) > len(changed):
        written.unchanged[table_name] += len(wanted) - len(changed)
    if not changed:
        return
    present = _present(connection, table, [row[key.name] for row in changed.values()], list(rows[0]))
    inserts: list[dict[str, Value]] = []
    updates: dict[tuple[str, ...], list[dict[str, Value]]] = {}
    for entity_id, row in changed.items():
        found = present.get(entity_id)
        if found is None:
            inserts.append(row)
            continue
        last = json.loads(before[entity_id]) if entity_id in before else None
        now = json.loads(canonical(row))
        names = tuple(
            name for name in row if found[name] != row[name] and (last is None or last.get(name) != now[name])
        )
        if names:
            updates.setdefault(names, []).append({"_key": row[key.name], **{n: row[n] for n in names}})
        else:
            written.unchanged[table_name] += 1
    if inserts:
        connection.execute(insert(table), inserts)
        written.inserted[table_name] += len(inserts)
    for names, parameters in updates.items():
        statement = update(table).where(key == bindparam("_key")).values({n: bindparam(n) for n in names})
        connection.execute(statement, parameters)
        written.updated[table_name] += len(parameters)
    _remember(connection, source, table_name, changed, before)


def pair(connection: Connection, ads: str, pins: str, first: int, count: int, pin_count: int) -> int:
    """Give ads without a pin at positions first..first+count of source `ads` theirs; return how many got one."""
    rows = IMPORT_ROWS.c
    positions = {
        int(entity_id): position
        for entity_id, position in connection.execute(
            select(rows.entity_id, rows.position).where(
                rows.source == ads, rows.entity_table == "ads", rows.position >= first, rows.position < first + count
            )
        )
    }
    lacking = [
        ad_id
        for chunk in _chunks(list(positions))
        for (ad_id,) in connection.execute(select(Ad.id).where(Ad.id.in_(chunk), Ad.pin_id.is_(None)))
    ]
    wanted = sorted({positions[ad_id] % pin_count for ad_id in lacking})
    pin_at = {
        position: pin_id
        for chunk in _chunks(wanted)
        for position, pin_id in connection.execute(
            select(rows.position, rows.entity_id).where(
                rows.source == pins, rows.entity_table == "pins", rows.position.in_(chunk)
            )
        )
    }
    parameters = [{"_key": ad_id, "pin": pin_at[positions[ad_id] % pin_count]} for ad_id in lacking]
    if parameters:
        table = Base.metadata.tables["ads"]
        statement = update(table).where(table.c.id == bindparam("_key")).values(pin_id=bindparam("pin"))
        connection.execute(statement, parameters)
    return len(parameters)


def positions_of(connection: Connection, source: str, table_name: str) -> int:
    """Return how many entities of a table a source has brought so far; their positions are 0..n-1."""
    rows = IMPORT_ROWS.c
    query = select(func.max(rows.position)).where(rows.source == source, rows.entity_table == table_name)
    last = connection.execute(query).scalar_one()
    return 0 if last is None else int(last) + 1


def _imported(connection: Connection, source: str, table_name: str, ids: Sequence[str]) -> dict[str, str]:
    rows = IMPORT_ROWS.c
    found: dict[str, str] = {}
    for chunk in _chunks(ids):
        query = select(rows.entity_id, rows.imported).where(
            rows.source == source, rows.entity_table == table_name, rows.entity_id.in_(chunk)
        )
        found.update((entity_id, imported) for entity_id, imported in connection.execute(query))
    return found


def _present(
    connection: Connection, table: Table, keys: Sequence[Value], names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    key = key_column(table)
    found: dict[str, dict[str, Any]] = {}
    for chunk in _chunks(keys):
        query = select(*(table.c[name] for name in names)).where(key.in_(chunk))
        found.update((str(row[key.name]), dict(row)) for row in connection.execute(query).mappings())
    return found


def _remember(
    connection: Connection,
    source: str,
    table_name: str,
    changed: Mapping[str, dict[str, Value]],
    before: Mapping[str, str],
) -> None:
    position = positions_of(connection, source, table_name)
    fresh = [entity_id for entity_id in changed if entity_id not in before]
    if fresh:
        common = {"source": source, "entity_table": table_name}
        connection.execute(
            insert(IMPORT_ROWS),
            [
                {**common, "entity_id": entity_id, "position": position + i, "imported": canonical(changed[entity_id])}
                for i, entity_id in enumerate(fresh)
            ],
        )
    known = [{"_id": i, "_imported": canonical(row)} for i, row in changed.items() if i in before]
    if known:
        rows = IMPORT_ROWS.c
        connection.execute(
            update(IMPORT_ROWS)
            .where(rows.source == source, rows.entity_table == table_name, rows.entity_id == bindparam("_id"))
            .values(imported=bindparam("_imported")),
            known,
        )


def _chunks(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + _IN_LIST] for start in range(0, len(items), _IN_LIST))
