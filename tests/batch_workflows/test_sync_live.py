"""A sync beside the real stages and a writer that never rests: nothing in flight counts, and damage is mended."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from batch_workflows._runs_model import RunRequest
from batch_workflows.execution import execute
from catalog import load_catalog
from catalog.model import DOCUMENT_BODY, INDEX_CELL
from catalog.values import encode
from cli.inprocess import InProcess
from messaging.home import Home
from storage_repo import Origin
from tests.debug_ui.pipeline import fill

CAMPAIGNS = 20


class _Sql:
    """What `fill` needs of a pipeline."""

    def __init__(self, pipeline: InProcess) -> None:
        self.sql = pipeline.backends.ads_db.execute


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcess]:
    """All stages as threads on a home with twenty campaigns, idle."""
    home = Home.open(tmp_path_factory.mktemp("live"))
    with InProcess(home, load_catalog()) as running:
        fill(_Sql(running), CAMPAIGNS)  # type: ignore[arg-type]
        running.until_idle()
        yield running


@contextmanager
def writing(pipeline: InProcess) -> Iterator[list[int]]:
    """Change the ads DB without pause from another thread; yields how often it was changed."""
    stop, count, choose = threading.Event(), [0], random.Random(5)

    def work() -> None:
        while not stop.wait(0.002):
            campaign = choose.randrange(1, CAMPAIGNS + 1)
            statements = [
                f"UPDATE ads SET name = 'name {count[0]}' WHERE id = {100 * campaign + choose.randrange(2)}",
                f"UPDATE ad_groups SET bid_micros = {choose.randrange(10**5, 10**6)} WHERE id = {10 * campaign}",
                f"UPDATE pins SET title = 'Title {count[0]}' WHERE id = 'pin-{100 * campaign}'",
                f"DELETE FROM ads WHERE id = {9000 + campaign}",
                f"INSERT OR REPLACE INTO ads (id, ad_group_id, pin_id, name) VALUES ({9000 + campaign}, "
                f"{10 * campaign}, 'pin-{100 * campaign}', 'comes and goes')",
            ]
            pipeline.backends.ads_db.execute(choose.choice(statements))
            count[0] += 1

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield count
    finally:
        stop.set()
        thread.join(120)


def test_nothing_in_flight_is_counted(pipeline: InProcess) -> None:
    """Over a pipeline at work a sync finds rows that differ for a moment, and counts none of them as unsynced."""
    in_flight = 0
    with writing(pipeline) as written:
        for _ in range(3):
            counts = execute(pipeline.backends, RunRequest(workflow="sync")).counts
            assert counts["unsynced"] == {}, counts
            assert counts["repaired"] == counts["unsettled"] == 0
            in_flight += int(str(counts["in_flight"]))
    assert written[0] > 100
    assert in_flight > 0, "nothing was ever in flight: the test shows nothing"
    pipeline.until_idle()


def test_damage_is_found_among_living_rows(pipeline: InProcess) -> None:
    """Rows that nobody writes were damaged while others change all the time: exactly those are found and mended."""
    repo, catalog = pipeline.backends.repo, pipeline.backends.catalog
    snapshot = repo.snapshot()
    image = catalog.tables["image"].columns["url"].cell
    advertiser = catalog.tables["advertiser"].columns["name"].cell
    before = {table: dict(snapshot.scan(table)) for table in ("image", "campaign_by_advertiser")}
    transaction = repo.begin(Origin("chaos"))
    transaction.put("image", "img-101", image, encode("https://nowhere"))
    transaction.delete("advertiser", "1", advertiser)
    transaction.delete("campaign_by_advertiser", "2\x1f7", INDEX_CELL)
    transaction.commit()
    with writing(pipeline):
        counts = execute(pipeline.backends, RunRequest(workflow="sync")).counts
    unsynced = counts["unsynced"]
    assert isinstance(unsynced, dict)
    assert {kind for kind in unsynced if not kind.startswith("served")} == {
        "advertiser:different", "image:different", "campaign_by_advertiser:index_row_missing"
    }  # fmt: skip
    pipeline.until_idle()
    snapshot = repo.snapshot()
    assert snapshot.get("image", "img-101")[image] == before["image"]["img-101"][image]
    assert dict(snapshot.scan("campaign_by_advertiser")) == before["campaign_by_advertiser"]
    assert execute(pipeline.backends, RunRequest(workflow="sync")).counts["unsynced"] == {}
    assert snapshot.get("ad_document", "101", [DOCUMENT_BODY])
