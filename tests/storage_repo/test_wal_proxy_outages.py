"""The WAL proxy while the log is away. What it does without HBase and ZooKeeper, `test_hbase_kills` shows."""

from __future__ import annotations

import os
import random
from pathlib import Path

from compose import ServerInfo, Stack
from messaging.home import Home
from storage_repo.hbase.wal import remove_peer
from tests.stack_support import up_or_skip
from tests.storage_repo.wal_support import WATCHED, Notified, ProxyThread, Store, prepared_log, wait_until
from tests.storage_repo.wal_workload import write


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
