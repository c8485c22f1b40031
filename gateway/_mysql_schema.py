"""The ads DB's schema on MySQL: is it what the catalogue reads, and did a change of it change rows?"""

from __future__ import annotations

import hashlib
from typing import Any

from pymysql.connections import Connection

from catalog import Catalog
from catalog.keys import key_columns
from gateway import _mysql
from gateway._schema import check_catalog, declarations

_COLUMNS = (
    "SELECT table_name, column_name, column_type, character_set_name, collation_name, generation_expression "
    "FROM information_schema.columns WHERE table_schema = %s"
)


def check_schema(connection: Connection[Any], database: str, catalog: Catalog) -> None:
    """Raise SchemaMismatch, every fault with file and line, when the ads DB lacks what the catalogue reads."""
    query = "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = %s"
    kinds = {
        str(name).lower(): "table" if kind in ("BASE TABLE", "SYSTEM VERSIONED") else "view"
        for name, kind in _mysql.rows(connection, query, (database,))
    }
    present: dict[str, set[str]] = {}
    for row in _mysql.rows(connection, _COLUMNS, (database,)):
        present.setdefault(str(row[0]).lower(), set()).add(str(row[1]).lower())
    check_catalog(catalog, kinds, lambda source_table: present.get(source_table.lower(), set()))


def digests(connection: Connection[Any], database: str, catalog: Catalog) -> dict[str, str]:
    """Return entity table -> digest of what decides its rows' content; "" while the ads DB lacks a column of it.

    It covers the catalogue's declaration and the types of the columns read: an ALTER TABLE that gives a column to all
    rows, or converts it, writes no row events.
    """
    columns: dict[tuple[str, str], tuple[Any, ...]] = {}
    for table, column, *rest in _mysql.rows(connection, _COLUMNS, (database,)):
        columns[str(table).lower(), str(column).lower()] = tuple(rest)
    found: dict[str, str] = {}
    declared = declarations(catalog)
    for entity in catalog.entity_tables():
        if entity.source is None:
            continue
        wanted = [
            *((table, column) for table, key in entity.source.tables().items() for column in key_columns(key)),
            *((c.source_table, str(c.source_column)) for c in entity.columns.values() if c.source_table is not None),
        ]
        types = [columns.get((str(table).lower(), column.lower())) for table, column in wanted]
        content = repr((declared[entity.name], types))
        complete = None not in types
        found[entity.name] = hashlib.blake2b(content.encode(), digest_size=4).hexdigest() if complete else ""
    return found


def cascades(connection: Connection[Any], database: str, catalog: Catalog) -> list[str]:
    """Return foreign keys by which the server changes rows of the catalogue's tables without logging them.

    A cascade happens below the binlog: the parent's row event is all that there is.
    """
    tables = {name.lower() for name in catalog.source_tables()}
    query = (
        "SELECT table_name, constraint_name, delete_rule, update_rule "
        "FROM information_schema.referential_constraints WHERE constraint_schema = %s"
    )
    return [
        f"{child}.{name} (ON DELETE {on_delete}, ON UPDATE {on_update})"
        for child, name, on_delete, on_update in _mysql.rows(connection, query, (database,))
        if str(child).lower() in tables and {on_delete, on_update} - {"RESTRICT", "NO ACTION"}
    ]
