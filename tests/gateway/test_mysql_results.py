"""Rows of a SELECT, many at a time: the same as pymysql's own cursor gives, and no connection is used out of step."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pymysql
import pytest
from pymysql.cursors import SSCursor

from gateway._mysql_results import rows_of
from tests.gateway.mysql_support import Ads, client, on_both_servers, run
from tests.gateway.test_mysql_types import ALL_TYPES, ROWS


def select(connection: Any, sql: str) -> list[tuple[Any, ...]]:
    """Return the rows of a statement as `rows_of` reads them."""
    with connection.cursor(SSCursor) as cursor:
        cursor.execute(sql)
        return list(rows_of(cursor))


@on_both_servers
def test_every_type_as_the_driver_gives_it(mysql: Ads, kind: str) -> None:
    """Values of all types, nulls, and texts of all kinds of lengths equal what pymysql's cursor returns."""
    mysql.run("SET SESSION sql_mode = ''", ALL_TYPES.format(compressed="COMPRESSED" if kind == "mysql" else ""))
    for i, row in enumerate(ROWS):
        mysql.run(f"INSERT INTO types ({', '.join(('id', *row))}) VALUES ({', '.join((str(i), *row.values()))})")
    mysql.run("CREATE TABLE texts (n INT PRIMARY KEY, t LONGTEXT, b LONGBLOB)")
    for size in (0, 1, 250, 251, 252, 65_535, 65_536, 200_000, 17 << 20 if kind == "mysql" else 3 << 20):
        mysql.run(f"INSERT INTO texts VALUES ({size}, REPEAT('x', {size}), NULL)")
        mysql.run(f"INSERT INTO texts VALUES (-{size} - 1, NULL, REPEAT('ü', {size} / 2))")
    with closing(client(mysql.url)) as plain:
        for sql in ("SELECT * FROM types", "SELECT t, n, b FROM texts ORDER BY n", "SELECT 1 FROM texts WHERE n = 5"):
            assert select(mysql.app, sql) == run(plain, sql)
            assert select(mysql.app, "SELECT 'in step'") == [("in step",)]
    assert select(mysql.app, "DO 1") == []


def test_rows_that_are_not_taken(mysql: Ads) -> None:
    """Whoever leaves in the middle finds the connection closed, not one that answers with another statement's rows."""
    mysql.run("CREATE TABLE numbers (n INT)", f"INSERT INTO numbers VALUES {','.join(f'({i})' for i in range(20_000))}")
    with closing(client(mysql.url)) as app:
        with app.cursor(SSCursor) as cursor:
            cursor.execute("SELECT n FROM numbers ORDER BY n")
            rows = rows_of(cursor)
            assert next(rows) == (0,)
            rows.close()
        assert not app.open
        with pytest.raises(pymysql.InterfaceError):
            run(app, "SELECT 1")


def test_errors_among_the_rows(mysql: Ads, mysql_admin: Any) -> None:
    """An error that the server sends after some rows is raised as the driver raises it; a cut is a lost connection."""
    mysql.run("CREATE TABLE numbers (n INT)", f"INSERT INTO numbers VALUES {','.join(f'({i})' for i in range(3_000))}")
    endless = "SELECT a.n, b.n FROM numbers a, numbers b"
    for kill, code in (("KILL QUERY", 1317), ("KILL CONNECTION", 2013)):
        with closing(client(mysql.url)) as app:
            with app.cursor(SSCursor) as cursor:
                cursor.execute(endless)
                rows = rows_of(cursor)
                next(rows)
                run(mysql_admin, f"{kill} {app.thread_id()}")
                with pytest.raises(pymysql.OperationalError) as caught:
                    for _ in rows:
                        pass
            assert caught.value.args[0] == code
            assert not app.open
