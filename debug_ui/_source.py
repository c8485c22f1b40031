"""Reads of the ads DB by the catalogue's declarations: the main row and its satellites, children, free search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from catalog import Catalog, Column, InvalidValue, Table, ValueType
from catalog.keys import key_columns, split_key
from catalog.values import check_source
from debug_ui._exceptions import BadInput
from debug_ui._values import jsonable, typed_value
from debug_ui.views import Difference, Link, SourceRow
from gateway.ads_db import AdsDb

NAME_COLUMNS = ("name", "title", "url")
"""Columns that say what a person would call an entity, the best first."""


_NO_LIMIT = (1 << 63) - 1


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


def select_rows(
    db: AdsDb, source_table: str, key_column: str, keys: Sequence[Any], *, limit: int | None = None
) -> list[dict[str, Any]]:
    """Return up to `limit` rows of an ads DB table whose `key_column` is one of `keys`, raw, by their first column.

    Raises AdsDbUnavailable.
    """
    rows: list[dict[str, Any]] = []
    for start in range(0, len(keys), 500):
        chunk = keys[start : start + 500]
        left = _NO_LIMIT if limit is None else max(0, limit - len(rows))
        # Names come from the validated catalogue and are quoted; values are bound.
        statement = (
            f"SELECT * FROM {db.quoted(source_table)} WHERE {db.quoted(key_column)} "
            f"IN ({', '.join(f':k{i}' for i in range(len(chunk)))}) ORDER BY 1 LIMIT {left}"
        )
        rows.extend(db.select(statement, {f"k{i}": key for i, key in enumerate(chunk)}))
    return rows


Raw = dict[str, dict[str, Any]]
"""Ads DB table -> the row as the driver gives it; {} where there is none."""


def raw_rows(db: AdsDb, table: Table, entity_id: str) -> Raw:
    """Return the entity's main row and satellites as they are in the ads DB now."""
    if table.source is None:
        return {}
    key = key_value(table, entity_id)
    raw: Raw = {}
    for source_table, key_column in table.source.tables().items():
        if source_table in table.source.collections:
            continue  # any number of rows, shown by the lists that they became
        parts = key_columns(key_column)
        if len(parts) > 1:
            found = _by_parts(db, source_table, parts, entity_id)
        else:
            found = select_rows(db, source_table, key_column, [key], limit=1)
        raw[source_table] = found[0] if found else {}
    return raw


def _by_parts(db: AdsDb, source_table: str, columns: Sequence[str], entity_id: str) -> list[dict[str, Any]]:
    """Return the row whose key of several columns makes this entity id, raw; none if the id has other parts."""
    parts = split_key(entity_id)
    if len(parts) != len(columns):
        return []
    where = " AND ".join(f"{db.quoted(column)} = :k{i}" for i, column in enumerate(columns))
    statement = f"SELECT * FROM {db.quoted(source_table)} WHERE {where} LIMIT 1"
    return db.select(statement, {f"k{i}": part for i, part in enumerate(parts)})


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
        if source_table in raw
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
            value = check_source(column, value)
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
    escaped = words.replace("!", "!!").replace("%", "!%").replace("_", "!_")  # a backslash means more to MySQL
    for table in catalog.entity_tables():
        if table.source is None:
            continue
        names = [
            db.quoted(c.source_column)
            for c in table.columns.values()
            if c.name in NAME_COLUMNS and c.source_table == table.source.table and c.source_column
        ]
        if len(columns := table.source.key_columns) > 1:  # such rows have an id, and no name of their own
            if _by_parts(db, table.source.table, columns, words):
                found.append(Link(kind=table.name, id=words, name=""))
            continue
        key = db.quoted(table.source.key)
        conditions = [f"{key} = :exact", *(f"{name} LIKE :pattern ESCAPE '!'" for name in names)]
        statement = (
            f"SELECT {key} AS id, {names[0] if names else 'NULL'} AS name FROM {db.quoted(table.source.table)} "
            f"WHERE {' OR '.join(conditions)} ORDER BY {key} <> :exact, {key} LIMIT {int(limit)}"
        )
        exact: Any = words
        if table.key_type is ValueType.INT:  # MySQL takes the text "1,23" for the number 1
            exact = int(words) if words.isdecimal() and len(words) < 19 else None
        for row in db.select(statement, {"exact": exact, "pattern": f"%{escaped}%"}):
            found.append(Link(kind=table.name, id=str(row["id"]), name=str(jsonable(row["name"]) or "")[:200]))
    return found
