"""The ads DB's schema on MySQL: is it what the catalogue reads, and did a change of it change rows?"""

from __future__ import annotations

import hashlib
import re
from typing import Any

from pymysql.connections import Connection

from catalog import Catalog
from catalog.keys import key_columns
from gateway import _mysql
from gateway._binlog_values import ENCODINGS
from gateway._schema import check_catalog, declarations

_COLUMNS = (
    "SELECT table_name, column_name, column_type, character_set_name, collation_name, generation_expression "
    "FROM information_schema.columns WHERE table_schema = %s"
)

_NUMBER_KEY = re.compile(r"(TINY|SMALL|MEDIUM|BIG)?INT\b|YEAR\b", re.I)
_TEXT_KEY = re.compile(r"(VAR)?CHAR\b|(TINY|MEDIUM|LONG)?TEXT\b", re.I)
"""Of these types are keys: row keys are made of them, they are kept as JSON, and `>` follows the order of ORDER BY,
which is not so for ENUM."""


def check_schema(connection: Connection[Any], database: str, catalog: Catalog) -> None:
    """Raise SchemaMismatch, every fault with file and line, when the ads DB lacks what the catalogue reads."""
    query = "SELECT table_name, table_type FROM information_schema.tables WHERE table_schema = %s"
    kinds = {
        str(name).lower(): "table" if kind in ("BASE TABLE", "SYSTEM VERSIONED") else "view"
        for name, kind in _mysql.rows(connection, query, (database,))
    }
    present: dict[str, set[str]] = {}
    unfit: dict[tuple[str, str], str] = {}
    for table, column, column_type, charset, *_ in _mysql.rows(connection, _COLUMNS, (database,)):
        present.setdefault(str(table).lower(), set()).add(str(column).lower())
        unfit[str(table).lower(), str(column).lower()] = _unfit_key(str(column_type), charset)
    check_catalog(
        catalog,
        kinds,
        lambda source_table: present.get(source_table.lower(), set()),
        lambda source_table, column: unfit[source_table.lower(), column.lower()],
    )


def _unfit_key(column_type: str, charset: str | None) -> str:
    """Return the type of a column that cannot be of a key, "" for one that can."""
    if _NUMBER_KEY.match(column_type):
        return ""
    if not _TEXT_KEY.match(column_type):
        return column_type
    return "" if charset in ENCODINGS else f"{column_type} in the character set {charset}"


def digests(connection: Connection[Any], database: str, catalog: Catalog) -> dict[str, str]:
    """Return entity table -> digest of what decides its rows' content; "" while the ads DB lacks a column of it.

    A table with a key that can be none counts as lacking it.

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
        keys = sum(len(key_columns(key)) for key in entity.source.tables().values())
        content = repr((declared[entity.name], types))
        complete = None not in types and not any(_unfit_key(*one[:2]) for one in types[:keys] if one is not None)
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
