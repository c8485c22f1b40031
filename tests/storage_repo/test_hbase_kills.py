"""The Repo on HBase and the WAL proxy behind it while regions move and servers are killed (-9), on a real cluster.

Transactions go on by themselves; in the end nothing is half visible, lost, or not notified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from repo_backends import ORIGIN
from repo_bank import Traffic

from compose import Stack
from messaging.home import Home
from storage_repo import RepoSchema, SnapshotTooOld, TableLayout
from storage_repo.hbase import HbaseAddress, HbaseRepo, apply_schema
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.thrift2 import TColumn, TColumnValue, TGet, TPut
from storage_repo.hbase.wal import walproxy_status
from storage_repo.omid.layout import COMMIT_TABLE, INVALID_COLUMN, commit_key
from tests.stack_support import temporary_stack, up_or_skip
from tests.storage_repo.java_peer import Administration, administration
from tests.storage_repo.wal_support import wait_until

pytestmark = [pytest.mark.stress, pytest.mark.timeout(900)]

ONE_OF_EACH = ("hbase", "thrift", "thrift2", "omid")
FURTHER = ("regionserver", "regionserver2")
# A further region server's session ends after 10 s: ZooKeeper grants 2 to 20 ticks.
OVERRIDES = {"hbase": {"hbase.zookeeper.property.tickTime": "500"}}
SPLIT_AT = {"ad": b"account-5", "pin": b"transfer-1-"}
"""In the middle of the accounts, and of the records by client."""


@dataclass(frozen=True)
class Cluster:
    """Three region servers, one of them with the master, and who commands them."""

    stack: Stack
    url: str
    admin: Administration

    def named(self, server: str) -> str:
        """Return HBase's name of a further region server."""
        port = self.stack.status([server])[server].port
        (name,) = (name for name in self.admin.servers() if name.split(",")[1] == str(port))
        return name


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """HBase with Thrift, Omid and two further region servers, for these tests alone."""
    with temporary_stack(OVERRIDES) as stack:
        up = up_or_skip(stack, (*ONE_OF_EACH, *FURTHER))
        with administration(up["hbase"].log_file.parent / "conf") as admin:
            wait_until(lambda: len(admin.servers()) == 3, 120, lambda: f"{admin.servers()} of {stack.status(FURTHER)}")
            yield Cluster(stack, up["hbase"].url, admin)


class Garbage:
    """What a dead client and old versions leave behind: in a table with history, and in one that Omid compacts."""

    TABLES = (("kept", ("f",)), ("compacted", ("f",)))

    def __init__(self, url: str) -> None:
        url = f"{url}&prefix=garbage."
        schema = RepoSchema.of(self.TABLES, layouts={"compacted": TableLayout(history=False)})
        apply_schema(url, schema)
        self.repo = HbaseRepo.open(url, schema)
        self.connections = HbaseConnections(HbaseAddress.parse(url))
        self.snapshots = []
        for value in (b"1", b"2", b"3"):
            transaction = self.repo.begin(ORIGIN)
            for table, _ in self.TABLES:
                transaction.put(table, "row", "f:x", value)
            transaction.commit()
            self.snapshots.append(self.repo.snapshot())
        self.orphan = self.repo.snapshot().ts  # a client that dies after it has written: no commit, no rollback
        for table, _ in self.TABLES:
            cell = TColumnValue(b"f", b"x", b"never committed", self.orphan)
            self.connections.put(f"garbage.{table}".encode(), [TPut(row=b"row", columnValues=[cell])])

    def stored(self, table: str) -> list[bytes]:
        """Return the values of all versions in HBase, newest first."""
        get = TGet(row=b"row", columns=[TColumn(b"f", b"x")], maxVersions=100)
        return [cell.value for cell in self.connections.get(f"garbage.{table}".encode(), [get])[0].columnValues]

    def check(self, admin: Administration) -> None:
        """See that it is collected where it may, now that the TSO has been started anew."""
        newest = self.repo.snapshot()
        assert newest.get_many([("kept", "row"), ("compacted", "row")]) == {
            ("kept", "row"): {"f:x": b"3"},
            ("compacted", "row"): {"f:x": b"3"},
        }
        assert [snapshot.get("kept", "row")["f:x"] for snapshot in self.snapshots] == [b"1", b"2", b"3"]
        for snapshot in self.snapshots:
            with pytest.raises(SnapshotTooOld):
                snapshot.get("compacted", "row")
            with pytest.raises(SnapshotTooOld):
                list(snapshot.scan("compacted"))

        assert self.repo.collect_garbage() == 0, "the versions of a table with history are young"
        assert self.stored("kept") == [b"3", b"2", b"1"], "only what can never commit went"
        assert self.stored("compacted") == [b"never committed", b"3", b"2", b"1"]
        (entry,) = self.connections.rows(COMMIT_TABLE, [commit_key(self.orphan)], [b"F"], 1 << 62)
        assert entry.columns.keys() == {INVALID_COLUMN}, "it is forbidden to commit, should it live after all"

        for table, _ in self.TABLES:
            admin.compact(f"garbage.{table}".encode())
        wait_until(lambda: len(self.stored("compacted")) == 1, why=lambda: f"{self.stored('compacted')} are left")
        assert self.stored("compacted") == [b"3"]
        assert self.stored("kept") == [b"3", b"2", b"1"]
        assert newest.get("compacted", "row") == self.repo.snapshot().get("compacted", "row") == {"f:x": b"3"}
        self.repo.close()
        self.connections.close()


