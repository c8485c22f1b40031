"""The WAL proxy while what it depends on is away: region server, ZooKeeper, Kafka. Slow: servers start and stop."""

from __future__ import annotations

import os
import random
from pathlib import Path

from compose import ServerInfo, Stack
from messaging.home import Home
from storage_repo.hbase.wal import remove_peer
from tests.stack_support import up_or_skip
from tests.storage_repo.wal_support import WATCHED, Notified, ProxyThread, Store, prepared_log, wait_until
from tests.storage_repo.wal_workload import STATUS, write


def test_edits_that_a_crashed_region_server_had_not_shipped_are_notified(own_stack: Stack, tmp_path: Path) -> None:
    """Killed amid the writing, with ZooKeeper and all sessions: the log is shipped after recovery, to the same proxy.

    A client that died before the crash, and one that dies with it, are healed as well.
    """
    up = up_or_skip(own_stack, ["hbase", "thrift", "thrift2"])
    store, home = Store(up["hbase"].url, f"t{os.urandom(4).hex()}", tso=False), Home.open(tmp_path)
    rng = random.Random(11)
    with prepared_log(home, "", store.token) as log:
        notified = Notified(log)
        with ProxyThread(store, home, log, grace_s=1.0):
            dead = store.begin()
            dead.put("ad", "dead", STATUS)
            dead.write()
            assert dead.commit() is not None
            write(store, rng, 40)
            own_stack.kill("hbase")
            own_stack.up(["hbase"])
            write(store, rng, 20)
            notified.wait_for({("ad", "dead", dead.commit_ts): frozenset({"status"})})
            committed = store.recount()
            notified.wait_for(committed)
            assert notified.found() == committed
            assert len(committed) > 60
    store.close()


def test_nothing_is_acknowledged_while_the_log_is_away(
    hbase_server: ServerInfo, own_stack: Stack, tmp_path: Path
) -> None:
    """Kafka is killed: batches are refused, HBase keeps them; they are notified when Kafka is back."""
    kafka = up_or_skip(own_stack, ["kafka"])["kafka"].url
    store, home = Store(hbase_server.url, f"t{os.urandom(4).hex()}"), Home.open(tmp_path)
    with prepared_log(home, f"{kafka}?publish_timeout_ms=1500", store.token) as log:
        notified = Notified(log)
        with ProxyThread(store, home, log) as proxy:
            write(store, random.Random(1), 5)
            notified.wait_for(store.recount())
            own_stack.kill("kafka")
            published = proxy.counter("notifications")
            write(store, random.Random(2), 20)
            wait_until(lambda: proxy.counter("batches_refused") > 1)
            assert proxy.counter("notifications") == published
            own_stack.up(["kafka"])
            committed = store.recount(WATCHED)
            notified.wait_for(committed)
            assert notified.found() == committed
    remove_peer(store.url, store.peer_id)
    store.close()
