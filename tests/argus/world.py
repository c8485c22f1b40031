"""The pipeline around Argus in one process: the real Updater core, Repo, change notifier and log, driven by hand."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from argus import ArgusCore, Hint, Outcome, Registry, compute_documents, load_registry
from argus._handler import Handler
from argus.sources import CachedSource, CacheSettings, PerformanceDb, PerformanceRow
from catalog import DEFAULT_CATALOG, LaneName, load_catalog
from catalog.model import DOCUMENT_BLOCKED, DOCUMENT_BODY
from catalog.values import check, decode, encode
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from storage_repo import RepoSchema
from storage_repo.embedded import EmbeddedRepo
from storage_repo.wal_proxy import ChangeNotifier
from updater.core import ADS_DB, UpdaterCore

CATALOG = load_catalog(DEFAULT_CATALOG)

ADVERTISER: dict[str, Any] = {
    "name": "Acme",
    "status": "ACTIVE",
    "billing_status": "OK",
    "country": "US",
    "currency": "USD",
}
CAMPAIGN: dict[str, Any] = {
    "advertiser_id": 1,
    "name": "Spring",
    "objective": "TRAFFIC",
    "status": "ACTIVE",
    "starts_at": 1_000_000,
}
AD_GROUP: dict[str, Any] = {
    "campaign_id": 1,
    "name": "Group",
    "status": "ACTIVE",
    "bid_micros": 250_000,
    "targeting_spec": '{"age": ["30-34"], "interests": [16, 5]}',
}
AD: dict[str, Any] = {
    "id": 1,
    "ad_group_id": 1,
    "pin_id": "p1",
    "name": "Ad",
    "status": "ACTIVE",
    "review_status": "APPROVED",
}
PIN: dict[str, Any] = {
    "id": "p1",
    "title": "Solid Women's Shorts",
    "description": "These are the shorts for you, and they are of cotton.",
    "brand": "Alisha",
    "category_path": "Clothing >> Women's Clothing",
    "status": "ACTIVE",
    "price_micros": 379_000_000,
    "list_price_micros": 999_000_000,
    "currency": "INR",
    "link": "https://example.com/p1",
    "image_id": "i1",
}
IMAGE: dict[str, Any] = {"url": "https://example.com/i1.jpg", "width": 100, "height": 100, "status": "ACTIVE"}


@dataclass
class World:
    """One Repo and what feeds it; `feed_position` is how far its changes have been notified of."""

    path: Path
    registry: Registry = field(default_factory=lambda: load_registry(CATALOG))
    version: int = 0
    feed_position: int = 0

    def __post_init__(self) -> None:
        self.catalog = self.registry.catalog
        self.wake = self.path / "wake"
        self.wake.mkdir(parents=True, exist_ok=True)
        self.repo = EmbeddedRepo.open(
            self.path / "store", RepoSchema.of(self.catalog.repo_tables()), wake_dir=self.wake
        )
        self.updater = UpdaterCore(self.repo, self.catalog)
        self.notifier = ChangeNotifier(self.catalog, self.registry.graph.watched_cells())
        self.performance = PerformanceDb(self.path / "performance.db")
        self.opened: list[CachedSource[Any, Any]] = []

    def close(self) -> None:
        """Release everything."""
        for source in self.opened:
            source.close()
        self.performance.close()
        self.repo.close()

    def sources(self, settings: CacheSettings | None = None) -> dict[str, CachedSource[Any, Any]]:
        """Return the real source behind a cache of its own; the time-out allows for a busy machine."""
        cached: CachedSource[Any, Any] = CachedSource(
            "performance", self.performance, settings or CacheSettings(timeout_s=10)
        )
        self.opened.append(cached)
        return {"performance": cached}

    def core(self, **options: Any) -> ArgusCore:
        """Return a core that never really sleeps."""
        options.setdefault("sleep", lambda _: None)
        sources = options.pop("sources", None) or self.sources()
        return ArgusCore(self.repo, options.pop("registry", self.registry), sources, **options)

    def put(self, table: str, row: object, /, *, lane: LaneName = LaneName.HIGH, **columns: Any) -> None:
        """Let the Updater store a whole entity as the ads DB has it now."""
        self.put_many([(table, row, columns)], lane=lane)

    def put_many(
        self, entities: Iterable[tuple[str, object, dict[str, Any]]], *, lane: LaneName = LaneName.HIGH
    ) -> None:
        """Let the Updater store many entities."""
        updates = []
        for table, row, columns in entities:
            self.version += 1
            update = pb.EntityUpdate(
                header=new_header(lane, now_us(), f"trace{self.version}"),
                table=table,
                row=str(row),
                source=ADS_DB,
                source_version=self.version,
            )
            for name, value in columns.items():
                checked = check(self.catalog.column(f"{table}.{name}"), value)
                update.columns.add(name=name, value=b"" if checked is None else encode(checked))
            updates.append(update)
        outcome = self.updater.apply(updates)
        assert not outcome.dead_letters, outcome.dead_letters

    def delete(self, table: str, row: object) -> None:
        """Let the Updater delete an entity."""
        self.version += 1
        self.updater.apply(
            [
                pb.EntityUpdate(
                    header=new_header(LaneName.HIGH, now_us()),
                    table=table,
                    row=str(row),
                    source=ADS_DB,
                    source_version=self.version,
                    deleted=True,
                )
            ]
        )

    def perform(self, *rows: PerformanceRow) -> None:
        """Change the performance database and signal what changed."""
        self.performance.upsert(rows)
        changed = self.performance.unannounced()
        self.signal(changed)
        self.performance.announced(changed)

    def signal(self, versions: dict[int, int]) -> None:
        """Send the content signal "performance" for ads."""
        updates = []
        for ad_id, version in versions.items():
            update = pb.EntityUpdate(
                header=new_header(LaneName.MEDIUM, now_us()),
                table="ad",
                row=str(ad_id),
                source="performance",
                source_version=version,
            )
            update.columns.add(name="performance_version", value=encode(version))
            updates.append(update)
        self.updater.apply(updates)

    def hints(self) -> list[Hint]:
        """Return notifications of everything committed since the last call."""
        changes = self.repo.changes(self.feed_position, 1_000_000)
        if changes:
            self.feed_position = changes[-1].commit_ts
        return [Hint(n) for n in self.notifier.notifications(changes, 1)]

    def settle(self, core: ArgusCore | None = None) -> list[Outcome]:
        """Process until nothing is left to do but to wait for a source."""
        core = core or self.core()
        outcomes: list[Outcome] = []
        waiting = self.hints()
        while waiting:
            outcomes.append(core.process_hints(waiting[:256]))
            left = waiting[256:] + self.hints()
            waiting = left + [Hint(n) for n in outcomes[-1].notifications]
            waiting += [Hint(n, deferred=True) for n in outcomes[-1].deferred]
            if not left and outcomes[-1].only_waits:
                break
            assert len(outcomes) < 1_000, "it does not settle"
        return outcomes

    def ad(self, ad_id: object = 1, **changes: Any) -> None:
        """Store a healthy advertiser, campaign, ad group, pin, image and ad; `changes` are of the ad."""
        self.put_many(
            [
                ("advertiser", 1, ADVERTISER),
                ("campaign", 1, CAMPAIGN),
                ("ad_group", 1, AD_GROUP),
                ("pin", "p1", PIN),
                ("image", "i1", IMAGE),
                ("ad", ad_id, {**AD, "id": ad_id, **changes}),
            ]
        )

    def body(self, ad_id: object = 1) -> bytes | None:
        """Return the servable document."""
        return self.repo.snapshot().get("ad_document", str(ad_id)).get(DOCUMENT_BODY)

    def document(self, ad_id: object = 1) -> dict[str, Any]:
        """Return the decoded servable document, which must be there."""
        body = self.body(ad_id)
        assert body is not None, self.blocked(ad_id)
        return dict(decode(body))

    def blocked(self, ad_id: object = 1) -> list[str]:
        """Return why a document is not servable."""
        return list(decode(self.repo.snapshot().get("ad_document", str(ad_id)).get(DOCUMENT_BLOCKED)) or [])

    def expected(self, ad_ids: Sequence[object]) -> dict[str, bytes | None]:
        """Return what the documents ought to be, computed from the source columns alone."""
        computed = compute_documents(self.repo.snapshot(), self.registry, self.sources(), [str(a) for a in ad_ids])
        return {ad_id: body for ad_id, body, _ in computed}

    def stored(self, ad_ids: Sequence[object]) -> dict[str, bytes | None]:
        """Return what the documents are."""
        return {str(ad_id): self.body(ad_id) for ad_id in ad_ids}


def with_handlers(*changed: Handler) -> Registry:
    """Return the registry with some built-in handlers replaced by others of the same name."""
    handlers = dict(load_registry(CATALOG).handlers)
    return load_registry(CATALOG, {**handlers, **{h.name: h for h in changed}}.values())


def notification(table: str, row: object, *columns: str, lane: LaneName = LaneName.HIGH, **more: Any) -> Hint:
    """Make a hint by hand."""
    header = new_header(lane, 1_000_000, "trace")
    return Hint(pb.Notification(header=header, table=table, row=str(row), columns=columns, **more))
