"""States of the feed with more tables than a position has room for: stored short, read whole, after any crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from catalog import load_catalog
from gateway import PositionLost, feed_lag
from gateway._kept_texts import LongStates
from gateway.binlog_position import BinlogPosition, FeedState
from messaging import Log, open_embedded_log
from messaging._limits import MAX_METADATA_BYTES
from messaging.home import Home
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, GTID_SETS, ensure_topics
from tests.gateway.mysql_support import Ads, Tail, newest

NAMES = [f"table_number_{number:07d}" for number in range(300)]


def state(after: tuple[int | str, ...] | None = (1,), done: int = 0) -> FeedState:
    """Return a state of many tables, the first `done` of which were sent."""
    at = BinlogPosition("binlog.000007", 1_234_567, "u" * 1_500, "s" * 120)
    return FeedState(at, tuple(NAMES[done:]), after, dict.fromkeys(NAMES, "0123abcd"), 3)


@pytest.fixture
def log(home: Home) -> Log:
    """An embedded log with its topics."""
    found = open_embedded_log(home.log, home.wake)
    ensure_topics(found)
    return found


@pytest.mark.parametrize("after", [None, (7,), ("x" * 900, 7), ("键" * 255, "🦊" * 255)])
def test_many_tables_and_long_keys_fit_and_come_back(log: Log, after: tuple[int | str, ...] | None) -> None:
    """What is stored fits into Kafka's limit; another process reads the whole; the same tables are published once."""
    with log:
        states = LongStates(log)
        for offset in range(3):
            wanted = state(after)
            at = BinlogPosition("binlog.000007", offset, wanted.position.gtid, wanted.position.server)
            text = FeedState(at, wanted.todo, after, wanted.declared, 3).to_json()
            stored = states.shortened(text)
            assert len(stored) <= MAX_METADATA_BYTES < len(text)
            assert LongStates(log).whole(stored) != stored
            assert FeedState.from_json(LongStates(log).whole(stored)) == FeedState.from_json(text)
        again = LongStates(log)
        again.whole(stored)
        again.shortened(text)
        assert log.end_offsets(GTID_SETS)[0] == 1


def test_short_states_stay_as_they_are(log: Log) -> None:
    """Nothing is published for them; what is no state is left to who reads it; a lost rest is a lost position."""
    with log:
        text = FeedState(BinlogPosition("f.000001", 4), ("ad",), ("a",), {"ad": "0"}).to_json()
        assert LongStates(log).shortened(text) == text
        for whole in (text, "", "[1]", "no JSON"):
            assert LongStates(log).whole(whole) == whole
        assert log.end_offsets(GTID_SETS)[0] == 0
        with pytest.raises(PositionLost, match="Run the resync workflow"):
            LongStates(log).whole('{"kept":"0123456789abcdef"}')


def test_state_whose_position_was_not_stored_leaves_the_one_before_readable(log: Log) -> None:
    """Tables are published under another key than the one that the stored position needs."""
    with log:
        stored = LongStates(log).shortened(state().to_json())
        for crash in range(1, 4):
            again = LongStates(log)
            again.whole(stored)
            again.shortened(state(done=crash).to_json())
        kept = {record.key: record.value for record in log.read(GTID_SETS, 0, 0, 100)}  # as compaction leaves it
        assert any(value.decode().startswith(json.loads(stored)["kept"]) for value in kept.values())


def test_catalogue_of_many_tables_is_followed(mysql: Ads, tmp_path: Path) -> None:
    """With 70 tables of 20 characters the Gateway begins, stores where it is, and goes on after a crash."""
    names = [f"stock_of_the_store_{number:02d}" for number in range(70)]
    tables = "".join(
        f"  {name}:\n    owner: stock\n    key: int\n    source: {{table: {name}, key: id}}\n"
        f"    columns:\n      label: {{type: string, from: {name}.label}}\n"
        for name in names
    )
    file = tmp_path / "stock.yaml"
    document = f"  document: {{owner: stock, key: int, root: {names[0]}}}\n"
    file.write_text(
        f"version: 1\nname: stock\ntables:\n{tables}{document}fields:\n  label: {{from: {names[0]}.label}}\n"
    )
    mysql.run(*(f"CREATE TABLE {name} (id INT PRIMARY KEY, label VARCHAR(9))" for name in names))
    mysql.run(*(f"INSERT INTO {name} VALUES (1, 'one')" for name in names))
    tail = Tail(mysql, tmp_path / "home", catalog=load_catalog(file))
    try:
        for _ in range(3):
            tail.once()
        assert feed_lag(mysql.db, tail.log).waiting >= len(tail.feed._state.todo) > 60
        tail.reopen()
        assert 60 < len(tail.feed._state.todo) < 70
        tail.until(lambda *_: not tail.feed.snapshot_pending)
        assert len(newest(tail.log)) == 70
        tail.once()
        assert len(tail.log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED)[0]) <= MAX_METADATA_BYTES
        tail.reopen()
        assert not tail.feed.snapshot_pending
    finally:
        tail.close()
