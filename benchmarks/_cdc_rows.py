"""The rows of `bench cdc`: the ads DB's table `ads` with eight columns, written in bulk statements or one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import pymysql
from pymysql.constants import CLIENT
from sqlalchemy import create_engine
from sqlalchemy.engine import make_url

from benchmarks._exceptions import BenchmarkFailed
from gateway.models import Base

PER_STATEMENT = 100
"""Rows per bulk statement, as a bulk edit would have."""

COLUMNS = 8
_EIGHT = "ALTER TABLE ads ADD COLUMN bid_micros BIGINT, ADD COLUMN changed_at DATETIME(6) NOT NULL"
"""Two columns that the catalogue does not carry, as real tables have them."""

_PER_CALL = 200
"""One-row transactions in one packet: the writer is not measured and should not take longer than need be."""

HELD_S = 3_600
"""How long a reader may be held while rows are written and others are measured."""

_ATTACH_S = 90.0
"""A JVM on a busy machine takes ten seconds to ask for the binlog."""


class Application:
    """Writes to the database that a mysql+pymysql:// URL names, which is dropped and made anew."""

    def __init__(self, url: str) -> None:
        self.url = make_url(url)
        self._connection = pymysql.connect(
            host=self.url.host or "127.0.0.1",
            port=self.url.port or 3306,
            user=self.url.username or "",
            password=self.url.password or "",
            autocommit=True,
            client_flag=CLIENT.MULTI_STATEMENTS,
            charset="utf8mb4",
        )
        self._next_id = 1
        self._create()

    def bulk(self, rows: int) -> None:
        """Change `rows` rows in statements of a hundred: one half inserts, the other updates what was inserted."""
        first, end = self._take_ids(rows)
        for start in range(first, end, PER_STATEMENT):
            ids = range(start, min(end, start + PER_STATEMENT))
            self._run(f"INSERT INTO ads ({_NAMES}) VALUES {','.join(map(_row, ids))}")
        for start in range(first, end, PER_STATEMENT):
            last = min(end, start + PER_STATEMENT) - 1
            self._run(f"UPDATE ads SET bid_micros = bid_micros + 1 WHERE id BETWEEN {start} AND {last}")

    def one_by_one(self, rows: int) -> None:
        """Change `rows` rows, each in a transaction of its own: one half inserts, the other updates."""
        first, end = self._take_ids(rows)
        statements = [f"INSERT INTO ads ({_NAMES}) VALUES {_row(i)}" for i in range(first, end)]
        statements += [f"UPDATE ads SET bid_micros = bid_micros + 1 WHERE id = {i}" for i in range(first, end)]
        for start in range(0, len(statements), _PER_CALL):
            self._run(";".join(statements[start : start + _PER_CALL]))

    @contextmanager
    def tail_starting(self) -> Iterator[None]:
        """In the block a tail is started; leave when the server sends its binlog to one reader more.

        From then on the tail sees every row, for it has chosen its position before. Raises BenchmarkFailed.
        """
        before = self._readers()
        yield
        deadline = time.monotonic() + _ATTACH_S
        while not self._readers() - before:
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"no reader has asked {self.url.host} for its binlog within {_ATTACH_S:.0f} s")
            time.sleep(0.05)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _create(self) -> None:
        name = self.url.database
        self._run(f"DROP DATABASE IF EXISTS `{name}`")
        self._run(f"CREATE DATABASE `{name}`")
        engine = create_engine(self.url)
        try:
            Base.metadata.create_all(engine)
        finally:
            engine.dispose()
        self._run(f"USE `{name}`")
        self._run(_EIGHT)

    def _readers(self) -> set[int]:
        query = "SELECT id FROM information_schema.processlist WHERE command LIKE 'Binlog Dump%'"
        return {int(row[0]) for row in self._run(query)}

    def _take_ids(self, rows: int) -> tuple[int, int]:
        first = self._next_id
        self._next_id += rows // 2
        return first, self._next_id

    def _run(self, statements: str) -> list[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(statements)
            found = list(cursor.fetchall())
            while cursor.nextset():
                pass
        return found


_NAMES = "id, ad_group_id, pin_id, name, status, review_status, bid_micros, changed_at"


def _row(i: int) -> str:
    return (
        f"({i}, {i // 10}, 'pin-{i % 5_000:08d}', 'Sommerschlußverkauf {i}', 'ACTIVE', 'APPROVED', {i % 9_000}, "
        f"'2026-03-0{i % 9 + 1} 12:34:56.{i % 1_000_000:06d}')"
    )
