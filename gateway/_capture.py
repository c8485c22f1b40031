"""Change capture on SQLite: triggers that log the key of every row written, as MySQL's binlog would.

`_adsindex_changes` names changed rows and never carries their data. `_adsindex_capture` remembers what was declared
when an entity table was last enqueued as a whole: rows that were there before capture, or before a column was declared,
are enqueued once, in key order, in the very transaction that installs the triggers. Whatever dies in between, no row is
missed and none is enqueued twice.

One thing SQLite cannot report: a row that another connection's REPLACE removes for a UNIQUE constraint other than the
key, unless that connection sets `PRAGMA recursive_triggers = ON`.
"""

from __future__ import annotations

import sqlite3

from catalog import Catalog, Table
from catalog.keys import ESCAPES, SEPARATOR, key_columns
from gateway._schema import check_catalog, declarations
from gateway._sqlite import literal, quoted, transaction
from gateway.ads_db import CaptureReport

CHANGES = "_adsindex_changes"
CAPTURE = "_adsindex_capture"
_PREFIX = "_adsindex_"

NOW_US = "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000"
"""SQLite's clock has milliseconds. Within one statement it stands still, at the statement's start."""

_TABLES = f"""
CREATE TABLE IF NOT EXISTS {CHANGES} (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  source_table TEXT NOT NULL,
  key,
  changed_at_us INTEGER NOT NULL,
  backfill INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS {CAPTURE} (repo_table TEXT PRIMARY KEY, declaration TEXT NOT NULL);
"""


def ensure_capture(connection: sqlite3.Connection, catalog: Catalog) -> CaptureReport:
    """Install the catalogue's triggers and enqueue rows that capture has not seen as now declared.

    Raises SchemaMismatch naming the catalogue's lines, and then nothing was changed.
    """
    if _in_place(connection, catalog):
        return CaptureReport()
    with transaction(connection):
        check_schema(connection, catalog)
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        wanted = _triggers(catalog)
        present = _present_triggers(connection)
        outdated = [name for name, sql in present.items() if wanted.get(name) != sql]
        for name in outdated:
            connection.execute(f"DROP TRIGGER {quoted(name)}")
        created = [name for name, sql in wanted.items() if present.get(name) != sql]
        for name in created:
            connection.execute(wanted[name])
        enqueued = 0
        declared = declarations(catalog)
        seen = _seen_declarations(connection)
        for table in catalog.entity_tables():
            if seen.get(table.name) != declared[table.name]:
                enqueued += _enqueue(connection, table)
        connection.execute(f"DELETE FROM {CAPTURE}")
        connection.executemany(f"INSERT INTO {CAPTURE} VALUES (?, ?)", declared.items())
    return CaptureReport(len(created), len(outdated), enqueued)


def enqueue_all(connection: sqlite3.Connection, catalog: Catalog, next_seq: int) -> int:
    """Enqueue every row of every entity table under numbers from `next_seq` on, so that versions only grow."""
    with transaction(connection):
        last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (CHANGES,)).fetchone()
        if (last[0] if last else 0) < next_seq - 1:
            connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (CHANGES,))
            connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (CHANGES, next_seq - 1))
        return sum(_enqueue(connection, table) for table in catalog.entity_tables())


def check_schema(connection: sqlite3.Connection, catalog: Catalog) -> None:
    """Raise SchemaMismatch, every fault with file and line, when the ads DB lacks what the catalogue reads."""
    kinds = {name.lower(): kind for name, kind in connection.execute("SELECT name, type FROM sqlite_master")}

    def columns_of(source_table: str) -> set[str]:
        return {str(row[1]).lower() for row in connection.execute(f"PRAGMA table_xinfo({quoted(source_table)})")}

    check_catalog(catalog, kinds, columns_of)


def _in_place(connection: sqlite3.Connection, catalog: Catalog) -> bool:
    present = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {CHANGES, CAPTURE} <= present:
        return False
    if _present_triggers(connection) != _triggers(catalog) or _seen_declarations(connection) != declarations(catalog):
        return False
    check_schema(connection, catalog)
    return True


def _present_triggers(connection: sqlite3.Connection) -> dict[str, str]:
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND substr(name, 1, ?) = ?"
    return dict(connection.execute(query, (len(_PREFIX), _PREFIX)))


def _seen_declarations(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute(f"SELECT repo_table, declaration FROM {CAPTURE}"))


def _triggers(catalog: Catalog) -> dict[str, str]:
    triggers: dict[str, str] = {}
    for source_table, (_, key) in catalog.source_tables().items():
        new, old = (_key_of(key, row) for row in ("NEW", "OLD"))

        def log(key_of: str, where: str = "", table: str = literal(source_table)) -> str:
            return (
                f"INSERT INTO {CHANGES} (source_table, key, changed_at_us) SELECT {table}, {key_of}, {NOW_US}{where};"
            )

        bodies = {
            "insert": log(new),
            "update": log(old, f" WHERE {old} IS NOT {new}") + " " + log(new),
            "delete": log(old),
        }
        for event, body in bodies.items():
            name = f"{_PREFIX}{source_table}_{event}"
            head = f"CREATE TRIGGER {quoted(name)} AFTER {event.upper()} ON {quoted(source_table)}"
            triggers[name] = f"{head} BEGIN {body} END"
    return triggers


def _key_of(key: str, row: str) -> str:
    """Return SQL for what `catalog.keys.join_key` makes of a row's key columns; null if one of them is null."""
    columns = [f"{row}.{quoted(column)}" for column in key_columns(key)]
    if len(columns) == 1:
        return columns[0]
    for plain, escape in ESCAPES:
        columns = [f"replace({column}, {literal(plain)}, {literal(escape)})" for column in columns]
    return f" || {literal(SEPARATOR)} || ".join(columns)


def _enqueue(connection: sqlite3.Connection, table: Table) -> int:
    if table.source is None:
        return 0
    key = _key_of(table.source.key, quoted(table.source.table))
    return connection.execute(
        f"INSERT INTO {CHANGES} (source_table, key, changed_at_us, backfill) "
        f"SELECT {literal(table.source.table)}, {key}, {NOW_US}, 1 FROM {quoted(table.source.table)} ORDER BY {key}"
    ).rowcount
