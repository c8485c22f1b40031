"""Positions of the binlog: stored after what they stand for, not after each message, and never left behind."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli.settings import choose, stage_settings
from gateway import feed_lag
from gateway.binlog import BinlogChangeFeed
from gateway.stage import BATCH
from messaging import Log, OutRecord, Position, open_embedded_log
from messaging.home import Home
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP
from tests.gateway.gateway_support import eventually
from tests.gateway.mysql_support import (
    Ads,
    newest,
    numbers,
    on_both_servers,
    recount,
    run,
    seed,
    stage_on,
    wait_idle,
)


def offset(log: Log) -> int:
    """Return the number after the last one stored."""
    return log.committed(GATEWAY_GROUP, CHANGE_FEED)[0]


def test_single_changes_share_a_stored_position(mysql: Ads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of changes that follow each other each is published at once, their position is stored now and then and soon."""
    monkeypatch.setattr(BinlogChangeFeed, "hold_s", 3.0)
    seed(mysql, 2)
    with stage_on(Home.open(tmp_path / "home"), mysql.url) as (_, log, raised):
        wait_idle(mysql.url, log)
        publishes: list[bool] = []
        publish = log.publish

        def counted(records: Sequence[OutRecord], positions: Sequence[Position] = ()) -> None:
            publish(records, positions)
            publishes.append(bool(positions))

        monkeypatch.setattr(log, "publish", counted)
        started = time.monotonic()
        for i in range(15):
            mysql.run(f"UPDATE ads SET name = 'x{i}' WHERE id = 1")
            eventually(lambda i=i: newest(log)["ad", "1"]["name"] == f"x{i}")  # type: ignore[index,misc]
        took_s = time.monotonic() - started
        assert len(publishes) == 15
        assert sum(publishes) <= 1 + took_s / 3.0
        wait_idle(mysql.url, log, 3.0 + 10.0)
        assert not raised


def test_held_positions_are_bounded_and_stored_at_a_stop(
    mysql: Ads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long they may be held, a batch of changes stores its position, and so does a Gateway told to stop."""
    monkeypatch.setattr(BinlogChangeFeed, "hold_s", 3_600.0)
    seed(mysql, 2)
    home = Home.open(tmp_path / "home")
    with stage_on(home, mysql.url) as (_, log, raised):
        eventually(lambda: len(newest(log)) == 6)
        before = offset(log)
        for some in range(4):
            run(
                mysql.app,
                "INSERT INTO ads (id, ad_group_id, name) "
                f"SELECT seq + {1_000 + some * BATCH}, 1, 'n' FROM {numbers(BATCH // 2 + 1)}",
            )
            mysql.app.commit()
        eventually(lambda: offset(log) > before + BATCH)
        mysql.run("UPDATE ads SET name = 'last' WHERE id = 1")
        eventually(lambda: (newest(log)["ad", "1"] or {})["name"] == "last")
        assert not raised
    with open_embedded_log(home.log, home.wake) as log:
        assert feed_lag(mysql.db, log).waiting == 0


@on_both_servers
def test_stage_by_file_goes_on_after_a_restart(mysql: Ads, tmp_path: Path) -> None:
    """A home whose settings say "file" stores no GTIDs; what is written while the Gateway is down is published."""
    seed(mysql, 20)
    home = Home.open(tmp_path / "home")
    choose(home, ads_db=mysql.url, binlog_position="file")
    settings = stage_settings(home)
    numbers_given: list[int] = []
    for turn in range(3):
        with stage_on(home, settings["ads_db"], binlog_position=settings["binlog_position"]) as (_, log, raised):
            wait_idle(mysql.url, log)
            assert not raised
            assert recount(mysql.url, newest(log)) == []
            stored = json.loads(log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED)[0])
            assert (stored["gtid"], stored["todo"]) == ("", [])
            numbers_given.append(offset(log))
        mysql.run(f"UPDATE campaigns SET name = 'turn{turn}' WHERE id = 3", f"DELETE FROM ads WHERE id = {turn + 1}")
    assert numbers_given == sorted(set(numbers_given))
