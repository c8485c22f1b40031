"""The WAL proxy behind those who really write: our engine, and Apache Omid's Java client."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from catalog import LaneName
from compose import ServerInfo
from messaging import Log
from messaging.home import Home
from storage_repo import Conflict, RepoSchema, Transaction
from storage_repo.hbase import HbaseRepo, apply_schema
from storage_repo.hbase.wal import remove_peer
from tests.storage_repo.java_peer import JavaPeer, Refused, java_peer
from tests.storage_repo.wal_support import FAMILIES, WATCHED, Notified, ProxyThread, Store, origin, prepared_log
from tests.storage_repo.wal_workload import NAME, PIN, STATUS, TITLE

SCHEMA = RepoSchema.of(FAMILIES)


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


class Died(Exception):
    """Raised at a step of the commit, after which our client does nothing more."""


def fill(transaction: Transaction, rng: random.Random) -> None:
    """Write, delete and promote cells of a few rows."""
    for row in rng.sample(range(10), rng.randint(1, 3)):
        for column in rng.sample([STATUS, NAME, PIN, "meta:x"], rng.randint(1, 4)):
            if rng.random() < 0.25:
                transaction.delete("ad", str(row), column)
            else:
                transaction.put("ad", str(row), column, rng.choice([b"", b"\xc1", b"v", rng.randbytes(500)]))
    transaction.promote("ad", str(rng.randrange(10)), STATUS)
    if rng.random() < 0.3:
        transaction.put("pin", str(rng.randrange(3)), TITLE, b"t")


def test_what_the_repo_commits_is_notified_and_nothing_else(store: Store, home: Home, log: Log) -> None:
    """Alone and in groups, with conflicts, and of an engine that dies after the decision; history is the judge."""
    apply_schema(store.url, SCHEMA)
    notified, rng = Notified(log), random.Random(4)
    dying = False

    def die(step: str) -> None:
        if dying and step == "decided":
            raise Died

    with closing(HbaseRepo.open(store.url, SCHEMA, faults=die)) as repo, ProxyThread(store, home, log, grace_s=0.5):
        conflicts = 0
        for _ in range(30):
            group = [repo.begin(origin(rng.choice(list(LaneName)))) for _ in range(rng.randint(1, 4))]
            for transaction in group:
                fill(transaction, rng)
            outcomes = repo.commit_many(group)
            conflicts += sum(isinstance(outcome, Conflict) for outcome in outcomes)
            assert all(isinstance(outcome, (int, Conflict)) for outcome in outcomes)
        assert conflicts > 0
        dying = True
        lost = repo.begin(origin())
        lost.put("ad", "lost", STATUS, b"x")
        lost.put("pin", "lost", TITLE, b"x")
        with pytest.raises(Died):
            lost.commit()
        dying = False
        wanted = recounted(repo)
        assert ("ad", "lost") in {key[:2] for key in wanted}
        notified.wait_for(wanted)
        assert notified.found() == wanted
        assert set(Counter((m.table, m.row, m.commit_ts) for m in notified.read()).values()) == {1}
        assert {m.writer for m in notified.read()} == {"updater/ads_db"}


def recounted(repo: HbaseRepo) -> dict[tuple[str, str, int], frozenset[str]]:
    """Count what is committed from the history of every cell."""
    found: dict[tuple[str, str, int], frozenset[str]] = {}
    for table, columns in WATCHED.items():
        for row in [*map(str, range(10)), "lost"]:
            for column, versions in repo.history(table, row).items():
                for version in versions if column in columns else ():
                    key = (table, row, version.commit_ts)
                    found[key] = found.get(key, frozenset()) | {column.partition(":")[2]}
    return found


@pytest.fixture(scope="module")
def java(hbase_server: ServerInfo) -> Iterator[JavaPeer]:
    """Omid's Java client."""
    zookeeper = parse_qs(urlsplit(hbase_server.url).query)["zookeeper"][0]
    with java_peer(hbase_server.log_file.parent / "conf", zookeeper) as peer:
        yield peer


def test_what_java_clients_commit_is_notified_and_nothing_else(
    store: Store, home: Home, log: Log, java: JavaPeer
) -> None:
    """Writes, deletes of cells, families and rows, conflicts, roll-backs, and clients that die at every step."""
    table, notified = store.names.hbase_table("ad"), Notified(log)

    def begin(name: str, *cells: tuple[bytes, bytes]) -> None:
        java.begin(name)
        for row, qualifier in cells:
            java.put(name, table, row, b"control", qualifier, b"by java")

    with ProxyThread(store, home, log, grace_s=0.5) as proxy:
        begin("1", (b"1", b"status"), (b"1", b"name"), (b"1", b"pin_id"), (b"2", b"name"))
        java.commit("1")
        begin("loser", (b"1", b"status"))
        begin("winner", (b"1", b"status"))
        java.commit("winner")
        with pytest.raises(Refused):
            java.commit("loser")
        begin("back", (b"3", b"status"))
        java.rollback("back")
        begin("gone", (b"4", b"status"))
        java.abandon("gone")
        begin("dead", (b"5", b"status"), (b"5", b"name"), (b"6", b"status"))
        healed = java.commit("dead", die_before="shadow-cells")
        begin("late", (b"7", b"status"))
        java.commit("late", die_before="removal")
        java.begin("cell")
        java.delete("cell", table, b"1", b"control", b"status")
        java.commit("cell")
        java.begin("family")
        java.delete("family", table, b"2", b"control")
        family = java.commit("family")
        five, six = ("ad", "5", healed), ("ad", "6", healed)
        notified.wait_for({five: frozenset({"status", "name"}), six: frozenset({"status"})})
        committed = store.recount()
        notified.wait_for(committed)
        assert notified.found() == committed
        assert committed["ad", "2", family] == {"name"}
        assert {row for _, row, _ in committed} == {"1", "2", "5", "6", "7"}
        assert proxy.counter("healed") == 2
        assert {(m.writer, m.header.lane) for m in notified.read()} == {("", 3)}
