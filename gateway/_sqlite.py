"""SQLite for the ads DB: every pragma in one place, statement splitting, and which errors mean "try again"."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from gateway._exceptions import AdsDbUnavailable

BUSY_SECONDS = 10.0
"""How long to wait for another application's write transaction; a bulk import holds the lock for a second or two."""

PRAGMAS = (
    # Readers run beside a writer, and a commit is an append: what the feed watches.
    "PRAGMA journal_mode=WAL",
    # A control update that was acknowledged survives a power cut.
    "PRAGMA synchronous=FULL",
    # REPLACE fires the delete triggers of the rows that it throws away.
    "PRAGMA recursive_triggers=ON",
    "PRAGMA foreign_keys=OFF",
)


def connect(path: Path | str) -> sqlite3.Connection:
    """Open a connection in autocommit mode (transactions are explicit). Raises AdsDbUnavailable."""
    with translated(path):
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            for pragma in PRAGMAS:
                connection.execute(pragma).fetchall()
        except sqlite3.Error:
            connection.close()
            raise
        return connection


def text_or_bytes(raw: bytes) -> str | bytes:
    """Text factory: what is not UTF-8 comes as bytes, for the catalogue's check to judge."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw


@contextlib.contextmanager
def translated(path: Path | str) -> Iterator[None]:
    """Turn SQLite's errors into AdsDbUnavailable naming the file."""
    try:
        yield
    except sqlite3.Error as error:
        raise AdsDbUnavailable(f"ads DB {path}: {error}; {_advice(error)}") from error


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection, mode: str = "IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """Run a block in one transaction: committed at its end, rolled back when it raises."""
    connection.execute(f"BEGIN {mode}")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Return an SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def split_statements(sql: str) -> list[str]:
    """Split a script into statements; semicolons in strings, comments and trigger bodies do not count."""
    statements: list[str] = []
    start = 0
    for i, char in enumerate(sql):
        if char == ";" and sqlite3.complete_statement(sql[start : i + 1]):
            statements.append(sql[start : i + 1].strip())
            start = i + 1
    statements.append(sql[start:].strip())
    return [s for s in statements if _has_code(s)]


def _has_code(statement: str) -> bool:
    lines = (line.strip() for line in statement.rstrip(";").splitlines())
    return any(line and not line.startswith("--") for line in lines)


def _advice(error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text or "busy" in text:
        return "another application holds it; try again"
    if "not a database" in text or "malformed" in text:
        return "the file is not an intact SQLite database: restore it from a backup"
    return "check that the file exists, can be written, and that the disk is not full"
