"""A pipeline that is damaged on purpose, and the clean rebuild that it must equal after a sync."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from batch_workflows._sync_common import Sync
from batch_workflows.sync_documents import Served
from batch_workflows.sync_lag import Lag
from catalog.model import DELETED, DOCUMENT_BODY, INDEX_CELL, RUN, SOURCE_VERSION, TIMELINE
from catalog.values import decode, encode
from messaging import Position
from messaging.topics import (
    ARGUS_GROUP,
    LANES,
    NOTIFICATIONS,
    REPO_FEED,
    UPDATER_GROUP,
    UPDATES,
    WAL_PROXY_GROUP,
)
from storage_repo import INDEX_SEPARATOR, Origin
from tests.debug_ui.pipeline import Pipeline, fill

OWN_CELLS = {SOURCE_VERSION, RUN, TIMELINE}
"""Cells that say when and by whom, which no two pipelines have alike."""

Rows = dict[str, dict[str, dict[str, bytes]]]


def work(pipeline: Pipeline) -> None:
    """Let all stages do what there is but serving, which a test of damaged documents looks at as published."""
    pipeline.run("gateway", "updater", "wal_proxy", "argus")


def sync_of(pipeline: Pipeline, *, repair: bool = True, pause: Callable[[float], object] | None = None) -> Sync:
    """Return a sync of a pipeline that works while the sync waits, and not otherwise."""
    backends = pipeline.backends
    lag = Lag(backends.ads_db, backends.log, backends.repo_feed, pause or (lambda _: work(pipeline)), patience_s=5)
    return Sync(backends.home, backends.catalog, backends.repo, backends.log, backends.ads_db, lag, repair)


def filled(root: Path, campaigns: int = 12) -> Pipeline:
    """Return an idle pipeline with some campaigns."""
    pipeline = Pipeline.open(root)
    fill(pipeline, campaigns)
    work(pipeline)
    return pipeline


def rebuilt(pipeline: Pipeline, root: Path) -> Pipeline:
    """Return what a pipeline comes to that has seen nothing but the ads DB as it is now."""
    (root / "home").mkdir(parents=True)
    target = root / "home" / "ads.db"
    with closing(sqlite3.connect(pipeline.backends.home.ads_db)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
        for kind, name in new.execute(
            "SELECT type, name FROM sqlite_master WHERE name LIKE '\\_adsindex%' ESCAPE '\\' AND type <> 'index'"
        ).fetchall():
            new.execute(f"DROP {kind} IF EXISTS {name}")
        new.commit()
    clean = Pipeline.open(root / "home")
    work(clean)
    return clean


def state_of(pipeline: Pipeline) -> tuple[Rows, dict[str, bytes]]:
    """Return all living rows of the Repo, and everything that is served."""
    snapshot, rows = pipeline.backends.repo.snapshot(), Rows()
    catalog = pipeline.backends.catalog
    for table, _ in catalog.repo_tables():
        if table.startswith("_"):
            continue
        found = {
            row: {c: _said(v) for c, v in cells.items() if c not in OWN_CELLS} for row, cells in snapshot.scan(table)
        }
        if table == catalog.document_table:
            living = {row for row, cells in snapshot.scan(catalog.root, columns=[SOURCE_VERSION, DELETED])
                      if DELETED not in cells}  # fmt: skip
            found = {row: cells for row, cells in found.items() if row in living or DOCUMENT_BODY in cells}
        rows[table] = {row: cells for row, cells in found.items() if cells and set(cells) != {DELETED}}
    served = Served(sync_of(pipeline))
    return rows, {document: body for document in served.documents() if (body := served.body(document)) is not None}


def _said(value: bytes) -> bytes:
    """Return a cell's value; who never saw a row says that it has not arrived, not that it was deleted."""
    if b"has been deleted" not in value:
        return value
    said = decode(value)
    if isinstance(said, str):
        return encode(said.replace("has been deleted", "has not arrived"))
    return encode([sentence.replace("has been deleted", "has not arrived") for sentence in said])


