"""A home with documents, and bases built of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from batch_workflows.base_index import BaseReport, BuildOptions, build_base_index
from batch_workflows.base_store import BaseStore
from manas import Base
from messaging import Log, open_embedded_log
from messaging.home import Home
from messaging.topics import ensure_topics
from tests.argus.world import AD, AD_GROUP, ADVERTISER, CAMPAIGN, IMAGE, PIN, World

CHECKED: dict[str, Any] = {"shards": 2, "range_rows": 30}
"""Options of builds that are told apart by what they finished."""


@dataclass
class Built:
    """A home whose Repo is filled by the real Updater."""

    root: Path

    def __post_init__(self) -> None:
        self.home = Home.open(self.root)
        self.log: Log = open_embedded_log(self.home.log, self.home.wake)
        ensure_topics(self.log)
        self.world = World(self.home.root)

    def close(self) -> None:
        """Release everything."""
        self.world.close()
        self.log.close()

    @cached_property
    def store(self) -> BaseStore:
        """The home's own bases."""
        return BaseStore.of(self.home)

    def fill(self, ads: int, *, settle: bool = False) -> None:
        """Store ads 1..ads with a pin each; the documents are derived by whoever builds, unless `settle`."""
        entities: list[tuple[str, object, dict[str, Any]]] = [
            ("advertiser", 1, ADVERTISER), ("campaign", 1, CAMPAIGN), ("image", "i1", IMAGE),
            *(("ad_group", g, {**AD_GROUP, "bid_micros": 100_000 + g * 7}) for g in range(1, 6)),
        ]  # fmt: skip
        for ad in range(1, ads + 1):
            entities.append(("pin", f"p{ad}", {**PIN, "id": f"p{ad}", "title": f"{PIN['title']} {ad}"}))
            entities.append(("ad", ad, {**AD, "id": ad, "ad_group_id": 1 + ad % 5, "pin_id": f"p{ad}"}))
        for start in range(0, len(entities), 500):
            self.world.put_many(entities[start : start + 500])
        if settle:
            self.world.settle()

    def build(self, *, engine: Any = None, hooks: Any = None, **options: Any) -> BaseReport:
        """Build a base."""
        return build_base_index(
            self.home, self.world.catalog, self.world.repo, self.log,
            options=BuildOptions(**options), engine=engine, hooks=hooks,
        )  # fmt: skip

    def served(self, version: str) -> dict[str, bytes]:
        """Return the documents of a base in the home, which must be whole."""
        return documents_of(self.home.base / version)

    def expected(self, ads: int) -> dict[str, bytes]:
        """Return the servable documents as the handlers make them."""
        bodies = self.world.expected(range(1, ads + 1))
        return {ad: body for ad, body in bodies.items() if body is not None}


def documents_of(directory: Path) -> dict[str, bytes]:
    """Return the documents of a base by id; each must be in one shard only."""
    found: dict[str, bytes] = {}
    for segment in Base.open(directory).segments:
        for internal in range(segment.count):
            assert segment.document_id(internal) not in found
            found[segment.document_id(internal)] = segment.body(internal)
    return found


def files_of(directory: Path) -> dict[str, str]:
    """Return the checksum of every file that depends on the documents alone."""
    manifest = Base.open(directory).manifest
    return {name: entry.blake2b for name, entry in manifest.files.items() if not name.endswith("manifest.json")}
