"""What the tests on a real MySQL share: a database of their own, the Gateway on it, and an independent recount."""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy.engine import make_url

from catalog import load_catalog
from compose import ServerInfo
from gateway import Change, Materialized, Materializer, MysqlAdsDb, stage
from gateway.backends import open_rows
from gateway.binlog import BinlogChangeFeed
from messaging import Log, open_embedded_log
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, UPDATES, ensure_topics
from tests.gateway.gateway_support import eventually, values_of

CATALOG = load_catalog()

on_both_servers = pytest.mark.parametrize("kind", ["mysql", "mysql8"], ids=["mariadb", "mysql8"])
"""Run a test on MariaDB and on Oracle's MySQL: see the fixtures `kind`, `server` and `mysql`."""


def client(url: str, **settings: Any) -> Any:
    """Open a plain autocommit connection that stands for any application."""
    parsed = make_url(url)
    return pymysql.connect(
        host=parsed.host or "",
        port=parsed.port or 3306,
        user=parsed.username or "",
        password=parsed.password or "",
        database=parsed.database,
        charset="utf8mb4",
        autocommit=True,
        **settings,
    )


def run(connection: Any, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements; return the rows of the last one."""
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


class Ads:
    """An ads DB of a test's own on a server, with a plain connection beside it."""

    def __init__(self, server_url: str, *, name: str = "") -> None:
        self.name = name or f"ads_{secrets.token_hex(6)}"
        base = make_url(server_url)
        with contextlib.closing(client(server_url)) as connection:
            run(connection, f"CREATE DATABASE IF NOT EXISTS {self.name} CHARACTER SET utf8mb4")
        self.url = base.set(database=self.name).render_as_string(hide_password=False)
        self.db = MysqlAdsDb.at(self.url)
        self.app = client(self.url)

    def run(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements of an application, each committed."""
        return run(self.app, *statements)

    def transaction(self, *statements: str) -> None:
        """Run statements of an application in one transaction."""
        self.app.begin()
        run(self.app, *statements)
        self.app.commit()

    def close(self, *, drop: bool = True) -> None:
        """Close, and drop the database."""
        if drop:
            run(self.app, f"DROP DATABASE IF EXISTS {self.name}")
        self.app.close()
        self.db.close()


class Tail:
    """The feed, its rows and a log, driven by hand; publishes as the stage does."""

    def __init__(self, ads: Ads, root: Path, *, by_file: bool = False, catalog: Any = CATALOG) -> None:
        self.home = Home.open(root)
        self.log = open_embedded_log(self.home.log, self.home.wake)
        ensure_topics(self.log)
        self.ads, self.by_file, self.catalog = ads, by_file, catalog
        self.materializer = Materializer(catalog)
        self.open()

    def open(self) -> None:
        """Connect, going on after the stored position."""
        self.feed = BinlogChangeFeed(self.ads.db, self.catalog, self.log, by_file=self.by_file)
        self.rows = open_rows(self.ads.db, self.catalog, self.feed)
        self.last = self.feed.begin(0)

    def reopen(self) -> None:
        """Connect anew, as after a crash."""
        self.feed.close()
        self.rows.close()
        self.open()

    def once(self, limit: int = 500) -> tuple[list[Change], Materialized]:
        """Read, materialize and publish one batch."""
        changes = self.feed.read(self.last, limit)
        result = self.materializer.materialize(changes, self.rows)
        if changes:
            self.last = changes[-1].seq
        position = self.feed.stored(self.last)
        self.log.publish(result.records(0), positions=[position] if position else [])
        return changes, result

    def until(self, done: Callable[[list[Change], Materialized], bool], timeout_s: float = 120.0) -> None:
        """Go on until a batch satisfies `done`."""
        deadline = time.monotonic() + timeout_s
        while not done(*self.once()):
            assert time.monotonic() < deadline, "it did not happen in time"
            self.feed.wait(self.last, 0.1)

    def drain(self) -> tuple[list[Change], list[pb.EntityUpdate], list[pb.DeadLetter]]:
        """Write a mark to the ads DB and go on until it comes; return everything before it."""
        mark = f"mark-{secrets.token_hex(6)}"
        self.ads.run(f"INSERT INTO images (id, url) VALUES ('{mark}', '')")
        changes: list[Change] = []
        updates: list[pb.EntityUpdate] = []
        letters: list[pb.DeadLetter] = []

        came: list[bool] = []

        def seen(batch: list[Change], result: Materialized) -> bool:
            changes.extend(c for c in batch if c.key != mark)
            updates.extend(u for u in result.updates if u.row != mark)
            letters.extend(result.dead_letters)
            came.extend(c.key == mark and not c.backfill for c in batch)
            return any(came) and not self.feed.snapshot_pending

        self.until(seen)
        self.ads.run(f"DELETE FROM images WHERE id = '{mark}'")
        self.until(lambda batch, _: any(c.key == mark for c in batch))
        return changes, updates, letters

    def stored(self) -> dict[str, Any]:
        """Return what is stored with the position."""
        text = self.log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED)[0]
        return dict(json.loads(text)) if text else {}

    def close(self) -> None:
        """Close everything."""
        for part in (self.feed, self.rows, self.log):
            part.close()


@contextlib.contextmanager
def stage_on(home: Home, url: str, **settings: str) -> Iterator[tuple[StageContext, Log, list[BaseException]]]:
    """Run the Gateway stage in a thread on an ads DB; give (context, log, what it raised)."""
    up = threading.Event()
    raised: list[BaseException] = []
    with open_embedded_log(home.log, home.wake) as log:
        context = StageContext(
            "gateway", 0, home, CATALOG, log, StageMetrics(home.metrics, "gateway-0"), threading.Event(),
            lambda _: up.set(), settings={"ads_db": url, **settings},
        )  # fmt: skip

        def work() -> None:
            try:
                stage.run(context)
            except Exception as error:  # handed to the test
                raised.append(error)
                up.set()
                raise

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            assert up.wait(120), "the stage did not become ready"
            yield context, log, raised
        finally:
            context.stop.set()
            thread.join(120)
            assert not thread.is_alive()


Entities = dict[tuple[str, str], dict[str, Any] | None]


def newest(log: Log) -> Entities:
    """Return the newest published state per entity, None for deleted; judged by versions, as the Updater does."""
    versions: dict[tuple[str, str], int] = {}
    states: Entities = {}
    for topic in UPDATES.values():
        for partition in log.end_offsets(topic):
            for record in log.read(topic, partition, 0, 10_000_000):
                update = pb.EntityUpdate.FromString(record.value)
                key = update.table, update.row
                if update.source_version > versions.get(key, 0):
                    versions[key] = update.source_version
                    states[key] = None if update.deleted else values_of(update)
    return states


def recount(url: str, states: Entities) -> list[str]:
    """Compare campaigns, budgets and ads in the database with published states, by SQL of the test's own."""
    wrong: list[str] = []
    with contextlib.closing(client(url)) as connection:
        campaigns = run(
            connection,
            "SELECT c.id, c.name, c.status, b.daily_micros FROM campaigns c LEFT JOIN budgets b ON campaign_id = c.id",
        )
        ads = run(connection, "SELECT id, name, status FROM ads")
    alive = {key for key, state in states.items() if state is not None}
    for id_, name, status, daily in campaigns:
        state = states.get(("campaign", str(id_))) or {}
        if (state.get("name"), state.get("status"), state.get("budget_daily_micros")) != (name, status, daily):
            wrong.append(f"campaign {id_}: {state} instead of {name, status, daily}")
    for id_, name, status in ads:
        state = states.get(("ad", str(id_))) or {}
        if (state.get("name"), state.get("status")) != (name, status):
            wrong.append(f"ad {id_}: {state} instead of {name, status}")
    there = {("campaign", str(row[0])) for row in campaigns} | {("ad", str(row[0])) for row in ads}
    wrong.extend(f"{key} is published but gone" for key in alive - there if key[0] in ("campaign", "ad"))
    return wrong


def wait_idle(url: str, log: Log, timeout_s: float = 120.0) -> None:
    """Wait until the Gateway has published everything that is in the database now."""
    from gateway import feed_lag

    with MysqlAdsDb(url) as db:
        eventually(lambda: feed_lag(db, log).waiting == 0, timeout_s)


def numbers(count: int) -> str:
    """Return a table expression with the numbers 1 to `count` in its column seq, as any server makes it."""
    digits = " UNION ALL ".join(f"SELECT {digit} AS d" for digit in range(10))
    places = range(len(str(count)))
    total = " + ".join(f"p{place}.d * {10**place}" for place in places)
    tables = " CROSS JOIN ".join(f"({digits}) AS p{place}" for place in places)
    return f"(SELECT {total} AS seq FROM {tables} HAVING seq BETWEEN 1 AND {count}) AS numbers"


def seed(ads: Ads, campaigns: int, ads_per_campaign: int = 2) -> None:
    """Fill an ads DB by set statements."""
    ads.run(
        f"INSERT INTO campaigns (id, advertiser_id, name) SELECT seq, 1, CONCAT('c', seq) FROM {numbers(campaigns)}",
        f"INSERT INTO budgets (campaign_id, daily_micros) SELECT seq, seq FROM {numbers(campaigns)}",
        f"INSERT INTO ads (id, ad_group_id, name) SELECT seq, seq, CONCAT('a', seq) FROM "
        f"{numbers(campaigns * ads_per_campaign)}",
    )


__all__ = [
    "Ads",
    "ServerInfo",
    "Tail",
    "client",
    "newest",
    "numbers",
    "on_both_servers",
    "recount",
    "run",
    "seed",
    "stage_on",
    "wait_idle",
]
