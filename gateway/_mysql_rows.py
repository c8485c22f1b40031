"""Reading whole entities from MySQL or MariaDB, all of a batch in one snapshot that has the changes it is read for.

A server may send a transaction to readers of its binlog a moment before the transaction becomes visible to SELECT. A
snapshot is therefore compared with the position of the newest change first, and taken again until it is not older.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pymysql
from pymysql.connections import Connection
from pymysql.cursors import SSCursor

from catalog import Catalog
from catalog.keys import join_key, key_columns, split_key
from gateway import _mysql
from gateway._exceptions import AdsDbUnavailable
from gateway._mysql_results import rows_of
from gateway._mysql_schema import check_schema
from gateway._mysql_server import MARIADB, Server, describe_server
from gateway.binlog_position import BinlogPosition
from gateway.materialize import RowQuery
from gateway.mysql_ads_db import MysqlAdsDb

_IN_LIST = 1_000
"""Keys per SELECT: beyond some thousand the optimizer gives up on the index."""

_PATIENCE_SECONDS = 20.0
"""Longest wait for a commit to become visible; a replica that serves reads may be that far behind."""

_PAUSES = (0.0, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02)
_SNAPSHOT = (
    "SELECT variable_value FROM information_schema.session_status "
    "WHERE variable_name IN ('BINLOG_SNAPSHOT_FILE', 'BINLOG_SNAPSHOT_POSITION') ORDER BY variable_name"
)


class MysqlRowSource:
    """Rows of the ads DB on a MySQL-protocol server (implements RowSource). For one thread."""

    def __init__(
        self,
        db: MysqlAdsDb,
        catalog: Catalog,
        *,
        expect: str = "",
        need: Callable[[], BinlogPosition | None] = lambda: None,
        locking: bool = False,
    ) -> None:
        """Open a connection of its own; `expect` is the identity of the server whose binlog is followed.

        `need` gives the position that a snapshot must have reached, asked before each one.
        `locking` reads with shared locks, which wait for commits, where the server cannot say what a snapshot has: a
        MySQL without GTIDs, or followed without them. Raises AdsDbUnavailable, also when another server answers.
        """
        self._db, self._catalog = db, catalog
        self._connection = self._connected()
        with _mysql.translated(db.name):
            self.server: Server = describe_server(self._connection)
        if expect and self.server.identity != expect:
            self._connection.close()
            raise AdsDbUnavailable(
                f"ads DB {db.name}: {self.server.identity} answers, but the binlog comes from {expect}; both are "
                "connected again"
            )
        self._locking = locking or not self.server.gtids
        self._need = need
        self._known: BinlogPosition | None = None
        self.snapshots_too_old = 0
        """How often a snapshot did not have the newest change yet."""

    def rows(self, queries: Sequence[RowQuery]) -> Iterator[tuple[RowQuery, object, Sequence[object]]]:
        """Yield (query, key, column values) for every row found, all of one state of the database.

        Raises AdsDbUnavailable, SchemaMismatch.
        """
        finished = False
        try:
            with _mysql.translated(self._db.name):
                self._begin()
                for query in queries:
                    yield from self._run(query)
                self._connection.rollback()
                finished = True
        finally:
            if not finished:  # rows may be half read: the connection cannot be used again as it is
                self._reconnect()

    def keys(self, table: str, key: str, after: Sequence[object] | None, limit: int) -> list[tuple[Any, ...]]:
        """Return the next keys of a table after one, in order, in a snapshot of its own. Raises AdsDbUnavailable.

        Read with locks they have what is in the binlog and not visible yet: its rows are still locked.
        """
        names = [_mysql.quoted(name) for name in key_columns(key)]
        listed = ", ".join(names)
        where, bound = "", list[object]()
        if after is not None:
            # Spelled out: MariaDB does not use an index for (a, b) > (1, 2).
            terms = [
                " AND ".join([*(f"{name} = %s" for name in names[:i]), f"{names[i]} > %s"]) for i in range(len(names))
            ]
            where = " WHERE " + " OR ".join(f"({term})" for term in terms)
            bound = [after[j] for i in range(len(names)) for j in range(i + 1)]
        sql = f"SELECT DISTINCT {listed} FROM {_mysql.quoted(table)}{where} ORDER BY {listed} LIMIT {limit}"
        if self._locking:
            sql += " LOCK IN SHARE MODE"
        with _mysql.translated(self._db.name):
            self._begin()
            found = _mysql.rows(self._connection, sql, bound)
            self._connection.rollback()
        return found

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        if self._connection.open:
            self._connection.close()

    def _run(self, query: RowQuery) -> Iterator[tuple[RowQuery, object, Sequence[object]]]:
        keys = key_columns(query.key)
        names = ", ".join(_mysql.quoted(name) for name in (*keys, *query.columns))
        table = _mysql.quoted(query.source_table)
        suffix = " LOCK IN SHARE MODE" if self._locking else ""
        for start in range(0, len(query.keys), _IN_LIST):
            some = query.keys[start : start + _IN_LIST]
            bound: list[object] | None
            if all(type(key) is int for key in some) and len(keys) == 1:
                where, bound = f"{_mysql.quoted(keys[0])} IN ({', '.join(map(str, some))})", None
            elif len(keys) == 1:
                where, bound = f"{_mysql.quoted(keys[0])} IN ({', '.join(['%s'] * len(some))})", list[object](some)
            else:  # a comparison with a column, unlike one of row values, converts text to its type
                one = " AND ".join(f"{_mysql.quoted(name)} = %s" for name in keys)
                where = " OR ".join([f"({one})"] * len(some))
                bound = [part for key in some for part in split_key(str(key))]
            sql = f"SELECT {names} FROM {table} WHERE {where}{suffix}"
            # Unbuffered: values of many megabytes are judged and dropped one by one.
            with self._connection.cursor(SSCursor) as cursor:
                try:
                    cursor.execute(sql, bound)
                except pymysql.MySQLError as error:
                    if error.args and error.args[0] in (_mysql.UNKNOWN_COLUMN, _mysql.UNKNOWN_TABLE):
                        self._connection.rollback()
                        check_schema(
                            self._connection, self._db.address.database, self._catalog
                        )  # names what is missing
                    raise
                if len(keys) == 1:
                    for row in rows_of(cursor):
                        yield query, row[0], row[1:]
                else:
                    for row in rows_of(cursor):
                        yield query, join_key(row[: len(keys)]), row[len(keys) :]

    def _begin(self) -> None:
        """Begin a snapshot that is at or after the position needed."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        attempt = 0
        need = None if self._locking else self._need()
        while True:
            if self._has_executed(need):
                self._query("START TRANSACTION WITH CONSISTENT SNAPSHOT")
                if self._snapshot_reaches(need):
                    return
                self._connection.rollback()
            self.snapshots_too_old += 1
            if time.monotonic() > deadline:
                raise AdsDbUnavailable(
                    f"ads DB {self._db.name}: a transaction in its binlog is not visible "
                    f"after {_PATIENCE_SECONDS:.0f} s; is the URL a proxy that reads from a lagging replica?"
                )
            time.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
            attempt += 1

    def _has_executed(self, need: BinlogPosition | None) -> bool:
        """On MySQL a GTID counts as executed once its transaction is visible."""
        if need is None or self.server.flavour == MARIADB or not need.gtid:
            return True
        found = _mysql.rows(self._connection, "SELECT GTID_SUBSET(%s, @@GLOBAL.gtid_executed)", (need.gtid,))
        return bool(found[0][0])

    def _snapshot_reaches(self, need: BinlogPosition | None) -> bool:
        """MariaDB tells where in the binlog a snapshot lies."""
        if need is None or self.server.flavour != MARIADB:
            return True
        if self._known is None or not self._known.reached(need):  # a later snapshot is never older
            file, offset = (row[0] for row in _mysql.rows(self._connection, _SNAPSHOT))
            self._known = BinlogPosition(str(file), int(offset))
        return self._known.reached(need)

    def _query(self, statement: str) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)

    def _connected(self) -> Connection[Any]:
        connection = self._db.connect()
        with _mysql.translated(self._db.name), connection.cursor() as cursor:
            # Below it every statement would see a state of its own.
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return connection

    def _reconnect(self) -> None:
        self._connection.close()
        try:
            self._connection = self._connected()
        except AdsDbUnavailable:
            return  # whatever ended the read is being raised; the next use of the closed connection says it again
