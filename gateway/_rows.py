"""Reading whole entities from the SQLite ads DB, all of a batch in one read transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from catalog import Catalog
from catalog.keys import join_key, key_columns, split_key
from gateway import _capture
from gateway._sqlite import quoted, transaction, translated
from gateway.materialize import RowQuery
from gateway.sqlite_ads_db import SqliteAdsDb

_IN_LIST = 900
"""Below the 999 parameters that the oldest SQLite allows."""


class SqliteRowSource:
    """Rows of the SQLite ads DB (implements RowSource). For one thread."""

    def __init__(self, db: SqliteAdsDb, catalog: Catalog) -> None:
        """Open a connection of its own. Raises AdsDbUnavailable."""
        self._path, self._catalog = db.path, catalog
        self._connection = db.connect()

    def rows(self, queries: Sequence[RowQuery]) -> Iterator[tuple[RowQuery, object, Sequence[object]]]:
        """Yield (query, key, column values) for every row found, all of one state of the database.

        Raises AdsDbUnavailable, SchemaMismatch.
        """
        with translated(self._path), transaction(self._connection, "DEFERRED"):
            for query in queries:
                # Qualified: SQLite takes a bare "name" that is no column for a string, and sends it as the value.
                table = quoted(query.source_table)
                columns = key_columns(query.key)
                width = len(columns)
                names = ", ".join(f"{table}.{quoted(name)}" for name in (*columns, *query.columns))
                one = " AND ".join(f"{table}.{quoted(name)} = ?" for name in columns)
                for start in range(0, len(query.keys), _IN_LIST // width):
                    keys: Sequence[int | str] = query.keys[start : start + _IN_LIST // width]
                    where = f"{table}.{quoted(query.key)} IN ({', '.join('?' * len(keys))})"
                    if width > 1:  # a comparison with a column, unlike one of row values, converts text to its type
                        where = " OR ".join([f"({one})"] * len(keys))
                        keys = [part for key in keys for part in split_key(str(key))]
                    try:
                        cursor = self._connection.execute(f"SELECT {names} FROM {table} WHERE {where}", keys)
                    except sqlite3.OperationalError:
                        _capture.check_schema(self._connection, self._catalog)  # names what is missing
                        raise
                    for row in cursor:
                        yield query, join_key(row[:width]), row[width:]

    def keys(self, table: str, key: str, after: Sequence[object] | None, limit: int) -> list[tuple[Any, ...]]:
        """Return the next keys of a table after one, in order, in a snapshot of its own. Raises AdsDbUnavailable."""
        listed = ", ".join(quoted(name) for name in key_columns(key))
        where = " AND ".join(f"{quoted(name)} IS NOT NULL" for name in key_columns(key))
        if after is not None:
            where += f" AND ({listed}) > ({', '.join('?' * len(after))})"
        sql = f"SELECT DISTINCT {listed} FROM {quoted(table)} WHERE {where} ORDER BY {listed} LIMIT {limit}"
        with translated(self._path):
            return self._connection.execute(sql, tuple(after or ())).fetchall()

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        self._connection.close()
