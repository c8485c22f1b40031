"""Historical performance of ads: a reporting database outside the pipeline, read through the cache.

A change of it is two steps: `upsert`, then a content signal "performance" per ad that `unannounced` names, then
`announced`. Whoever dies in between signals again, which costs a run and changes nothing.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from argus._exceptions import SourceUnavailable

_LOOKUP_CHUNK = 500
"""Below SQLite's oldest default limit of 999 parameters."""
_BUSY_SECONDS = 10.0
"""An import of a whole file holds the write lock for a second or two."""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS performance (
  ad_id INTEGER PRIMARY KEY,
  version INTEGER NOT NULL,
  impressions INTEGER NOT NULL,
  clicks INTEGER NOT NULL,
  conversions INTEGER NOT NULL,
  approved_conversions INTEGER NOT NULL,
  spend_micros INTEGER NOT NULL,
  announced INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX IF NOT EXISTS performance_unannounced ON performance (ad_id) WHERE announced < version;
"""


@dataclass(frozen=True, slots=True)
class PerformanceRow:
    """What one ad has done so far; spend in micros of the advertiser's currency."""

    ad_id: int
    impressions: int
    clicks: int
    conversions: int
    approved_conversions: int
    spend_micros: int


_COLUMNS = ", ".join(f.name for f in fields(PerformanceRow))


class PerformanceDb:
    """The reporting database (SQLite), safe for several threads and processes."""

    def __init__(self, path: Path) -> None:
        """Name the database; its first use opens it, creating it if missing, so that a broken one stops nobody."""
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections: list[sqlite3.Connection] = []

    def upsert(self, rows: Iterable[PerformanceRow]) -> dict[int, int]:
        """Store rows in one transaction and return ad_id -> new version of those that are new or different.

        Versions only grow, also over a database that was deleted and filled again (they begin at the clock). Later
        rows of one ad win. Killed inside, nothing was stored. Raises SourceUnavailable.
        """
        wanted = {row.ad_id: row for row in rows}
        connection = self._connection(writes=True)
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                newest = connection.execute("SELECT coalesce(max(version), 0) FROM performance").fetchone()[0]
                version = max(newest + 1, time.time_ns() // 1000)
                known = self._read(connection, list(wanted))
                changed = [row for ad_id, row in wanted.items() if ad_id not in known or known[ad_id][1] != row]
                connection.executemany(
                    f"INSERT INTO performance ({_COLUMNS}, version) VALUES (?, ?, ?, ?, ?, ?, ?) "
                    "ON CONFLICT (ad_id) DO UPDATE SET version = excluded.version, "
                    "impressions = excluded.impressions, clicks = excluded.clicks, "
                    "conversions = excluded.conversions, approved_conversions = excluded.approved_conversions, "
                    "spend_micros = excluded.spend_micros",
                    [(*astuple(row), version) for row in changed],
                )
        except sqlite3.Error as error:
            raise SourceUnavailable(f"cannot write the performance database {self._path}: {error}") from error
        return {row.ad_id: version for row in changed}

    def unannounced(self, limit: int = 100_000) -> dict[int, int]:
        """Return ad_id -> version of rows whose change has not been marked as signalled yet."""
        query = "SELECT ad_id, version FROM performance WHERE announced < version ORDER BY ad_id LIMIT ?"
        try:
            return dict(self._connection(writes=True).execute(query, (limit,)).fetchall())
        except sqlite3.Error as error:
            raise SourceUnavailable(f"cannot read the performance database {self._path}: {error}") from error

    def announced(self, versions: Mapping[int, int]) -> None:
        """Mark versions as signalled; call it once their signals are durably published."""
        connection = self._connection(writes=True)
        try:
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "UPDATE performance SET announced = max(announced, ?) WHERE ad_id = ?",
                    [(version, ad_id) for ad_id, version in versions.items()],
                )
        except sqlite3.Error as error:
            raise SourceUnavailable(f"cannot write the performance database {self._path}: {error}") from error

    def lookup(self, ad_ids: Sequence[int], /) -> dict[int, tuple[int, PerformanceRow]]:
        """Return ad_id -> (version, row) of those that exist. Raises SourceUnavailable."""
        try:
            return self._read(self._connection(), ad_ids)
        except sqlite3.Error as error:
            raise SourceUnavailable(f"cannot read the performance database {self._path}: {error}") from error

    def close(self) -> None:
        """Close all connections; call it when no other thread uses the database any more."""
        with self._lock:
            for connection in self._connections:
                connection.close()
            self._connections.clear()
            self._local = threading.local()

    @staticmethod
    def _read(connection: sqlite3.Connection, ad_ids: Sequence[int]) -> dict[int, tuple[int, PerformanceRow]]:
        found: dict[int, tuple[int, PerformanceRow]] = {}
        for start in range(0, len(ad_ids), _LOOKUP_CHUNK):
            chunk = ad_ids[start : start + _LOOKUP_CHUNK]
            marks = ", ".join("?" * len(chunk))
            query = f"SELECT version, {_COLUMNS} FROM performance WHERE ad_id IN ({marks})"
            for version, *values in connection.execute(query, chunk):
                found[values[0]] = (version, PerformanceRow(*values))
        return found

    def _connection(self, *, writes: bool = False) -> sqlite3.Connection:
        """One connection per thread and purpose: readers run beside a writer only on separate ones.

        A reader neither makes the file nor its tables: it never waits for a lock.
        """
        kept = "writer" if writes else "reader"
        connection: sqlite3.Connection | None = getattr(self._local, kept, None)
        if connection is None:
            uri = f"{self._path.resolve().as_uri()}?mode={'rwc' if writes else 'rw'}"
            try:
                connection = sqlite3.connect(
                    uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
                )
                if writes:
                    connection.execute("PRAGMA journal_mode=WAL")
                    connection.executescript(_SCHEMA)
            except sqlite3.Error as error:
                raise SourceUnavailable(
                    f"cannot open the performance database {self._path}: {error}; import performance, or check the file"
                ) from error
            with self._lock:
                self._connections.append(connection)
            setattr(self._local, kept, connection)
        return connection
