"""A sync's look at derived rows gives the same on a pool of processes as in one, and leaves no row out."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from batch_workflows import _sync_tasks
from batch_workflows._sync_common import Part, Sync
from batch_workflows._sync_tasks import ranges_of
from batch_workflows.base_index import open_embedded_repo
from batch_workflows.engines import LocalEngine
from batch_workflows.sync_documents import DocumentSync
from batch_workflows.sync_lag import Lag
from benchmarks._base_repo import fill
from catalog import load_catalog
from catalog.model import DOCUMENT_BODY
from catalog.values import encode
from gateway import AdsDb
from messaging import Position, open_embedded_log
from messaging.home import Home
from messaging.topics import REPO_FEED, WAL_PROXY_GROUP
from storage_repo import Origin
from storage_repo.feed import StoredFeed

ADS = 180
CATALOG = load_catalog()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9])
def test_ranges_hold_every_row_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows is to the size of a range."""
    monkeypatch.setattr(_sync_tasks, "RANGE_ROWS", 4)
    rows = [f"row {number}" for number in range(count)]
    ranges = list(ranges_of(rows))
    found = [row for after, before in ranges for row in rows if row > after and (not before or row < before)]
    assert found == rows
    assert (ranges[0][0], ranges[-1][1], len(ranges)) == ("", "", max(1, -(-count // 4)))


def test_a_pool_finds_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed and lost documents, and derived columns of joined rows, by every range."""
    monkeypatch.setattr(_sync_tasks, "RANGE_ROWS", 50)
    home = Home.open(tmp_path)
    with (
        closing(open_embedded_log(home.log, home.wake)) as log,
        closing(open_embedded_repo(home, CATALOG)) as repo,
        AdsDb.open(home.ads_db) as ads_db,
        closing(LocalEngine(2)) as engine,
    ):
        fill(home, CATALOG, repo, log, ADS, 7)
        table = CATALOG.document_table
        documents = [row for row, _ in repo.snapshot().scan(table, columns=[DOCUMENT_BODY])]
        pins = [row for row, _ in repo.snapshot().scan("pin")]
        transaction = repo.begin(Origin("damage"))
        for row in documents[::7]:
            transaction.put(table, row, DOCUMENT_BODY, b"\x80")
        for row in documents[3::31]:
            transaction.delete(table, row, DOCUMENT_BODY)
        for row in pins[::20]:
            transaction.put("pin", row, CATALOG.column("pin.language").cell, encode("xx"))
        transaction.commit()
        log.set_committed([Position(WAL_PROXY_GROUP, REPO_FEED, 0, repo.last_commit_ts())])

        def looked(**pool: object) -> dict[str, Part]:
            lag = Lag(ads_db, log, StoredFeed(repo, log), lambda _: None, patience_s=0.0)
            sync = Sync(home, CATALOG, repo, log, ads_db, lag, repair=False, **pool)  # type: ignore[arg-type]
            with closing(DocumentSync(sync)) as documents:
                parts = {root: documents.run(root) for root in documents.roots}
            for part in parts.values():
                part.seconds = 0.0
                part.examples = {kind: sorted(rows) for kind, rows in part.examples.items() if len(rows) < 10}
            return parts

        alone = looked()
        pooled = looked(engine=engine, open_repo=partial(open_embedded_repo, home, CATALOG))
    assert pooled == alone
    assert alone["ad"].rows == ADS
    assert sum(alone["ad"].unsynced.values()) >= len({*documents[::7], *documents[3::31]})
    assert sum(alone["pin"].unsynced.values()) == len(pins[::20])
