"""The Gateway under the switches: it holds while publishing is off, and drops what is too old."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from gateway.sqlite_ads_db import SqliteAdsDb
from messaging import open_embedded_log
from messaging.home import Home
from messaging.reports import report_drops
from messaging.switches import DROP_OLDER, set_switch
from messaging.topics import ensure_topics
from tests.gateway.gateway_support import eventually, published, running, wait_published
from tests.gateway.test_gateway_capture import ONE_OF_EACH


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return a new home."""
    return Home.open(tmp_path / "home")


def test_publishing_off_holds_and_old_updates_are_dropped_and_listed(home: Home) -> None:
    """While publishing is off nothing is published and nothing is lost; on again, with a limit on age, updates over it
    are dropped, counted by reason and lane and listed, deletions are not, and fresh updates flow."""
    with open_embedded_log(home.log, home.wake) as log:
        ensure_topics(log)
        set_switch(log, "publishing", "off", who="anna", why="test")
    with running(home) as (context, log, _):
        db = SqliteAdsDb(home.ads_db)
        db.execute(ONE_OF_EACH)
        db.execute("DELETE FROM ads")
        held = context.metrics
        time.sleep(1.5)  # the updates grow old; meanwhile nothing may come
        assert published(log) == []
        assert held.counters["changes"] == 0
        for name in DROP_OLDER.values():
            set_switch(log, name, "1s", who="anna", why="test")
        set_switch(log, "publishing", "on", who="anna", why="test")
        wait_published(home, log)
        assert [(u.table, u.deleted) for u in published(log)] == [("ad", True)]
        assert [hop.stage for hop in published(log)[0].header.hops] == ["gateway"]
        dropped = {name: n for name, n in context.metrics.counters.items() if name.startswith("dropped:too_old:")}
        lines = report_drops(log)
        assert sum(dropped.values()) == sum(line.count for line in lines) == 5
        assert {f"dropped:too_old:{line.lane}" for line in lines} == set(dropped)
        assert {line.stage for line in lines} == {"gateway"}
        db.execute("UPDATE campaigns SET name = 'fresh'")
        eventually(lambda: ("campaign", False) in [(u.table, u.deleted) for u in published(log)])
