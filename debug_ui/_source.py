"""Reads of the ads DB by the catalogue's declarations: the main row and its satellites, children, free search."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

from catalog import Catalog, Column, InvalidValue, Table, ValueType
from catalog.values import check
from debug_ui._exceptions import BadInput
from debug_ui._values import jsonable, typed_value
from debug_ui.views import Difference, Link, SourceRow
from gateway._exceptions import AdsDbUnavailable
from gateway.ads_db import AdsDb

NAME_COLUMNS = ("name", "title", "url")
"""Columns that say what a person would call an entity, the best first."""


def key_value(table: Table, entity_id: str) -> Any:
    """Return an entity's key as the ads DB compares it. Raises BadInput for text where a number belongs."""
    if table.key_type is not ValueType.INT:
        return entity_id
    try:
        number = int(entity_id)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 63:
        raise BadInput(f"the id of a {table.name.replace('_', ' ')} is a whole number, not {entity_id[:40]!r}")
    return number


def query(db: AdsDb, statement: str, parameters: Sequence[Any] | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Run one SELECT on a connection that takes no write lock. Raises AdsDbUnavailable."""
    with contextlib.closing(db.connect()) as connection:
        try:
            cursor = connection.execute(statement, parameters)
            names = [d[0] for d in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]
        except sqlite3.Error as error:
            raise AdsDbUnavailable(f"ads DB {db.path}: {error}; try again, or check the file") from error


def select_rows(
    db: AdsDb, source_table: str, key_column: str, keys: Sequence[Any], *, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` rows of an ads DB table whose `key_column` is one of `keys`, raw, in order of the rows."""
    rows: list[dict[str, Any]] = []
    for start in range(0, len(keys), 500):
        chunk = keys[start : start + 500]
        # Names come from the validated catalogue and are quoted; values are bound.
        statement = (
            f"SELECT * FROM {quoted(source_table)} WHERE {quoted(key_column)} IN ({', '.join('?' * len(chunk))}) "
            f"ORDER BY rowid LIMIT {-1 if limit is None else max(0, limit - len(rows))}"
        )
        rows.extend(query(db, statement, chunk))
    return rows


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


Raw = dict[str, dict[str, Any]]
"""Ads DB table -> the row as the driver gives it; {} where there is none."""


def raw_rows(db: AdsDb, table: Table, entity_id: str) -> Raw:
    """Return the entity's main row and satellites as they are in the ads DB now."""
    if table.source is None:
        return {}
    key = key_value(table, entity_id)
    raw: Raw = {}
    for source_table, key_column in table.source.tables().items():
        found = select_rows(db, source_table, key_column, [key], limit=1)
        raw[source_table] = found[0] if found else {}
    return raw


def source_rows(table: Table, raw: Raw, read_at_us: int) -> tuple[SourceRow, ...]:
    """Return raw rows for show; missing ones say so."""
    if table.source is None:
        return ()
    return tuple(
        SourceRow(
            table=source_table,
            key_column=key_column,
            satellite=source_table != table.source.table,
            exists=bool(raw[source_table]),
            values={name: jsonable(value) for name, value in raw[source_table].items()},
            read_at_us=read_at_us,
        )
        for source_table, key_column in table.source.tables().items()
    )


def compare(
    table: Table, raw: Raw, repo: Mapping[str, Any], columns: Sequence[Column] | None = None
) -> list[Difference]:
    """Return the columns whose Repo value is not the source's.

    `raw` maps ads DB tables to their row ({} where there is none); `repo` maps column names to decoded values.
    """
    differences = []
    for column in columns if columns is not None else table.columns.values():
        source_table, source_column = column.source_table, column.source_column
        if source_table is None or source_column is None or source_table not in raw:
            continue
        value = raw[source_table].get(source_column)
        invalid = ""
        try:
            value = check(column, value)
        except InvalidValue as error:
            invalid = f"{error} ({error.reason})"
        if invalid or value != repo.get(column.name):
            differences.append(
                Difference(
                    column=column.name,
                    source_column=f"{source_table}.{source_column}",
                    source_value=jsonable(value),
                    repo_value=typed_value(column, repo.get(column.name)),
                    invalid=invalid,
                )
            )
    return differences


def search_names(db: AdsDb, catalog: Catalog, words: str, limit: int = 20) -> list[Link]:
    """Return entities whose id is `words`, or whose name or title contains it: up to `limit` per kind, ids first."""
    found: list[Link] = []
    escaped = words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    for table in catalog.entity_tables():
        if table.source is None:
            continue
        names = [
            quoted(c.source_column)
            for c in table.columns.values()
            if c.name in NAME_COLUMNS and c.source_table == table.source.table and c.source_column
        ]
        key = quoted(table.source.key)
        conditions = [f"{key} = :exact", *(f"{name} LIKE :pattern ESCAPE '\\'" for name in names)]
        statement = (
            f"SELECT {key} AS id, {names[0] if names else 'NULL'} AS name FROM {quoted(table.source.table)} "
            f"WHERE {' OR '.join(conditions)} ORDER BY {key} <> :exact, {key} LIMIT {int(limit)}"
        )
        exact: Any = int(words) if table.key_type is ValueType.INT and words.isdecimal() and len(words) < 19 else words
        for row in query(db, statement, {"exact": exact, "pattern": f"%{escaped}%"}):
            found.append(Link(kind=table.name, id=str(row["id"]), name=str(jsonable(row["name"]) or "")[:200]))
    return found
