"""Change capture on SQLite: triggers that log the key of every row written, as MySQL's binlog would.

`_adsindex_changes` names changed rows and never carries their data. `_adsindex_capture` remembers what was declared
when an entity table was last enqueued as a whole: rows that were there before capture, or before a column was declared,
are enqueued once, in key order, in the very transaction that installs the triggers. Whatever dies in between, no row is
missed and none is enqueued twice.

One thing SQLite cannot report: a row that another connection's REPLACE removes for a UNIQUE constraint other than the
key, unless that connection sets `PRAGMA recursive_triggers = ON`.
"""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass

from catalog import Catalog, Fault, Table
from gateway._exceptions import SchemaMismatch
from gateway._sqlite import literal, quoted, transaction

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


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """What `ensure_capture` had to do; all zero when everything was in place."""

    triggers_created: int = 0
    triggers_dropped: int = 0
    rows_enqueued: int = 0


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
        declared = _declarations(catalog)
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
    faults: list[Fault] = []
    tables: set[str] = set()
    kinds = {name.lower(): kind for name, kind in connection.execute("SELECT name, type FROM sqlite_master")}
    for source_table, (table, key) in catalog.source_tables().items():
        if kinds.get(source_table.lower()) != "table":
            what = "is a view, which cannot be captured" if source_table.lower() in kinds else "does not exist"
            text = f"the ads DB table {source_table!r} of {table.name!r} {what}; create it, or correct `source`"
            faults.append(Fault(catalog.file, table.line, text))
            tables.add(source_table)
            continue
        present = {str(row[1]).lower() for row in connection.execute(f"PRAGMA table_xinfo({quoted(source_table)})")}
        if key.lower() not in present:
            text = f"the ads DB table {source_table!r} has no key column {key!r}; correct `source`"
            faults.append(Fault(catalog.file, table.line, text))
            tables.add(source_table)
        for column in table.columns.values():
            if column.source_table == source_table and str(column.source_column).lower() not in present:
                text = f"{column.ref}: the ads DB has no column {column.source}; add it, or correct `from`"
                faults.append(Fault(catalog.file, column.line, text))
                tables.add(source_table)
    if faults:
        raise SchemaMismatch(faults, tables)


def _in_place(connection: sqlite3.Connection, catalog: Catalog) -> bool:
    present = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {CHANGES, CAPTURE} <= present:
        return False
    if _present_triggers(connection) != _triggers(catalog) or _seen_declarations(connection) != _declarations(catalog):
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
        column = quoted(key)

        def log(key_of: str, where: str = "", table: str = literal(source_table)) -> str:
            return (
                f"INSERT INTO {CHANGES} (source_table, key, changed_at_us) SELECT {table}, {key_of}, {NOW_US}{where};"
            )

        bodies = {
            "insert": log(f"NEW.{column}"),
            "update": log(f"OLD.{column}", f" WHERE OLD.{column} IS NOT NEW.{column}") + " " + log(f"NEW.{column}"),
            "delete": log(f"OLD.{column}"),
        }
        for event, body in bodies.items():
            name = f"{_PREFIX}{source_table}_{event}"
            head = f"CREATE TRIGGER {quoted(name)} AFTER {event.upper()} ON {quoted(source_table)}"
            triggers[name] = f"{head} BEGIN {body} END"
    return triggers


def _declarations(catalog: Catalog) -> dict[str, str]:
    """What decides an entity's materialized content; rows are enqueued again when it changes."""
    return {
        table.name: json.dumps(
            [
                sorted(table.source.tables().items()) if table.source else [],
                sorted(
                    (c.cell, c.type.value, c.source, sorted(c.values), c.max_bytes)
                    for c in table.columns.values()
                    if c.source_table is not None
                ),
            ]
        )
        for table in catalog.entity_tables()
    }


def _enqueue(connection: sqlite3.Connection, table: Table) -> int:
    if table.source is None:
        return 0
    key = f"{quoted(table.source.table)}.{quoted(table.source.key)}"
    return connection.execute(
        f"INSERT INTO {CHANGES} (source_table, key, changed_at_us, backfill) "
        f"SELECT {literal(table.source.table)}, {key}, {NOW_US}, 1 FROM {quoted(table.source.table)} ORDER BY {key}"
    ).rowcount
