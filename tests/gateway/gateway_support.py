"""What the Gateway's tests share: a captured ads DB, one materialization, and the stage as a thread."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from catalog import Catalog, load_catalog
from catalog.values import decode, refusal
from gateway import Change, Materialized, Materializer, SqliteAdsDb, SqliteChangeFeed, stage
from gateway._rows import SqliteRowSource
from messaging import Log, open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import CHANGE_FEED, DEAD_LETTERS, GATEWAY_GROUP, UPDATES

CATALOG = load_catalog()


class Captured:
    """An ads DB with capture installed, and a plain connection that stands for any application."""

    def __init__(self, path: Path, catalog: Catalog = CATALOG) -> None:
        self.catalog = catalog
        self.db = SqliteAdsDb.at(path)
        self.db.ensure_capture(catalog)
        self.app = sqlite3.connect(path, isolation_level=None)
        self.feed = SqliteChangeFeed(self.db, catalog)
        self.rows = SqliteRowSource(self.db, catalog)

    def changes(self, after: int = 0) -> list[Change]:
        """Return all changes after a number."""
        return self.feed.read(after, 1_000_000)

    def logged(self, after: int = 0) -> list[tuple[str, Any]]:
        """Return (table, key) of all changes after a number."""
        return [(c.source_table, c.key) for c in self.changes(after)]

    def materialize(self, after: int = 0) -> Materialized:
        """Materialize all changes after a number."""
        return Materializer(self.catalog).materialize(self.changes(after), self.rows)

    def close(self) -> None:
        """Close everything."""
        for part in (self.app, self.feed, self.rows, self.db):
            part.close()


def values_of(update: pb.EntityUpdate) -> dict[str, Any]:
    """Decode an update's columns with nothing of the project's."""
    return {c.name: None if refusal(c.value) is not None else decode(c.value) for c in update.columns}


def context_of(home: Home, log: Log, ready: Callable[[int], None] = lambda _: None) -> StageContext:
    """Return a Gateway stage's context."""
    metrics = StageMetrics(home.metrics, "gateway-0")
    return StageContext("gateway", 0, home, CATALOG, log, metrics, threading.Event(), ready)


@contextlib.contextmanager
def running(home: Home) -> Iterator[tuple[StageContext, Log, int]]:
    """Run the stage in a thread; give (context, log, port of the RPC mirror)."""
    ports: list[int] = []
    up = threading.Event()

    def ready(port: int) -> None:
        ports.append(port)
        up.set()

    with open_embedded_log(home.log, home.wake) as log:
        context = context_of(home, log, ready)
        thread = threading.Thread(target=stage.run, args=(context,), daemon=True)
        thread.start()
        try:
            assert up.wait(120), "the stage did not become ready"
            yield context, log, ports[0]
        finally:
            context.stop.set()
            thread.join(120)
            assert not thread.is_alive()


def wait_published(home: Home, log: Log, timeout_s: float = 120.0) -> None:
    """Wait until everything in the change table is published."""
    with contextlib.closing(sqlite3.connect(home.ads_db)) as connection:
        eventually(
            lambda: (
                log.committed(GATEWAY_GROUP, CHANGE_FEED)[0]
                > connection.execute("SELECT max(seq) FROM _adsindex_changes").fetchone()[0]
            ),
            timeout_s,
        )


def eventually(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def published(log: Log) -> list[pb.EntityUpdate]:
    """Return all updates of all lanes; those of one entity are in the order of the log."""
    return [
        pb.EntityUpdate.FromString(record.value)
        for topic in UPDATES.values()
        for partition in log.end_offsets(topic)
        for record in log.read(topic, partition, 0, 1_000_000)
    ]


def letters(log: Log) -> list[pb.DeadLetter]:
    """Return all dead letters."""
    return [pb.DeadLetter.FromString(r.value) for r in log.read(DEAD_LETTERS, 0, 0, 100_000)]