@pytest.fixture
def traffic(cluster: Cluster, tmp_path: Path) -> Iterator[Traffic]:
    """Transactions and notifications that flow."""
    with Traffic(cluster.url, Home.open(tmp_path)) as traffic:
        traffic.bank.wait_for_progress()
        yield traffic


def test_regions_move_and_split(cluster: Cluster, traffic: Traffic) -> None:
    """Each region is split, the halves go round all servers, and logs are rolled between: nothing is lost or torn."""
    admin = cluster.admin
    tables = {name: traffic.store.names.hbase_table(name) for name in SPLIT_AT}
    before = {table: admin.regions(hbase) for table, hbase in tables.items()}
    for table, hbase in tables.items():
        for region in before[table]:
            admin.split(region, SPLIT_AT[table])
        traffic.bank.wait_for_progress()
        assert [region.start for region in admin.regions(hbase)] == [b"", SPLIT_AT[table]]
    servers = sorted(admin.servers())
    visited = set()
    for turn in range(3):
        for number, hbase in enumerate(tables.values()):
            for half, region in enumerate(admin.regions(hbase)):
                target = servers[(turn + number + half) % 3]
                if target != region.server:
                    admin.move(region, target)
                visited.add((hbase, half, target))
        traffic.bank.wait_for_progress()
        for server in servers:
            admin.roll(server)
        traffic.bank.wait_for_progress()
    assert len(visited) == 12, "each half has been everywhere"
    assert not {r.name for rs in before.values() for r in rs} & {
        r.name for t in tables.values() for r in admin.regions(t)
    }
    traffic.check()


def test_a_second_region_server_dies_while_the_first_is_recovered(cluster: Cluster, traffic: Traffic) -> None:
    """Killed -9, with all tables and the commit table on them: clients go on, logs and queues are taken over.

    Both come again and get their regions back.
    """
    admin = cluster.admin
    first, second = (cluster.named(server) for server in FURTHER)
    ad, pin = map(traffic.store.names.hbase_table, SPLIT_AT)
    homes = {COMMIT_TABLE: first, ad: first, pin: second}
    for hbase, server in homes.items():
        for region in admin.regions(hbase):
            if region.server != server:
                admin.move(region, server)
    traffic.bank.wait_for_progress()
    traffic.die()
    cluster.stack.kill(FURTHER[0])
    wait_until(lambda: admin.recoveries() > 0)
    cluster.stack.kill(FURTHER[1])
    traffic.bank.wait_for_progress()
    wait_until(lambda: admin.recoveries() == 0)
    left = admin.servers()
    assert len(left) == 1
    assert {region.server for hbase in homes for region in admin.regions(hbase)} == set(left)
    cluster.stack.up(FURTHER)
    for hbase, server in zip((ad, pin), map(cluster.named, FURTHER), strict=True):
        for region in admin.regions(hbase):
            admin.move(region, server)
    traffic.bank.wait_for_progress()
    traffic.check()
    wait_until(lambda: not any(q.recovered for p in walproxy_status(traffic.store.url).peers for q in p.queues))


def test_servers_killed_one_after_the_other(cluster: Cluster, traffic: Traffic) -> None:
    """Transfers go on after each kill; all is notified, and what nobody needs is collected where it may be.

    With HBase its ZooKeeper dies and all sessions; what it had not shipped comes from its log, to the same proxy.
    """
    cluster.stack.down(FURTHER)
    garbage = Garbage(cluster.url)
    traffic.bank.wait_for_progress()
    for victim in ("thrift", "thrift2", "omid", "hbase"):
        traffic.die()
        cluster.stack.kill(victim)
        cluster.stack.up(ONE_OF_EACH)  # without its ZooKeeper the TSO ends as well
        traffic.bank.wait_for_progress()
    traffic.check()
    garbage.check(cluster.admin)
