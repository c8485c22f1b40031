"""GTID sets of MySQL: their algebra, and sets too long for what Kafka keeps with a position."""

from __future__ import annotations

import random
import uuid
from contextlib import closing
from pathlib import Path

import pytest
from pymysqlreplication.gtid import Gtid, GtidSet

from catalog import load_catalog
from compose import Stack
from gateway import PositionLost, request_resync
from gateway._binlog_transactions import Transactions
from gateway._exceptions import BinlogFormat
from gateway._gtid_set import MAX_STORED_BYTES, GtidSets, add, difference, union
from gateway._mysql import Address
from gateway._mysql_server import status_faults
from gateway.binlog_events import TAGGED_GTID, Event
from gateway.binlog_position import BinlogPosition
from messaging import Log, open_embedded_log
from messaging._limits import MAX_METADATA_BYTES
from messaging.home import Home
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, GTID_SETS, ensure_topics
from tests.gateway.mysql_support import Ads, Tail, client, run
from tests.stack_support import up_or_skip

A, B = (str(uuid.UUID(int=number)) for number in (1, 2))


def members(gtids: str) -> set[tuple[str, int]]:
    """Return every transaction of a set."""
    found = set()
    for entry in filter(None, gtids.split(",")):
        server, *intervals = entry.split(":")
        for low, _, high in (each.partition("-") for each in intervals):
            found |= {(server, number) for number in range(int(low), int(high or low) + 1)}
    return found


def test_sets_are_added_and_compared_as_sets() -> None:
    """Union, difference and one more transaction agree with sets of numbers, and with the library, on random sets."""
    chance = random.Random(7)
    for _ in range(300):
        one, other = ("", "")
        for _ in range(chance.randrange(12)):
            one = add(one, f"{chance.choice((A, B))}:{chance.randrange(1, 15)}")
            other = add(other, f"{chance.choice((A, B))}:{chance.randrange(1, 15)}")
        assert members(union(one, other)) == members(one) | members(other)
        assert members(difference(one, other)) == members(one) - members(other)
        fresh = Gtid(f"{A}:{chance.randrange(20, 30)}")
        assert GtidSet(add(one, str(fresh))) == GtidSet(one or None) + fresh


def test_tagged_gtids_are_refused_in_a_sentence() -> None:
    """A MySQL 8.3 or newer that has any says so at start; one that comes later ends the reading."""
    address = Address.of("mysql+pymysql://ads:secret@db/ads")
    for executed, tag in [
        (f"{A}:1-5", ""),
        (f"{A}:1-5,\n{B}:1:3-9", ""),
        ("", ""),
        (f"{A}:1-5:ads_import:1-3:7", "ads_import"),
        (f"{B}:1-9,\n{A}:_x:1", "_x"),
    ]:
        faults = status_faults(("binlog.000001", 157, "", "", executed), address)
        assert (len(faults), all(repr(tag) in fault for fault in faults)) == (bool(tag), True)
    assert status_faults(("binlog.000001", 157, "", ""), address) == []  # MariaDB
    reader = Transactions(load_catalog(), "ads", BinlogPosition("binlog.000001", 4, f"{A}:1-5"), "mysql")
    with pytest.raises(BinlogFormat, match="has a tag"):
        reader.add(Event(TAGGED_GTID, 0, 1, 200, 0x80, b""))


def long_set(servers: int = 250, gaps: int = 300) -> str:
    """Return a set of many servers, one of which has many gaps."""
    uuids = [str(uuid.UUID(int=1000 + number)) for number in range(servers)]
    with_gaps = ":".join(str(2 * number + 1) for number in range(gaps))
    return ",".join([*(f"{server}:1-{number + 1}" for number, server in enumerate(uuids)), f"{B}:{with_gaps}"])


@pytest.fixture
def log(home: Home) -> Log:
    """An embedded log with its topics."""
    found = open_embedded_log(home.log, home.wake)
    ensure_topics(found)
    return found


def test_long_sets_are_stored_short_and_come_back_whole(log: Log) -> None:
    """Whatever was stored last, or before it, is read by another process; a whole set is published seldom."""
    with log:
        sets, gtids = GtidSets(log), long_set()
        assert sets.shortened(f"{A}:1-5") == f"{A}:1-5"
        before = sets.shortened(gtids)
        for number in range(1, 1_600, 2):  # every one is a gap, the worst case
            gtids = add(gtids, f"{A}:{number}")
            if number % 16 == 1:
                stored = sets.shortened(gtids)
                assert len(stored) <= MAX_STORED_BYTES + 20
        stored = sets.shortened(gtids)
        assert 1 < log.end_offsets(GTID_SETS)[0] < 10
        assert members(GtidSets(log).whole(stored)) == members(gtids)
        assert members(GtidSets(log).whole(before)) == members(long_set())
        with pytest.raises(PositionLost, match="Run the resync workflow"):
            GtidSets(log).whole(f"@{'0' * 16}+")


def test_a_position_that_was_not_stored_leaves_the_one_before_readable(log: Log) -> None:
    """A whole set is published under another key than the one that the stored position needs."""
    with log:
        first = GtidSets(log).shortened(long_set())
        for crash in range(3):  # published, and died before the position was stored
            again = GtidSets(log)
            again.whole(first)
            again.shortened(long_set(300 + crash))
        kept = {record.key: record.value for record in log.read(GTID_SETS, 0, 0, 100)}  # as compaction leaves it
        assert any(value.decode().startswith(first[1:17]) for value in kept.values())


def test_a_server_with_a_long_history_is_followed(own_stack: Stack, tmp_path: Path) -> None:
    """With GTIDs of 250 servers the position fits into Kafka's 4096 bytes, and the Gateway goes on after a crash."""
    server = up_or_skip(own_stack, ["mysql8"])["mysql8"]
    with closing(client(server.admin_url)) as admin:
        run(admin, f"SET GLOBAL gtid_purged = '+{long_set()}'")
    ads = Ads(server.url)
    tail = Tail(ads, tmp_path / "home")
    try:
        for number in range(1, 4):
            ads.run(f"INSERT INTO ads (id, ad_group_id) VALUES ({number}, 1)")
            tail.drain()
            whole = tail.feed._storable.position.gtid
            assert len(whole) > 2 * MAX_METADATA_BYTES
            assert len(tail.log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED)[0]) < MAX_METADATA_BYTES
            tail.feed.close()
            ads.run(f"INSERT INTO ads (id, ad_group_id) VALUES ({number} + 10, 1)")
            tail.reopen()
            assert tail.feed._state.position.gtid == whole
            changes, _, _ = tail.drain()
            assert [change.key for change in changes] == [number + 10]
        assert tail.log.end_offsets(GTID_SETS)[0] == 1
        ads.run("DELETE FROM ads WHERE id = 1")
        tail.feed.close()
        request_resync(ads.db, tail.catalog, tail.log)
        tail.reopen()
        way_out = tail.feed._way_out
        assert way_out is not None and members(way_out.gtid) > members(whole)
        changes, _, _ = tail.drain()
        assert ("ads", 1, False) in [(c.source_table, c.key, c.backfill) for c in changes]
        assert tail.feed._way_out is None
        tail.reopen()
        assert members(tail.feed._state.position.gtid) > members(way_out.gtid)
    finally:
        tail.close()
        ads.close(drop=False)
