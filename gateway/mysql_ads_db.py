"""The ads DB on MySQL or MariaDB: its tables, its fitness to be followed, and a person's SQL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import pymysql
from pymysql.connections import Connection
from sqlalchemy import Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError

from catalog import Catalog
from gateway import _mysql
from gateway._exceptions import AdsDbUnavailable, StatementFailed
from gateway._mysql import Address
from gateway._mysql_schema import check_schema
from gateway._mysql_server import check_server, end_position
from gateway.ads_db import AdsDb, CaptureReport, StatementResult
from gateway.models import Base

_OWN_TRANSACTION = ("BEGIN", "START", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE", "XA")
_FILE_DIGITS = re.compile(r"\.(\d+)$")


class MysqlAdsDb(AdsDb):
    """The ads DB on a MySQL-protocol server. Safe for several threads and processes."""

    def __init__(self, url: str) -> None:
        """Use the database of a mysql+pymysql:// URL; `at` is what creates its tables. Raises AdsDbUnavailable."""
        self.address = Address.of(url)
        self.name = self.address.name
        self.engine: Engine = create_engine(
            "mysql+pymysql://", creator=self.connect, pool_size=2, max_overflow=8, pool_pre_ping=True
        )
        event.listen(self.engine, "connect", lambda connection, _: connection.autocommit(False))

    @classmethod
    def at(cls, url: str) -> MysqlAdsDb:
        """Open the ads DB, creating its tables if it has none. Raises AdsDbUnavailable."""
        db = cls(url)
        try:
            tables = set(inspect(db.engine).get_table_names())
            if not tables or tables & set(Base.metadata.tables):
                Base.metadata.create_all(db.engine)
        except DBAPIError as error:
            db.close()
            raise AdsDbUnavailable(
                f"ads DB {db.name}: {_mysql.describe(error.orig or error)}; check the server and the rights of its user"
            ) from error
        except AdsDbUnavailable:
            db.close()
            raise
        return db

    def connect(self) -> Connection[Any]:
        """Open an autocommit connection. Raises AdsDbUnavailable."""
        return _mysql.connect(self.address)

    def ensure_capture(self, catalog: Catalog, position: int | None = None) -> CaptureReport:
        """Check that the server's binlog can be followed without a gap, and that it has what the catalogue reads.

        The server captures changes by itself, and what has to be read again is kept with the feed's position. Raises
        ServerUnsuitable with the statements that mend it, SchemaMismatch, AdsDbUnavailable.
        """
        with closing(self.connect()) as connection, _mysql.translated(self.name):
            check_server(connection, self.address)
            check_schema(connection, self.address.database, catalog)
        return CaptureReport()

    def check_schema(self, catalog: Catalog) -> None:
        """Check what `ensure_capture` does, which changes nothing here.

        Raises ServerUnsuitable, SchemaMismatch, AdsDbUnavailable.
        """
        with closing(self.connect()) as connection, _mysql.translated(self.name):
            check_server(connection, self.address)
            check_schema(connection, self.address.database, catalog)

    def execute(self, sql: str) -> list[StatementResult]:
        """Run one or several statements in one transaction: all of them or none.

        A statement that the server commits by itself (DDL) must come alone. Raises StatementFailed quoting the
        statement, AdsDbUnavailable when the server is away or a lock is not given.
        """
        statements = _mysql.split_statements(sql)
        if not statements:
            raise StatementFailed("there is no SQL statement; give one, like UPDATE campaigns SET status = 'PAUSED'")
        for statement in statements:
            if statement.split(None, 1)[0].upper() in _OWN_TRANSACTION:
                raise StatementFailed(f"{statement[:60]!r}: all statements run in one transaction; leave it out")
            if len(statements) > 1 and _mysql.commits_by_itself(statement):
                raise StatementFailed(f"{statement[:60]!r}: the server commits it by itself; give it alone")
        with closing(self.connect()) as connection, _mysql.translated(self.name):
            connection.begin()
            results = [self._run(connection, statement) for statement in statements]
            connection.commit()
            return results

    def select(self, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Run one SELECT with :name parameters; it takes no locks. Raises AdsDbUnavailable."""
        try:
            with self.engine.connect() as connection:
                return [dict(row) for row in connection.execute(text(statement), parameters).mappings()]
        except DBAPIError as error:
            raise AdsDbUnavailable(
                f"ads DB {self.name}: {_mysql.describe(error.orig or error)}; try again, or check the server"
            ) from error

    def quoted(self, name: str) -> str:
        """Return an SQL identifier."""
        return _mysql.quoted(name)

    def last_change(self) -> int:
        """Return the binlog's end as one number: file number and offset. Raises AdsDbUnavailable."""
        with closing(self.connect()) as connection, _mysql.translated(self.name):
            end = end_position(connection)
        digits = _FILE_DIGITS.search(end.file)
        return ((int(digits.group(1)) if digits else 0) << 32) + end.offset

    def is_empty(self) -> bool:
        """Return whether the ads domain's tables are there and none has a row. Raises AdsDbUnavailable."""
        with closing(self.connect()) as connection, _mysql.translated(self.name):
            tables = {str(name).lower() for (name,) in _mysql.rows(connection, "SHOW TABLES")}
            return tables >= set(Base.metadata.tables) and not any(
                _mysql.rows(connection, f"SELECT EXISTS (SELECT 1 FROM {_mysql.quoted(name)})")[0][0]
                for name in Base.metadata.tables
            )

    def close(self) -> None:
        """Close all pooled connections; safe to call twice."""
        self.engine.dispose()

    @staticmethod
    def _run(connection: Connection[Any], statement: str) -> StatementResult:
        try:
            with connection.cursor() as cursor:
                cursor.execute(statement)
                rows = list(cursor.fetchall()) if cursor.description else []
                columns = tuple(str(d[0]) for d in cursor.description or ())
                return StatementResult(statement, columns, rows, cursor.rowcount)
        except pymysql.MySQLError as error:
            code = error.args[0] if error.args else 0
            if code in (1205, 1213) or isinstance(error, pymysql.InterfaceError) or 2000 <= code < 2100:
                raise
            raise StatementFailed(f"{_mysql.describe(error)} in: {statement[:500]}; nothing was changed") from error
