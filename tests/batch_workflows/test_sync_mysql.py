"""A sync on a real MariaDB: its keys and collations, rows emptied without events, and versions at the binlog's end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import JsonValue

from argus import load_registry
from argus.sources import CachedSource, PerformanceDb
from batch_workflows import BaseRefused
from batch_workflows._runs_model import RunRequest
from batch_workflows.execution import execute
from batch_workflows.runs import RunStore
from batch_workflows.sync_requests import submit_wanted
from catalog.model import DELETED, SOURCE_VERSION
from catalog.values import encode
from debug_ui.backends import Backends
from gateway import lost_rows
from manas import Index
from messaging.topics import BUDGETS, DELTAS
from storage_repo import Origin, RepoSchema
from storage_repo.embedded import EmbeddedRepo
from storage_repo.feed import StoredFeed
from tests.debug_ui.pipeline import Pipeline
from tests.gateway.conftest import kind, mysql, server, tail
from tests.gateway.mysql_support import CATALOG, Ads, Tail
from tests.stack_support import mysql_server, oracle_mysql_server, own_stack, shared_stack

__all__ = ["kind", "mysql", "mysql_server", "oracle_mysql_server", "own_stack", "server", "shared_stack", "tail"]

ADS = (
    "INSERT INTO ads (id, ad_group_id, pin_id, name) VALUES (1, 1, 'a', 'one'), (2, 1, 'B', 'two'), "
    "(9, 1, 'c', 'nine'), (10, 2, 'é', 'ten'), (11, 2, 'Z', 'eleven')"
)
PINS = "INSERT INTO pins (id, title) VALUES ('a', 'A'), ('B', 'B'), ('c', 'C'), ('é', 'E'), ('Z', 'Z')"


@pytest.fixture
def pipeline(tail: Tail, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """The rest of the pipeline behind the tail of a MariaDB's binlog, at work while a sync waits."""
    repo = EmbeddedRepo.open(tail.home.store, RepoSchema.of(CATALOG.repo_tables()), wake_dir=tail.home.wake)
    index = Index(CATALOG)
    backends = Backends(tail.home, CATALOG, tail.log, repo, StoredFeed(repo, tail.log), tail.ads.db, index)
    source = CachedSource("performance", PerformanceDb(tail.home.performance_db))
    opened = Pipeline(backends, index, load_registry(CATALOG), source, {DELTAS: {}, BUDGETS: {}})
    monkeypatch.setattr("batch_workflows.sync._sleep", lambda _: work(tail, opened))
    yield opened
    source.close()
    repo.close()


def work(tail: Tail, pipeline: Pipeline) -> None:
    """Let everybody do what there is."""
    tail.drain()
    pipeline.run("updater", "wal_proxy", "argus")


def living(pipeline: Pipeline, table: str) -> set[str]:
    """Return the rows of a table that are there."""
    rows = pipeline.backends.repo.snapshot().scan(table)
    return {row for row, cells in rows if SOURCE_VERSION in cells and DELETED not in cells}


def sync(pipeline: Pipeline, **parameters: JsonValue) -> dict[str, JsonValue]:
    """Run a sync as its stage does, and return its counts."""
    return execute(pipeline.backends, RunRequest(workflow="sync", parameters=parameters)).counts


def test_a_truncated_table_is_made_whole_without_anybody(mysql: Ads, tail: Tail, pipeline: Pipeline) -> None:
    """TRUNCATE names no rows: the Gateway asks for a sync of the table, and that deletes what the ads DB lacks."""
    mysql.run(PINS, ADS)
    work(tail, pipeline)
    assert lost_rows.pending(tail.log) is None
    mysql.run("TRUNCATE TABLE ads", "INSERT INTO ads (id, ad_group_id, pin_id) VALUES (2, 1, 'B')")
    work(tail, pipeline)
    assert living(pipeline, "ad") == {"1", "2", "9", "10", "11"}, "nobody can know yet"
    wanted = lost_rows.pending(tail.log)
    assert wanted is not None
    assert wanted.tables == {"ad"}
    runs = RunStore(pipeline.backends.repo)
    assert submit_wanted(tail.log, runs)
    record = execute(pipeline.backends, runs.queued()[0], queued=True)
    assert record.counts["unsynced"] == {"ad:extra_in_repo": 4}
    assert lost_rows.pending(tail.log) is None
    work(tail, pipeline)
    assert living(pipeline, "ad") == {"2"}
    assert not list(pipeline.backends.repo.snapshot().scan("ad_by_ad_group", prefix="2"))


def test_no_base_is_published_while_nobody_tails_the_binlog(mysql: Ads, tail: Tail, pipeline: Pipeline) -> None:
    """Nothing waits for the Updater then, and the Repo looks idle: the gate sees what lies in the binlog unread."""

    def build() -> JsonValue:
        parameters: dict[str, JsonValue] = {"stored": True, "max_still_s": 0.3}
        return execute(pipeline.backends, RunRequest(workflow="base-index", parameters=parameters)).counts["faults"]

    mysql.run(PINS, ADS)
    work(tail, pipeline)
    assert build() == []
    mysql.run("UPDATE ads SET name = 'unseen' WHERE id = 2")
    with pytest.raises(BaseRefused, match=r"the Gateway stands still, with \d+ bytes of the binlog of the ads DB"):
        build()
    work(tail, pipeline)
    assert build() == []


def test_damage_is_mended_whatever_the_collation_and_the_version(
    mysql: Ads,
    tail: Tail,
    pipeline: Pipeline,
) -> None:
    """Text keys in an order of the server's own; and rows at the newest version, or one from nowhere, are repaired."""
    mysql.run(PINS, ADS)
    work(tail, pipeline)
    assert sync(pipeline)["unsynced"] == {}
    repo = pipeline.backends.repo
    transaction = repo.begin(Origin("chaos"))
    columns = CATALOG.tables["pin"].columns
    transaction.put("pin", "é", columns["title"].cell, encode("X"))
    transaction.put("pin", "Z", SOURCE_VERSION, encode(1 << 60))
    transaction.put("pin", "Z", columns["brand"].cell, encode("invented"))
    transaction.delete("pin", "a", SOURCE_VERSION)
    for cell in repo.snapshot().get("ad", "11"):
        transaction.delete("ad", "11", cell)
    transaction.commit()
    found = sync(pipeline)
    assert found["unsynced"] == {
        "pin:different": 2, "pin:missing_in_repo": 1, "ad:missing_in_repo": 1
    }  # fmt: skip
    work(tail, pipeline)
    again = sync(pipeline)
    assert (again["unsynced"], again["ranges_differing"]) == ({}, 0)
    assert living(pipeline, "pin") == {"a", "B", "c", "é", "Z"}
