"""The WAL proxy on a real HBase: what is committed is notified, nothing else, whoever dies.

The independent check is a full scan: every shadow cell that HBase holds must have been notified.
"""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from catalog import LaneName
from compose import ServerInfo
from messaging import Log
from messaging.headers import now_us
from messaging.home import Home
from messaging.topics import NOTIFICATIONS, PENDING
from storage_repo import Limits, RepoSchema
from storage_repo.hbase import HbaseRepo, apply_schema
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase.thrift2 import TColumn, TColumnValue, TDelete, TDeleteType, TPut
from storage_repo.hbase.wal import (
    HBaseAway,
    PeerConflict,
    PeerStatus,
    _housekeeper,
    _resolver,
    remove_peer,
    set_peer_enabled,
    walproxy_status,
)
from storage_repo.hbase.wal._registry import ROOT
from storage_repo.hbase.wal._resolver import Resolver
from storage_repo.hbase.wal._rows import Rows
from storage_repo.hbase.wal.master import Master, Peer, connect
from storage_repo.hbase.wal.proxy import ensure_peer
from storage_repo.omid import layout
from tests.storage_repo.wal_support import (
    FAMILIES,
    PATIENCE_S,
    Notified,
    ProxyProcess,
    ProxyThread,
    Store,
    Transaction,
    batches_of,
    is_registered,
    origin,
    prepared_log,
    wait_until,
)
from tests.storage_repo.wal_workload import JAVA, NAME, STATUS, write

QUICK_S = 0.3
"""The grace of tests in which a client dies; the others keep the usual grace, in which nothing must be looked up."""


@pytest.fixture
def store(hbase_server: ServerInfo) -> Iterator[Store]:
    """Tables and a peer of the test's own."""
    store = Store(hbase_server.url, f"t{os.urandom(4).hex()}")
    yield store
    remove_peer(store.url, store.peer_id)
    store.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """An empty home."""
    return Home.open(tmp_path)


@pytest.fixture
def log(home: Home, store: Store) -> Iterator[Log]:
    """The home's embedded log with all topics."""
    with prepared_log(home, "", store.token) as log:
        yield log


def messages(notified: Notified) -> Counter[tuple[str, str, int]]:
    """Count the notifications of every (table, row, commit timestamp)."""
    return Counter((m.table, m.row, m.commit_ts) for m in notified.read())


def test_notifications_are_exactly_the_committed_changes(store: Store, home: Home, log: Log) -> None:
    """Puts and tombstones of several rows and tables, rolled back and forgotten ones: one notification per commit."""
    notified, rng = Notified(log), random.Random(7)
    with ProxyThread(store, home, log) as proxy:
        write(store, rng, 120)
        committed = store.recount()
        notified.wait_for(committed)
        assert notified.found() == committed
        assert set(messages(notified).values()) == {1}
        assert len(committed) > 100
        by_java = {m.writer for m in notified.read()}
        assert by_java == {"updater/ads_db", ""}
        assert proxy.counter("ignored:rolled_back") > 0
        assert proxy.counter("ignored:column") > 0
        assert proxy.counter("notifications") == len(committed)


def test_lane_trace_and_time_are_those_of_the_cause(store: Store, home: Home, log: Log) -> None:
    """They come from the origin cell of the row; the notification is in the topic of its lane."""
    notified = Notified(log)
    with ProxyThread(store, home, log):
        for lane in LaneName:
            store.commit(("ad", lane.value, STATUS), by=origin(lane, f"trace of {lane}"))
        notified.wait_for(store.recount())
    for message in notified.read():
        hops = message.header.hops
        assert message.header.trace_id == f"trace of {message.row}"
        assert message.header.origin_us == 1_000
        assert [hop.stage for hop in hops] == ["gateway", "updater", "wal_proxy"]
        assert hops[1].left_us == message.commit_ts // 1_000
        assert hops[1].left_us <= hops[2].entered_us + 1_000 <= hops[2].left_us + 1_000
    assert {topic: sum(log.end_offsets(topic).values()) for topic in NOTIFICATIONS.values()} == dict.fromkeys(
        NOTIFICATIONS.values(), 1
    )


