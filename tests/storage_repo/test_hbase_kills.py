"""The Repo on HBase while its servers are killed (-9) one after the other: it goes on by itself, and loses nothing."""

from __future__ import annotations

import json
import random
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from repo_backends import ORIGIN, HbaseBackend

from benchmarks._java import java_command
from compose import Stack
from storage_repo import Conflict, Repo, RepoSchema, SnapshotTooOld, StoreUnavailable, TableLayout
from storage_repo.hbase import HbaseAddress, HbaseRepo, apply_schema
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.thrift2 import TColumn, TColumnValue, TGet, TPut
from storage_repo.omid.layout import COMMIT_TABLE, INVALID_COLUMN, commit_key
from tests.stack_support import up_or_skip

pytestmark = [pytest.mark.stress, pytest.mark.timeout(900)]

COMPACT = Path(__file__).with_name("java") / "Compact.java"
ACCOUNTS, INITIAL = 10, 1000
BALANCE, RECORD = "control:balance", "control:record"
SERVERS = ("hbase", "thrift", "thrift2", "omid")
PATIENCE_S = 240.0
"""For a server to come back and for clients to notice, on a machine with much else to do."""


class Bank:
    """Clients in threads that transfer money, and record every transfer in the same transaction."""

    def __init__(self, repo: Repo, clients: int) -> None:
        self.repo = repo
        self.acknowledged: dict[str, int] = {}
        self.outcomes: Counter[str] = Counter()
        self._changed = threading.Condition()
        self._ended = False
        self._errors: list[BaseException] = []
        opening = repo.begin(ORIGIN)
        for account in range(ACCOUNTS):
            opening.put("ad", f"account-{account}", BALANCE, b"%d" % INITIAL)
        opening.commit()
        self._threads = [threading.Thread(target=self._run, args=(client,), daemon=True) for client in range(clients)]
        for thread in self._threads:
            thread.start()

    def wait_for_progress(self) -> None:
        """Block until every client's next few transfers, begun from now on, may have been acknowledged."""
        with self._changed:
            goal = len(self.acknowledged) + 5 * len(self._threads)
            done = self._changed.wait_for(lambda: len(self.acknowledged) >= goal or bool(self._errors), PATIENCE_S)
        assert not self._errors, self._errors
        assert done, f"no progress in {PATIENCE_S} s: {self.outcomes}"

    def stop(self) -> None:
        """End the clients."""
        self._ended = True
        for thread in self._threads:
            thread.join()
        assert not self._errors, self._errors

    def _run(self, client: int) -> None:
        rng = random.Random(client)
        n = 0
        try:
            while not self._ended:
                n += 1
                outcome = self._transfer(rng, f"{client}-{n}")
                with self._changed:
                    self.outcomes[outcome] += 1
                    self._changed.notify_all()
        except BaseException as error:
            self._errors.append(error)
            raise

    def _transfer(self, rng: random.Random, name: str) -> str:
        payer, payee = rng.sample(range(ACCOUNTS), 2)
        amount = rng.randint(1, 9)
        try:
            transaction = self.repo.begin(ORIGIN)
            rows = transaction.get_many([("ad", f"account-{payer}"), ("ad", f"account-{payee}")])
            for account, change in ((payer, -amount), (payee, amount)):
                balance = int(rows["ad", f"account-{account}"][BALANCE])
                transaction.put("ad", f"account-{account}", BALANCE, b"%d" % (balance + change))
            transaction.put("campaign", name, RECORD, json.dumps([payer, payee, amount]).encode())
            ts = transaction.commit()
        except (Conflict, SnapshotTooOld) as error:
            return type(error).__name__
        except StoreUnavailable as error:
            return f"unavailable ({type(error).__name__})"
        with self._changed:
            self.acknowledged[name] = ts
        return "committed"


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

    def check(self, conf: Path) -> None:
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

        command = java_command(COMPACT, conf, ["garbage.compacted", "garbage.kept"])
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while len(self.stored("compacted")) > 1:
            assert time.monotonic() < deadline, f"Omid has collected nothing: {self.stored('compacted')}"
            time.sleep(0.1)
        assert self.stored("compacted") == [b"3"]
        assert self.stored("kept") == [b"3", b"2", b"1"]
        assert newest.get("compacted", "row") == self.repo.snapshot().get("compacted", "row") == {"f:x": b"3"}
        self.repo.close()
        self.connections.close()


def test_servers_killed_one_after_the_other(own_stack: Stack, tmp_path: Path) -> None:
    """Transfers go on after each kill; balances are what the recorded transfers make, and none acknowledged is lost."""
    url = up_or_skip(own_stack, SERVERS)["hbase"].url
    backend = HbaseBackend.install(tmp_path, url)
    repo = backend.open()
    garbage = Garbage(url)
    bank = Bank(repo, clients=3)
    bank.wait_for_progress()
    for victim in ("thrift", "thrift2", "omid", "hbase"):
        own_stack.kill(victim)
        own_stack.up(SERVERS)  # without its ZooKeeper the TSO ends as well
        bank.wait_for_progress()
    bank.stop()
    garbage.check(own_stack.status(["hbase"])["hbase"].log_file.parent / "conf")

    snapshot = repo.snapshot()
    expected = dict.fromkeys(range(ACCOUNTS), INITIAL)
    recorded = dict(snapshot.scan("campaign"))
    for cells in recorded.values():
        payer, payee, amount = json.loads(cells[RECORD])
        expected[payer] -= amount
        expected[payee] += amount
    balances = {int(r.removeprefix("account-")): int(cells[BALANCE]) for r, cells in snapshot.scan("ad")}
    assert balances == expected
    assert bank.acknowledged.keys() <= recorded.keys()
    stored = {name: repo.history("campaign", name)[RECORD][0].commit_ts for name in bank.acknowledged}
    assert stored == bank.acknowledged
    repo.close()
