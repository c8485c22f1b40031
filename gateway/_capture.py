"""Change capture on SQLite: triggers that log the key of every row written, as MySQL's binlog would.

`_adsindex_changes` names changed rows and never carries their data. `_adsindex_capture` remembers of every entity table
with which declarations it was last enqueued as a whole, from which number on, how the ads DB defined it then, and with
which declarations the Gateway publishes it. Rows are enqueued once, in key order, in the very transaction that installs
the triggers, when capture cannot have seen what they hold:

- rows from before capture, or from before a column was declared;
- rows that were enqueued for one catalogue, and published by a Gateway that ran with another;
- rows of a table whose triggers are gone (a table that is rebuilt loses them) or whose definition changed;
- rows of all tables when the schema was changed and changed back: dropping a column and adding it fires no trigger.

One thing SQLite cannot report: a row that another connection's REPLACE removes for a UNIQUE constraint other than the
key, unless that connection sets `PRAGMA recursive_triggers = ON`.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from catalog import Catalog, Table
from catalog.keys import ESCAPES, SEPARATOR, join_key, key_columns, split_key
from gateway._schema import check_catalog, declarations
from gateway._sqlite import literal, quoted, transaction
from gateway.ads_db import CaptureReport

CHANGES = "_adsindex_changes"
CAPTURE = "_adsindex_capture"
SCHEMA = "_adsindex_schema"
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
CREATE TABLE IF NOT EXISTS {CAPTURE} (
  repo_table TEXT PRIMARY KEY,
  declaration TEXT NOT NULL,
  definition TEXT NOT NULL,
  enqueued_from INTEGER NOT NULL,
  published TEXT
);
CREATE TABLE IF NOT EXISTS {SCHEMA} (version INTEGER NOT NULL, objects TEXT NOT NULL);
"""

_IN_LIST = 900
"""Below the 999 parameters that the oldest SQLite allows."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is remembered of one entity table."""

    declaration: str
    definition: str
    enqueued_from: int
    published: str | None


def ensure_capture(connection: sqlite3.Connection, catalog: Catalog, position: int | None = None) -> CaptureReport:
    """Install the catalogue's triggers and enqueue rows that capture has not seen as now declared and defined.

    `position` is the Gateway's last published change, and given by the Gateway alone: from there on it publishes with
    this catalogue. Raises SchemaMismatch naming the catalogue's lines, and then nothing was changed.
    """
    if _in_place(connection, catalog, position):
        return CaptureReport()
    with transaction(connection):
        check_schema(connection, catalog)
        _make_tables(connection)
        seen = _seen(connection)
        declared, defined = declarations(catalog), _definitions(connection, catalog)
        wanted, present = _triggers(catalog), _present_triggers(connection)
        known = [name for name, before in seen.items() if before.declaration == declared.get(name)]
        owner = {source: table.name for source, (table, _) in catalog.source_tables().items()}
        lost = {owner[source] for (source, name), sql in wanted.items() if present.get(name) != sql} & set(known)
        redefined = {name for name in known if seen[name].definition != defined[name]}
        statements = {name: sql for (_, name), sql in wanted.items()}
        outdated = [name for name, sql in present.items() if statements.get(name) != sql]
        if not (lost or redefined or outdated) and _changed_and_back(connection):
            redefined = set(known)
        for name in outdated:
            connection.execute(f"DROP TRIGGER {quoted(name)}")
        created = [name for name, sql in statements.items() if present.get(name) != sql]
        for name in created:
            connection.execute(statements[name])
        enqueued = 0
        remembered: list[tuple[str, str, str, int, str | None]] = []
        for table in catalog.entity_tables():
            name, before = table.name, seen.get(table.name)
            stale = before is None or name not in known or name in lost or name in redefined
            if before is not None and position is not None and before.published != declared[name]:
                stale = stale or before.enqueued_from <= position  # somebody published it with other declarations
            first = _last_seq(connection) + 1 if before is None or stale else before.enqueued_from
            enqueued += _enqueue(connection, table) if stale else 0
            published = declared[name] if position is not None else before.published if before else None
            remembered.append((name, declared[name], defined[name], first, published))
        connection.execute(f"DELETE FROM {CAPTURE}")
        connection.executemany(f"INSERT INTO {CAPTURE} VALUES (?, ?, ?, ?, ?)", remembered)
        connection.execute(f"DELETE FROM {SCHEMA}")
        connection.execute(f"INSERT INTO {SCHEMA} VALUES (?, ?)", (schema_version(connection), _objects(connection)))
    report = CaptureReport(len(created), len(outdated), enqueued, tuple(sorted(lost)), tuple(sorted(redefined)))
    if report.lost:
        _log.error(
            "capture_lost",
            tables=report.lost,
            rows_enqueued=enqueued,
            why="their triggers were gone or different; rows that are there now are read again",
            todo="the workflows stage starts a sync that finds rows that were deleted meanwhile",
        )
    elif report.redefined:
        _log.warning("schema_changed", tables=report.redefined, rows_enqueued=enqueued, why="they are read again")
    return report


def schema_version(connection: sqlite3.Connection) -> int:
    """Return SQLite's count of schema changes."""
    return int(connection.execute("PRAGMA schema_version").fetchone()[0])


