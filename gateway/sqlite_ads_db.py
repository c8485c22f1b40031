"""The ads DB on SQLite: its file, its tables, change capture by triggers, and a person's SQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event, inspect
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from catalog import Catalog
from gateway import _capture, _sqlite
from gateway._exceptions import AdsDbUnavailable, StatementFailed
from gateway.ads_db import AdsDb, CaptureReport, StatementResult
from gateway.models import Base

_OWN_TRANSACTION = ("BEGIN", "COMMIT", "END", "ROLLBACK", "SAVEPOINT", "RELEASE", "VACUUM", "ATTACH", "DETACH")


class SqliteAdsDb(AdsDb):
    """The SQLite ads DB. Safe for several threads and processes; applications may write to the file beside it."""

    def __init__(self, path: Path) -> None:
        """Use the database at `path`; `open` is what creates it."""
        self.path, self.name = path, str(path)
        self.engine: Engine = create_engine(
            "sqlite://", creator=self.connect, poolclass=QueuePool, pool_size=2, max_overflow=8
        )
        # Write locks are taken at once: a transaction that begins by reading could not be upgraded beside a writer.
        event.listen(self.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))

    @classmethod
    def at(cls, path: Path) -> SqliteAdsDb:
        """Open the ads DB at a path, creating file and tables if missing. Raises AdsDbUnavailable."""
        db = cls(path)
        try:
            tables = {t for t in inspect(db.engine).get_table_names() if not t.startswith("_")}
            if not tables or tables & set(Base.metadata.tables):
                Base.metadata.create_all(db.engine)
        except DBAPIError as error:
            db.close()
            raise AdsDbUnavailable(f"ads DB {db.path}: {error.orig}; check that it is an SQLite file") from error
        except AdsDbUnavailable:
            db.close()
            raise
        return db

    def connect(self) -> sqlite3.Connection:
        """Open an autocommit connection that gives text that is not UTF-8 as bytes. Raises AdsDbUnavailable."""
        connection = _sqlite.connect(self.path)
        connection.text_factory = _sqlite.text_or_bytes
        return connection

    def ensure_capture(self, catalog: Catalog, position: int | None = None) -> CaptureReport:
        """Install change capture for the catalogue's tables; cheap when it is in place already.

        Rows that capture cannot have seen as they are now declared and defined are enqueued in the same transaction.
        `position` is for the Gateway alone: the last change that it published. Raises SchemaMismatch with the
        catalogue's lines, AdsDbUnavailable.
        """
        with closing(_sqlite.connect(self.path)) as connection, _sqlite.translated(self.path):
            return _capture.ensure_capture(connection, catalog, position)

    def check_schema(self, catalog: Catalog) -> None:
        """Raise SchemaMismatch, every fault with file and line, when the ads DB lacks what the catalogue reads.

        Changes nothing. Raises AdsDbUnavailable.
        """
        with closing(_sqlite.connect(self.path)) as connection, _sqlite.translated(self.path):
            _capture.check_schema(connection, catalog)

    def execute(self, sql: str) -> list[StatementResult]:
        """Run one or several statements in one transaction: all of them or none.

        Raises StatementFailed quoting the statement, AdsDbUnavailable when the database is locked.
        """
        statements = _sqlite.split_statements(sql)
        if not statements:
            raise StatementFailed("there is no SQL statement; give one, like UPDATE campaigns SET status = 'PAUSED'")
        for statement in statements:
            if statement.split(None, 1)[0].upper().rstrip(";") in _OWN_TRANSACTION:
                raise StatementFailed(f"{statement[:60]!r}: all statements run in one transaction; leave it out")
        connection = self.connect()
        try:
            with _sqlite.translated(self.path), _sqlite.transaction(connection):
                return [self._run(connection, statement) for statement in statements]
        finally:
            connection.close()

    def last_change(self) -> int:
        """Return the newest number that change capture has given; 0 when it has given none. Raises AdsDbUnavailable."""
        connection = _sqlite.connect(self.path)
        try:
            with _sqlite.translated(self.path):
                if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_sequence'").fetchone():
                    return 0  # no capture yet
                query = "SELECT max(seq) FROM sqlite_sequence WHERE name = ?"
                found = connection.execute(query, (_capture.CHANGES,)).fetchone()
                return int(found[0] or 0)
        finally:
            connection.close()

    def is_empty(self) -> bool:
        """Return whether the ads domain's tables are there and none has a row. Raises AdsDbUnavailable."""
        connection = _sqlite.connect(self.path)
        try:
            with _sqlite.translated(self.path):
                tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                return tables >= set(Base.metadata.tables) and not any(
                    connection.execute(f"SELECT EXISTS (SELECT 1 FROM {name})").fetchone()[0]
                    for name in Base.metadata.tables
                )
        finally:
            connection.close()

    def select(self, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Run one SELECT with :name parameters on a connection that takes no write lock. Raises AdsDbUnavailable."""
        with closing(self.connect()) as connection, _sqlite.translated(self.path):
            cursor = connection.execute(statement, parameters)
            names = [d[0] for d in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def quoted(self, name: str) -> str:
        """Return an SQL identifier."""
        return _sqlite.quoted(name)

    def close(self) -> None:
        """Close all pooled connections; safe to call twice."""
        self.engine.dispose()

    @staticmethod
    def _run(connection: sqlite3.Connection, statement: str) -> StatementResult:
        try:
            cursor = connection.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "disk" in str(error):
                raise
            raise StatementFailed(f"{error} in: {statement[:500]}; nothing was changed") from error
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise StatementFailed(f"{error} in: {statement[:500]}; nothing was changed") from error
        columns = tuple(str(d[0]) for d in cursor.description or ())
        return StatementResult(statement, columns, rows, cursor.rowcount)
