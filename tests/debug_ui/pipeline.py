"""The pipeline's real cores on one home, driven step by step, so that a test can leave out any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from argus import load_registry, paused_handlers
from argus.core import ArgusCore
from argus.sources import CachedSource, PerformanceDb
from argus.stage import positions_after
from catalog import Catalog, load_catalog
from debug_ui.backends import Backends
from gateway import AdsDb, Materializer, SqliteChangeFeed
from gateway._rows import SqliteRowSource
from manas import Index
from messaging import Position, Record, open_embedded_log
from messaging.api import Log, OutRecord
from messaging.dead_letters import out_record
from messaging.headers import now_us
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.switches import Switches
from messaging.topics import (
    ARGUS_GROUP,
    BUDGETS,
    CHANGE_FEED,
    DELTAS,
    GATEWAY_GROUP,
    LANE_OF,
    LANES,
    NOTIFICATIONS,
    REPO_FEED,
    SIGNALS,
    UPDATER_GROUP,
    UPDATES,
    WAL_PROXY_GROUP,
    ensure_topics,
)
from storage_repo import RepoSchema
from storage_repo.embedded import EmbeddedRepo
from storage_repo.feed import StoredFeed
from storage_repo.wal_proxy import ChangeNotifier
from updater.core import UpdaterCore

STAGES = ("gateway", "updater", "wal_proxy", "argus", "manas")


@dataclass
class Pipeline:
    """All stages of one home. Each method runs one stage until it has nothing to do and says how much it did."""

    backends: Backends
    index: Index
    registry: Any
    source: CachedSource[int, Any]
    positions: dict[str, dict[int, int]] = field(default_factory=lambda: {DELTAS: {}, BUDGETS: {}})

    @classmethod
    def open(cls, root: Path, catalog: Catalog | None = None, *, capture: bool = True) -> Pipeline:
        """Open an empty home, by default with the built-in catalogue."""
        home = Home.open(root)
        catalog = catalog or load_catalog()
        log = open_embedded_log(home.log, home.wake)
        ensure_topics(log)
        repo = EmbeddedRepo.open(home.store, RepoSchema.of(catalog.repo_tables()), wake_dir=home.wake)
        ads_db = AdsDb.open(home.ads_db)
        if capture:
            ads_db.ensure_capture(catalog)
        index = Index(catalog)
        source = CachedSource("performance", PerformanceDb(home.performance_db))
        backends = Backends(
            home=home,
            catalog=catalog,
            log=log,
            repo=repo,
            repo_feed=StoredFeed(repo, log),
            ads_db=ads_db,
            serving=index,
        )
        pipeline = cls(backends, index, load_registry(catalog), source)
        index.describe = lambda: {"positions": pipeline.positions}
        return pipeline

    @cached_property
    def _argus(self) -> ArgusCore:
        return ArgusCore(
            self.backends.repo,
            self.registry,
            {"performance": self.source},
            code_version="test",
            paused=lambda: paused_handlers(Switches(self.log)),
        )

    @property
    def log(self) -> Log:
        return self.backends.log

    def close(self) -> None:
        self.source.close()
        self.backends.repo.close()
        self.log.close()
        self.backends.ads_db.close()

    def sql(self, statement: str) -> None:
        """Change the ads DB as any application would."""
        self.backends.ads_db.execute(statement)

    def run(self, *stages: str) -> None:
        """Run the named stages (default: all), in the order of the life of an update, until all are idle."""
        names = stages or STAGES
        while sum(getattr(self, name)() for name in names):
            pass

    def gateway(self) -> int:
        catalog, db = self.backends.catalog, self.backends.ads_db
        last = max(0, self.log.committed(GATEWAY_GROUP, CHANGE_FEED)[0] - 1)
        with closing(SqliteChangeFeed(db, catalog)) as feed, closing(SqliteRowSource(db, catalog)) as rows:
            changes = feed.read(last, 1000)
            if changes:
                records = Materializer(catalog).materialize(changes, rows).records(now_us())
                self.log.publish(records, [Position(GATEWAY_GROUP, CHANGE_FEED, 0, changes[-1].seq + 1)])
            return len(changes)

    def updater(self) -> int:
        records = self._take(UPDATER_GROUP, [*(UPDATES[lane] for lane in LANES), SIGNALS])
        outcome = UpdaterCore(self.backends.repo, self.backends.catalog).apply(
            [pb.EntityUpdate.FromString(r.value) for r in records]
        )
        self._done(UPDATER_GROUP, records, [out_record(letter) for letter in outcome.dead_letters])
        return len(records)

    def wal_proxy(self) -> int:
        notifier = ChangeNotifier(self.backends.catalog, self.registry.graph.watched_cells())
        position = self.log.committed(WAL_PROXY_GROUP, REPO_FEED)[0]
        changes = self.backends.repo.changes(position, 1000)
        if changes:
            found = notifier.notifications(changes, now_us())
            out = [
                OutRecord(NOTIFICATIONS[LANE_OF[n.header.lane]], f"{n.table}/{n.row}", n.SerializeToString())
                for n in found
            ]
            self.log.publish(out, [Position(WAL_PROXY_GROUP, REPO_FEED, 0, changes[-1].commit_ts)])
        return len(changes)

    def argus(self, lose: Callable[[pb.DocumentDelta], bool] = lambda _: False) -> int:
        """Run the handlers; `lose` says of which documents nobody shall hear."""
        records = self._take(ARGUS_GROUP, [NOTIFICATIONS[lane] for lane in LANES])
        outcome = self._argus.process(records)
        outcome.deltas = [delta for delta in outcome.deltas if not lose(delta)]
        self.log.publish(outcome.records(), positions_after(records))
        return len(records)

    def manas(self) -> int:
        """Follow deltas and budgets, and write the metrics that the server would write."""
        count = 0
        metrics = StageMetrics(self.backends.home.metrics, "manas-0")
        for topic in (BUDGETS, DELTAS):
            for partition, end in self.log.end_offsets(topic).items():
                records = self.log.read(topic, partition, self.positions[topic].get(partition, 0), 10_000)
                self.positions[topic][partition] = end
                count += len(records)
                if topic == BUDGETS:
                    self.index.apply_budgets([pb.BudgetState.FromString(r.value) for r in records])
                    continue
                deltas = [pb.DocumentDelta.FromString(r.value) for r in records]
                self.index.apply_documents(deltas)
                for delta in deltas:
                    metrics.time("latency:high:total", now_us() - delta.header.origin_us)
        metrics.flush(force=True)
        return count

    def _take(self, group: str, topics: Sequence[str]) -> list[Record]:
        taken = []
        for topic in topics:
            for partition, offset in self.log.committed(group, topic).items():
                taken += self.log.read(topic, partition, offset, 1000)
        return taken

    def _done(self, group: str, records: Sequence[Record], out: Sequence[OutRecord]) -> None:
        upto = {(r.topic, r.partition): r.offset + 1 for r in records}
        self.log.publish(out, [Position(group, topic, partition, o) for (topic, partition), o in upto.items()])


def fill(pipeline: Pipeline, campaigns: int = 3) -> None:
    """Put healthy campaigns into the ads DB: number i has ad group 10*i, and ads 100*i and 100*i + 1."""
    statements = ["INSERT INTO advertisers (id, name, country) VALUES (1, 'Acme & <Sons>', 'US'), (2, 'Rival', 'US')"]
    for i in range(1, campaigns + 1):
        advertiser = 1 if i == 1 else 2
        statements += [
            f"INSERT INTO campaigns (id, advertiser_id, name) VALUES ({i}, {advertiser}, 'Campaign {i}')",
            f"INSERT INTO budgets (campaign_id, daily_micros) VALUES ({i}, 50000000)",
            f"INSERT INTO ad_groups (id, campaign_id, name, bid_micros) VALUES ({10 * i}, {i}, 'Group {i}', 1000000)",
            f"INSERT INTO targeting_specs (ad_group_id, spec) VALUES ({10 * i}, "
            '\'{"age": ["30-34"], "gender": ["M"], "interests": [16, 20], "exclude": {"country": ["FR"]}}\')',
        ]
        for n in (0, 1):
            ad = 100 * i + n
            statements += [
                f"INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES ({ad}, {10 * i}, 'pin-{ad}', 'Ad {ad}')",
                "INSERT INTO pins (id, title, description, brand, category_path, price_micros, currency, image_id) "
                f"VALUES ('pin-{ad}', 'Sturdy shoes number {ad}', 'Made for walking', 'Walker', 'Shoes > Walking', "
                f"{ad * 1000000}, 'USD', 'img-{ad}')",
                f"INSERT INTO images (id, url, width) VALUES ('img-{ad}', 'https://img.example/{ad}.jpg', 600)",
            ]
    pipeline.sql(";\n".join(statements))