class Chaos:
    """Damages a pipeline behind its back, seeded; `done` says what it did."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self._pipeline, self._random = pipeline, random.Random(seed)
        self._repo, self._catalog = pipeline.backends.repo, pipeline.backends.catalog
        self.done: list[str] = []

    def all(self, each: int = 3) -> None:
        """Do every kind of damage some times."""
        kinds: list[Callable[[], None]] = [
            self.drop_messages, self.bypass_capture, self.delete_row, self.corrupt_cell, self.corrupt_version,
            self.resurrect, self.lose_index_row, self.invent_index_row, self.corrupt_document, self.invent_document,
        ]  # fmt: skip
        # Messages first: they need a pipeline that still works.
        for kind in kinds:
            for _ in range(each):
                kind()

    def drop_messages(self) -> None:
        """Change the ads DB, and lose a random half of the messages of a random stage."""
        ad = self._pick("ads", "id")
        self._pipeline.sql(f"UPDATE ads SET name = 'changed {self._random.random()}', status = "
                           f"'{self._random.choice(['ACTIVE', 'PAUSED'])}' WHERE id = {ad}")  # fmt: skip
        campaign = self._pick("campaigns", "id")
        self._pipeline.sql(f"UPDATE campaigns SET objective = 'O{self._random.randrange(9)}' WHERE id = {campaign}")
        self._pipeline.run("gateway")
        where = self._random.choice(["updates", "notifications", "deltas"])
        if where != "updates":
            self._pipeline.run("updater", "wal_proxy")
        if where == "updates":
            self._forget(UPDATER_GROUP, list(UPDATES.values()))
        elif where == "notifications":
            self._forget(ARGUS_GROUP, [NOTIFICATIONS[lane] for lane in LANES])
        else:
            self._pipeline.argus(lose=lambda delta: self._random.random() < 0.5)
        work(self._pipeline)
        self.done.append(f"dropped {where} of ad {ad}, campaign {campaign}")

    def bypass_capture(self) -> None:
        """Insert, change or delete in the ads DB without a trace in the change feed."""
        db = self._pipeline.backends.ads_db
        before = db.last_change()
        ad = self._pick("ads", "id")
        statement = self._random.choice(
            [
                f"DELETE FROM ads WHERE id = {ad}",
                f"UPDATE ads SET ad_group_id = {self._pick('ad_groups', 'id')} WHERE id = {ad}",
                f"INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES ({self._random.randrange(10**6, 10**7)}, "
                f"{self._pick('ad_groups', 'id')}, '{self._pick('pins', 'id')}', 'unseen')",
                f"UPDATE budgets SET daily_micros = 7 WHERE campaign_id = {self._pick('campaigns', 'id')}",
                f"DELETE FROM pins WHERE id = '{self._pick('pins', 'id')}'",
            ]
        )
        db.execute(statement)
        db.execute(f"DELETE FROM _adsindex_changes WHERE seq > {before}")
        # What was given a number and is gone was never there to be read.
        self._pipeline.log.set_committed([Position("gateway", "ads_db.changes", 0, db.last_change() + 1)])
        self.done.append(statement)

    def delete_row(self) -> None:
        """Delete all cells of an entity in the Repo."""
        table, row = self._entity()
        self._write(table, row, dict.fromkeys(self._repo.snapshot().get(table, row)))

    def corrupt_cell(self) -> None:
        """Overwrite a cell that comes from the ads DB, or that a handler derives, with something else."""
        table, row = self._entity()
        cells = [c.cell for c in self._catalog.tables[table].columns.values() if c.signal is None]
        value = self._random.choice([encode("garbage"), encode(7), b"\xff\xff", None])
        self._write(table, row, {self._random.choice(cells): value})

    def corrupt_version(self) -> None:
        """Give an entity a version that no update will ever have, and another value."""
        table, row = self._entity()
        name = next(c.cell for c in self._catalog.tables[table].columns.values() if c.source_table)
        version = self._random.choice([encode(1 << 60), b"\xff", encode("x")])
        self._write(table, row, {SOURCE_VERSION: version, name: encode("old")})

    def resurrect(self) -> None:
        """Bring back an ad that was deleted in good order, or one that never was."""
        ad = str(self._random.choice([self._random.randrange(10**8, 10**9), self._random.randrange(1, 50)]))
        _, model = self._entity("ad")
        cells = self._repo.snapshot().get("ad", model)
        self._write("ad", ad, {**dict.fromkeys(self._repo.snapshot().get("ad", ad)), **cells})

    def lose_index_row(self) -> None:
        """Delete an index row."""
        table = self._random.choice(self._catalog.references()).index_table
        if rows := [row for row, _ in self._repo.snapshot().scan(table)]:
            self._write(table, self._random.choice(rows), {INDEX_CELL: None})

    def invent_index_row(self) -> None:
        """Add an index row of a row that there is, or is not."""
        reference = self._random.choice(self._catalog.references())
        row = self._random.choice([self._entity(reference.table)[1], "999999999"])
        target = self._random.choice([self._entity(reference.target)[1], "888888888"])
        self._write(reference.index_table, f"{target}{INDEX_SEPARATOR}{row}", {INDEX_CELL: b""})

    def corrupt_document(self) -> None:
        """Change or delete a document, or one of its derived columns."""
        table = self._catalog.document_table
        rows = [row for row, _ in self._repo.snapshot().scan(table)]
        cells = [DOCUMENT_BODY, *(c.cell for c in self._catalog.tables[table].columns.values())]
        self._write(
            table, self._random.choice(rows), {self._random.choice(cells): self._random.choice([None, b"\x01"])}
        )

    def invent_document(self) -> None:
        """Add a document of an ad that is not there."""
        table = self._catalog.document_table
        body = next(cells[DOCUMENT_BODY] for _, cells in self._repo.snapshot().scan(table, columns=[DOCUMENT_BODY]))
        self._write(table, str(self._random.randrange(10**7, 10**8)), {DOCUMENT_BODY: body})

    def _write(self, table: str, row: str, cells: dict[str, Any]) -> None:
        """Write to the Repo, and let nobody be notified of it."""
        transaction = self._repo.begin(Origin("chaos"))
        for cell, value in cells.items():
            if value is None:
                transaction.delete(table, row, cell)
            else:
                transaction.put(table, row, cell, value)
        transaction.commit()
        self._pipeline.log.set_committed([Position(WAL_PROXY_GROUP, REPO_FEED, 0, self._repo.last_commit_ts())])
        self.done.append(f"{table}/{row}: {cells}")

    def _entity(self, table: str = "") -> tuple[str, str]:
        name = table or self._random.choice([t.name for t in self._catalog.entity_tables()])
        rows = [row for row, cells in self._repo.snapshot().scan(name) if SOURCE_VERSION in cells]
        return name, self._random.choice(rows or ["1"])

    def _pick(self, table: str, column: str) -> Any:
        rows = self._pipeline.backends.ads_db.select(f"SELECT {column} AS k FROM {table} ORDER BY 1", {})
        return self._random.choice(rows)["k"]

    def _forget(self, group: str, topics: list[str]) -> None:
        log = self._pipeline.log
        for topic in topics:
            for partition, end in log.end_offsets(topic).items():
                if self._random.random() < 0.5:
                    log.set_committed([Position(group, topic, partition, end)])