def test_edits_that_are_no_transaction_give_nothing(store: Store, home: Home, log: Log) -> None:
    """Raw deletes, raw puts and increments; what looks like an open transaction is dropped when it is old enough."""
    notified, connections, table = Notified(log), store.connections, store.names.hbase_table("ad")
    store.commit(("ad", "1", STATUS), ("ad", "1", NAME))
    with ProxyThread(store, home, log, grace_s=0.2, max_age_s=1.0) as proxy:
        column = TColumn(b"control", b"status")
        connections.delete(table, [TDelete(row=b"1", columns=[column], deleteType=TDeleteType.DELETE_COLUMNS)])
        connections.delete(table, [TDelete(row=b"2", columns=[TColumn(b"control")])])
        raw = TPut(row=b"3", columnValues=[_value(STATUS, b"raw", None)])
        connections.put(table, [raw])
        assert connections.check_and_put(table, b"3", (b"control", b"name"), TPut(b"3", [_value(NAME, b"new", None)]))
        wait_until(lambda: proxy.counter("ignored:never_committed") >= 1)
        store.commit(("ad", "4", NAME))
        wait_until(lambda: ("ad", "4") in {key[:2] for key in notified.found()})
        assert {key[1] for key in notified.found()} == {"1", "4"}
        assert proxy.counter("ignored:raw_delete") >= 2


def _value(column: str, value: bytes, version: int | None) -> object:
    from storage_repo.hbase.thrift2 import TColumnValue

    family, _, qualifier = column.encode().partition(b":")
    return TColumnValue(family, qualifier, value, version)


def test_a_family_delete_names_what_it_deletes(store: Store, home: Home, log: Log) -> None:
    """A Java client's shadow cells name the columns that were there; healed, it may be any watched one of them."""
    notified = Notified(log)
    store.commit(("ad", "1", STATUS), ("ad", "2", STATUS))
    with ProxyThread(store, home, log, grace_s=QUICK_S):
        told, found = store.begin(JAVA), store.begin(JAVA)
        for transaction, row in ((told, "1"), (found, "2")):
            transaction.put("ad", row, "control:", b"")
            transaction.write()
            assert transaction.commit() is not None
        told.cells["ad", "1"][STATUS] = b""  # no data cell, but a shadow cell
        told.shadow()
        told.clean()
        wait_until(lambda: len(notified.found()) == 4)
    columns = {(row, ts): columns for (_, row, ts), columns in notified.found().items()}
    assert columns["1", told.commit_ts] == {"status"}
    assert columns["2", found.commit_ts] == {"status", "name"}


@pytest.mark.parametrize("written", ["nothing", "one row", "one column"])
def test_a_client_that_died_after_its_commit_is_healed(store: Store, home: Home, log: Log, written: str) -> None:
    """Whatever shadow cells it had written: all of them are there in the end, and every row is notified."""
    notified = Notified(log)
    with ProxyThread(store, home, log, grace_s=QUICK_S) as proxy:
        dead = store.begin()
        for row in ("1", "2"):
            dead.put("ad", row, STATUS)
            dead.put("ad", row, NAME, b"")
            dead.put("ad", row, "meta:x")
        dead.write()
        assert dead.commit() is not None
        if written != "nothing":
            everything = dict(dead.cells)
            del dead.cells["ad", "2"]
            dead.shadow(only=lambda column: written == "one row" or column == STATUS)
            dead.cells.update(everything)
        wanted = {("ad", row, dead.commit_ts): frozenset({"status", "name"}) for row in ("1", "2")}
        notified.wait_for(wanted)
        wait_until(lambda: store.recount() == wanted)
        assert notified.found() == wanted
        wait_until(lambda: proxy.context.metrics.gauges["pending"] == 0)
        assert set(messages(notified).values()) == {1}
        assert proxy.counter("healed") == (1 if written == "one row" else 2)
        assert {m.writer for m in notified.read()} == {"updater/ads_db"}