def enqueue_missing(connection: sqlite3.Connection, table: Table, keys: Iterable[int | str]) -> int:
    """Enqueue those of `keys` that the table's main ads DB table does not have; return how many."""
    if table.source is None:
        return 0
    source, columns = table.source.table, [quoted(name) for name in key_columns(table.source.key)]
    one = " AND ".join(f"{column} = ?" for column in columns)
    wanted, missing = list(keys), 0
    size = _IN_LIST // len(columns)
    for start in range(0, len(wanted), size):
        chunk = wanted[start : start + size]
        where, values = f"{columns[0]} IN ({', '.join('?' * len(chunk))})", list[int | str](chunk)
        if len(columns) > 1:  # a comparison with a column, unlike one of row values, converts text to its type
            where, values = " OR ".join([f"({one})"] * len(chunk)), [part for k in chunk for part in split_key(str(k))]
        with transaction(connection):
            found = connection.execute(f"SELECT {', '.join(columns)} FROM {quoted(source)} WHERE {where}", values)
            present = {str(join_key(row)) for row in found}
            missing += connection.executemany(
                f"INSERT INTO {CHANGES} (source_table, key, changed_at_us, backfill) VALUES (?, ?, {NOW_US}, 1)",
                [(source, k) for k in chunk if str(k) not in present],
            ).rowcount
    return missing


def enqueue_keys(connection: sqlite3.Connection, table: Table, keys: Iterable[int | str]) -> int:
    """Enqueue entities, there or not, by their keys; return how many."""
    if table.source is None:
        return 0
    source = table.source.table
    with transaction(connection):
        return connection.executemany(
            f"INSERT INTO {CHANGES} (source_table, key, changed_at_us, backfill) VALUES (?, ?, {NOW_US}, 1)",
            [(source, key) for key in keys],
        ).rowcount


def enqueue_all(connection: sqlite3.Connection, catalog: Catalog, next_seq: int) -> int:
    """Enqueue every row of every entity table under numbers from `next_seq` on, so that versions only grow."""
    with transaction(connection):
        if _last_seq(connection) < next_seq - 1:
            connection.execute("DELETE FROM sqlite_sequence WHERE name = ?", (CHANGES,))
            connection.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (CHANGES, next_seq - 1))
        return sum(_enqueue(connection, table) for table in catalog.entity_tables())


def check_schema(connection: sqlite3.Connection, catalog: Catalog) -> None:
    """Raise SchemaMismatch, every fault with file and line, when the ads DB lacks what the catalogue reads."""
    kinds = {name.lower(): kind for name, kind in connection.execute("SELECT name, type FROM sqlite_master")}

    def columns_of(source_table: str) -> set[str]:
        return {str(row[1]).lower() for row in connection.execute(f"PRAGMA table_xinfo({quoted(source_table)})")}

    check_catalog(catalog, kinds, columns_of)


def _in_place(connection: sqlite3.Connection, catalog: Catalog, position: int | None) -> bool:
    present = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not {CHANGES, CAPTURE, SCHEMA} <= present:
        return False
    if connection.execute(f"SELECT version FROM {SCHEMA}").fetchone() != (schema_version(connection),):
        return False
    seen, declared = _seen(connection), declarations(catalog)
    if {name: before.declaration for name, before in seen.items()} != declared:
        return False
    if position is not None and any(before.published != before.declaration for before in seen.values()):
        return False
    if _present_triggers(connection) != {name: sql for (_, name), sql in _triggers(catalog).items()}:
        return False
    check_schema(connection, catalog)
    return True


def _make_tables(connection: sqlite3.Connection) -> None:
    columns = [row[1] for row in connection.execute(f"PRAGMA table_info({CAPTURE})")]
    if columns and "published" not in columns:  # of an earlier version: every row is enqueued once more
        connection.execute(f"DROP TABLE {CAPTURE}")
    for statement in _TABLES.split(";"):
        connection.execute(statement)


def _last_seq(connection: sqlite3.Connection) -> int:
    last = connection.execute("SELECT max(seq) FROM sqlite_sequence WHERE name = ?", (CHANGES,)).fetchone()
    return int(last[0] or 0)


def _present_triggers(connection: sqlite3.Connection) -> dict[str, str]:
    query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND substr(name, 1, ?) = ?"
    return dict(connection.execute(query, (len(_PREFIX), _PREFIX)))


def _seen(connection: sqlite3.Connection) -> dict[str, _Seen]:
    rows = connection.execute(f"SELECT repo_table, declaration, definition, enqueued_from, published FROM {CAPTURE}")
    return {name: _Seen(*rest) for name, *rest in rows}


def _definitions(connection: sqlite3.Connection, catalog: Catalog) -> dict[str, str]:
    """How the ads DB defines the tables that an entity comes from, hashed."""
    sql = {name.lower(): text for name, text in connection.execute("SELECT name, sql FROM sqlite_master")}
    return {
        table.name: _hash(sql[source.lower()] for source in table.source.tables())
        for table in catalog.entity_tables()
        if table.source is not None
    }


def _objects(connection: sqlite3.Connection) -> str:
    """All that the database defines, hashed; what is ours and SQLite's own does not count."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE substr(name, 1, ?) <> ? ORDER BY 1, 2, 3"
    rows = connection.execute(query, (len(_PREFIX), _PREFIX))
    return _hash(json.dumps(row) for row in rows if not row[1].startswith("sqlite_"))


def _changed_and_back(connection: sqlite3.Connection) -> bool:
    """Return whether the schema was changed since it was remembered, and looks as it did then."""
    known = connection.execute(f"SELECT version, objects FROM {SCHEMA}").fetchone()
    return known is not None and known[0] != schema_version(connection) and known[1] == _objects(connection)


def _hash(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _triggers(catalog: Catalog) -> dict[tuple[str, str], str]:
    """(ads DB table, trigger) -> the statement that makes it."""
    triggers: dict[tuple[str, str], str] = {}
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
            triggers[source_table, name] = f"{head} BEGIN {body} END"
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