def test_transactions_that_did_not_commit_are_dropped_by_reason(
    store: Store, home: Home, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Invalidated, rolled back unseen, and what the TSO lets commit no more; slow ones that commit are notified.

    However slow they are: one does so long after the age at which others are given up, and dies at once.
    """
    monkeypatch.setattr(_resolver, "_SLOWEST_LOOK_S", 0.5)
    notified, commit_table = Notified(log), CommitTable(store.connections)
    with ProxyThread(store, home, log, grace_s=0.2, max_age_s=1.0) as proxy:
        slow, invalid, late = (store.begin() for _ in range(3))
        per = layout.VERSIONS_PER_TRANSACTION
        below = commit_table.low_watermark() // per - random.randrange(1 << 20)  # no other test has had it forbidden
        before_the_tso = Transaction(store, max(below, 0) * per, JAVA)
        named = {"slow": slow, "invalid": invalid, "late": late, "before the TSO": before_the_tso}
        for row, transaction in named.items():
            transaction.put("ad", row, STATUS)
            transaction.write()
        wait_until(lambda: proxy.context.metrics.gauges.get("pending", 0) > 0)
        mark = TPut(layout.commit_key(invalid.start), [_value("F:IT", layout.INVALID_VALUE, invalid.start)])
        store.connections.put(layout.COMMIT_TABLE, [mark])
        wait_until(lambda: proxy.counter("ignored:invalidated") == 1)
        assert slow.commit() is not None
        wait_until(
            lambda: proxy.counter("ignored:never_committed") == 1, why=lambda: str(proxy.context.metrics.counters)
        )
        assert commit_table.lookup([before_the_tso.start])[before_the_tso.start].commit_ts is None
        notified.wait_for({("ad", "slow", slow.commit_ts): frozenset({"status"})})  # it was healed, perhaps just now
        assert [key[1] for key in notified.found()] == ["slow"]
        wait_until(lambda: proxy.context.metrics.gauges["pending"] == 1)
        assert late.commit() is not None
        notified.wait_for({("ad", "late", late.commit_ts): frozenset({"status"})})
        wait_until(lambda: proxy.context.metrics.gauges["pending"] == 0)
        assert notified.found() == store.recount()
        assert {key[1] for key in store.recount()} == {"slow", "late"}


def test_a_writer_that_finishes_between_two_looks_is_not_given_up(
    store: Store, home: Home, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row had no shadow cell at the first look; at the second it has, and its entry is gone from the table.

    Its start is one that the proxy gives up by itself, whatever the TSO's low watermark.
    """
    monkeypatch.setattr(_resolver, "_SLOWEST_LOOK_S", 0.5)
    start = now_us() // 1000 // layout.VERSIONS_PER_TRANSACTION * layout.VERSIONS_PER_TRANSACTION
    finishing = Transaction(store, start, JAVA, commit_ts=start + layout.VERSIONS_PER_TRANSACTION)
    finishing.put("ad", "1", STATUS)
    forbid, looks = Rows.forbid, list[set[int]]()

    def finish_first(rows: Rows, starts: Iterable[int]) -> set[int]:
        finishing.shadow()
        looks.append(set(starts))
        return forbid(rows, looks[-1])

    monkeypatch.setattr(Rows, "forbid", finish_first)
    notified = Notified(log)
    with ProxyThread(store, home, log, grace_s=0.2, max_age_s=1.0) as proxy:
        finishing.write()
        notified.wait_for({("ad", "1", finishing.commit_ts): frozenset({"status"})})
        wait_until(lambda: bool(looks))
        wait_until(lambda: proxy.context.metrics.gauges["pending"] == 0)
        assert looks[0] == {start}
        assert proxy.counter("ignored:never_committed") == 0


def test_a_shadow_cell_that_is_none_holds_up_nothing(store: Store, home: Home, log: Log) -> None:
    """It counts as not there, in the log and in HBase: the feed goes on, and it is written anew after a commit."""
    notified = Notified(log)
    with ProxyThread(store, home, log, grace_s=QUICK_S) as proxy:
        spoilt = store.begin()
        spoilt.put("ad", "1", STATUS)
        spoilt.write()
        family, _, qualifier = STATUS.encode().partition(b":")
        bad = TColumnValue(family, layout.shadow_qualifier(qualifier), b"short", spoilt.start)
        store.connections.put(store.names.hbase_table("ad"), [TPut(b"1", [bad])])
        assert spoilt.commit() is not None
        store.commit(("ad", "2", STATUS))
        wait_until(lambda: len(notified.found()) == 2)
        assert notified.found() == store.recount()
        assert proxy.counter("ignored:bad_shadow") >= 1
        assert proxy.context.metrics.gauges["malformed_cells"] >= 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_proxy_ends_when_its_resolving_thread_died(
    store: Store, home: Home, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that heals nobody must not go on as if all were well: whoever watches over it starts it again."""

    def fail(*_: object) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(Resolver, "step", fail)
    with pytest.raises(AssertionError, match="a thread of the WAL proxy died"), ProxyThread(store, home, log) as proxy:
        proxy.wait()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("walproxy")]


def test_one_proxy_collects_old_versions(store: Store, home: Home, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else does while the service runs; what went is in the metrics, and gives no notification."""
    schema = RepoSchema.of(FAMILIES, Limits(versions_kept=1, max_transaction_age_s=0.1))
    apply_schema(store.url, schema)
    monkeypatch.setattr(_housekeeper, "TICK_S", 0.2)
    notified = Notified(log)
    with ProxyThread(store, home, log, open_repo=lambda: HbaseRepo.open(store.url, schema)) as proxy:
        for _ in range(5):
            store.commit(("ad", "1", STATUS))
        wait_until(lambda: proxy.counter("versions_collected") == 4, why=lambda: str(proxy.context.metrics.counters))
        assert proxy.context.metrics.gauges["collects"] == 1
        assert len(store.recount()) == 1
        wait_until(lambda: len(notified.found()) == 5)
        assert set(messages(notified).values()) == {1}


def test_a_shadow_cell_that_was_never_logged_is_noticed(store: Store, home: Home, log: Log) -> None:
    """A compaction makes shadow cells without an edit (here: the peer is off): the transaction is notified."""
    notified = Notified(log)
    with ProxyThread(store, home, log, grace_s=1.0) as proxy:
        quiet = store.begin()
        quiet.put("ad", "1", STATUS)
        quiet.write()
        wait_until(lambda: proxy.context.metrics.gauges.get("pending", 0) == 1)
        set_peer_enabled(store.url, False, store.peer_id)
        assert quiet.commit() is not None
        quiet.shadow()
        quiet.clean()
        notified.wait_for(store.recount())
        set_peer_enabled(store.url, True, store.peer_id)
        store.commit(("ad", "2", STATUS))
        notified.wait_for(store.recount())
        assert set(messages(notified).values()) == {1}


def test_a_peer_that_is_enabled_again_repeats_and_misses_nothing(store: Store, home: Home, log: Log) -> None:
    """HBase sends its log again from the start, to a proxy that remembers and to one that does not."""
    notified, rng = Notified(log), random.Random(3)
    with ProxyThread(store, home, log) as proxy:
        write(store, rng, 20)
        notified.wait_for(store.recount())
        set_peer_enabled(store.url, False, store.peer_id)
        write(store, rng, 20)
        set_peer_enabled(store.url, True, store.peer_id)
        notified.wait_for(store.recount())
        assert set(messages(notified).values()) == {1}
        assert proxy.counter("ignored:repeated") >= 0
    set_peer_enabled(store.url, False, store.peer_id)
    set_peer_enabled(store.url, True, store.peer_id)
    with ProxyThread(store, home, log):
        write(store, rng, 20)
        committed = store.recount()
        notified.wait_for(committed)
    assert notified.found() == committed


def test_a_stopped_proxy_misses_nothing(store: Store, home: Home, log: Log) -> None:
    """What is written while nobody listens, also between data and shadow cells, comes when one starts."""
    notified, rng = Notified(log), random.Random(5)
    with ProxyThread(store, home, log):
        cut = store.begin()
        cut.put("ad", "cut", STATUS)
        cut.write()
        wait_until(lambda: sum(log.end_offsets(PENDING).values()) == 1)
    assert cut.commit() is not None
    cut.shadow()
    write(store, rng, 20)
    with ProxyThread(store, home, log) as proxy:
        committed = store.recount()
        notified.wait_for(committed)
        assert proxy.counter("rows_read") > 0
        cause = {m.row: m.writer for m in notified.read()}
        assert cause["cut"] == "updater/ads_db"
    assert notified.found() == committed
    assert set(messages(notified).values()) == {1}


def test_settled_records_are_trimmed(store: Store, home: Home, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The topic of open transactions keeps only what is open."""
    from storage_repo.hbase.wal import _resolver

    monkeypatch.setattr(_resolver, "_TRIM_S", 0.1)
    notified = Notified(log)
    with ProxyThread(store, home, log):
        late = store.begin()
        late.put("ad", "late", STATUS)
        late.write()
        wait_until(lambda: sum(log.end_offsets(PENDING).values()) == 1)  # its edits come without its shadow cells
        assert late.commit() is not None
        late.shadow()
        for number in range(20):
            store.commit(("ad", str(number), STATUS))
        notified.wait_for(store.recount())
        wait_until(lambda: log.start_offsets(PENDING) == log.end_offsets(PENDING))
    assert sum(log.end_offsets(PENDING).values()) > 0


def test_a_proxy_killed_between_log_and_acknowledgement_repeats_at_most(
    store: Store, home: Home, kafka_server: ServerInfo
) -> None:
    """Kafka has the notifications, HBase does not know: the next proxy gets the same batch; a record of the topic of
    open transactions that the first one wrote is found by the next."""
    with prepared_log(home, kafka_server.url, store.token) as log:
        notified = Notified(log)
        doomed = ProxyProcess(store, home, kafka_server.url, die_before_ack=True)
        doomed.wait_for("ready")
        lost = store.begin()
        lost.put("ad", "lost", STATUS)
        lost.write()
        wait_until(lambda: sum(log.end_offsets(PENDING).values()) == 1)
        assert lost.commit() is not None  # and its client dies too
        store.commit(("ad", "1", STATUS))
        doomed.wait_for("dying")
        assert doomed.wait() == 9
        notified.wait_for(store.recount())
        write(store, random.Random(1), 20)
        with ProxyThread(store, home, log, grace_s=QUICK_S):
            notified.wait_for({("ad", "lost", lost.commit_ts): frozenset({"status"})})
            committed = store.recount()
            notified.wait_for(committed)
        assert notified.found() == committed
        assert messages(notified)["ad", "1", next(ts for t, row, ts in committed if row == "1")] <= 2


def test_several_share_the_load_and_replace_one_that_dies(store: Store, home: Home, kafka_server: ServerInfo) -> None:
    """Every one of two takes batches; after kill -9 of one amid the load, all is notified by the other."""
    with prepared_log(home, kafka_server.url, store.token) as log, ExitStack() as stack:
        notified, rng = Notified(log), random.Random(2)
        proxies = [ProxyProcess(store, home, kafka_server.url, worker=worker, grace_s=1.0) for worker in range(2)]
        for proxy in proxies:
            stack.callback(proxy.kill)
            proxy.wait_for("ready")
        wait_until(lambda: is_registered(store, 2))
        enough = threading.Event()

        def write_on() -> None:
            while not enough.is_set():
                write(store, rng, 10)

        writing = threading.Thread(target=write_on)
        writing.start()
        try:
            wait_until(lambda: all(batches_of(home, worker) > 5 for worker in range(2)))
            proxies[0].kill()
            seen = len(notified.found())
            wait_until(lambda: len(notified.found()) > seen + 60)
        finally:
            enough.set()
            writing.join(PATIENCE_S)
        committed = store.recount()
        notified.wait_for(committed)
        assert notified.found() == committed
        wait_until(lambda: is_registered(store, 1))


def test_status_tells_peers_instances_and_queues(store: Store, home: Home, log: Log) -> None:
    """Also that a peer is disabled or has nobody to ship to; other clusters' peers are listed too."""
    with ProxyThread(store, home, log):
        store.commit(("ad", "1", STATUS))
        Notified(log).wait_for(store.recount())
        wait_until(lambda: _peer(store).queues != [])
        peer = _peer(store)
        assert (peer.enabled, peer.serial, peer.ours, len(peer.instances)) == (True, True, True, 1)
        assert peer.tables == [f"{store.prefix}ad", f"{store.prefix}pin"]
        assert {queue.logs for queue in peer.queues} <= {1, 2}
        wait_until(lambda: _peer(store).queues[0].cells_shipped > 0)
        assert peer.lag_s >= 0
    set_peer_enabled(store.url, False, store.peer_id)
    peer = _peer(store)
    assert (peer.enabled, peer.instances) == (False, [])
    remove_peer(store.url, store.peer_id)
    assert store.peer_id not in {p.id for p in walproxy_status(store.url).peers}
    remove_peer(store.url, store.peer_id)


def _peer(store: Store) -> PeerStatus:
    (found,) = (peer for peer in walproxy_status(store.url).peers if peer.id == store.peer_id)
    return found


def test_a_proxy_whose_session_is_lost_registers_again(store: Store, home: Home, log: Log) -> None:
    """Its node goes with the session in ZooKeeper; HBase finds it again, and what waited is notified."""
    notified = Notified(log)
    with ProxyThread(store, home, log) as proxy:
        store.commit(("ad", "1", STATUS))
        notified.wait_for(store.recount())
        zookeeper = connect(store.connections.address.zookeeper)
        try:
            place = f"{ROOT}/{store.peer_id}/rs"
            (node,) = zookeeper.get_children(place)
            zookeeper.delete(f"{place}/{node}")
        finally:
            zookeeper.stop()
            zookeeper.close()
        store.commit(("ad", "2", STATUS))
        wait_until(lambda: proxy.counter("registered_again") == 1)
        assert is_registered(store, 1)
        notified.wait_for(store.recount())


def test_without_zookeeper_there_is_an_error_that_says_so() -> None:
    """Nothing listens there: the address is in the message, and it does not take for ever."""
    with pytest.raises(HBaseAway, match=r"no ZooKeeper answers at 127\.0\.0\.1:1 within 0\.5 s"):
        connect("127.0.0.1:1", timeout_s=0.5)


def test_the_peer_is_corrected_and_never_taken_from_others(store: Store) -> None:
    """A new table is added to the peer that there is; a peer of the same id to elsewhere is an error."""
    zookeeper = connect(store.connections.address.zookeeper)
    try:
        master = Master(zookeeper)
        key = f"{store.connections.address.zookeeper}:/elsewhere"
        first = Peer(store.peer_id, key, True, True, {f"{store.prefix}ad": ("control", "o")})
        both = Peer(store.peer_id, key, True, True, {**first.tables, f"{store.prefix}pin": ("content", "o")})
        assert ensure_peer(master, first)
        assert not ensure_peer(master, first)
        assert ensure_peer(master, both)
        assert [peer for peer in master.peers() if peer.id == store.peer_id] == [both]
        by_name = Peer(store.peer_id, key.replace("127.0.0.1", "localhost"), True, True, first.tables)
        assert by_name.cluster_key != key
        assert ensure_peer(master, by_name), "the same place under another name"
        assert [peer for peer in master.peers() if peer.id == store.peer_id] == [first]
        with pytest.raises(PeerConflict, match=r"/elsewhere\b.* choose another walproxy_peer_id"):
            ensure_peer(master, Peer(store.peer_id, key + "2", True, True, both.tables))
    finally:
        zookeeper.stop()
        zookeeper.close()
