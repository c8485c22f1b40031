"""kill -9 of the real TSO with transactions under way: another one takes over, and no outcome is ever wrong."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import happybase
import pytest

from compose import ServerInfo, Stack
from storage_repo.omid import Aborted, Committed, Outcome, TsoClient, TsoSettings, layout
from tests.stack_support import temporary_stack, up_or_skip
from tests.storage_repo.java_peer import Refused, java_peer
from tests.storage_repo.test_hbase_java_interop import DOCS, ORIGIN, World
from tests.storage_repo.test_tso_client import fresh_cell, request, zookeeper_of
from tests.storage_repo.tso_wire import wait_until

CONTENDED = tuple(fresh_cell() for _ in range(3))
"""Cells that all threads write, so that there are conflicts as well."""
PATIENT = TsoSettings(give_up_s=150.0)
TSOS = ("omid", "omid2")
_LEASE_MS = "5000"
"""Half of the usual one, which the other TSO waits for; with less, a busy machine ends the one in charge."""


class Fleet:
    """Servers with two TSOs, of which one serves and one stands by."""

    def __init__(self, stack: Stack, hbase: ServerInfo) -> None:
        self.stack, self.hbase = stack, hbase

    def fail_over(self, tso: TsoClient) -> None:
        """Kill the TSO in charge, wait until the other one is, and start the killed one again."""
        epoch, ports = tso.epoch, {self.stack.status([name])[name].port: name for name in TSOS}
        in_charge = ports[int(tso.address.rpartition(":")[2])]
        other = next(name for name in TSOS if name != in_charge)
        self.stack.kill(in_charge)

        def is_over() -> bool:
            if tso.epoch == epoch and self.stack.status([other])[other].state == "dead":
                self.stack.up([other])  # it ends itself when the machine is too busy for its lease
            return tso.epoch > epoch and tso.is_connected

        wait_until(is_over, timeout_s=120.0)
        assert ports[int(tso.address.rpartition(":")[2])] == other
        self.stack.up([in_charge])


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    """Servers of this module's own."""
    with temporary_stack({name: {"leasePeriodInMs": _LEASE_MS} for name in TSOS}) as stack:
        up_or_skip(stack, ["hbase", "thrift", "thrift2", *TSOS])
        yield Fleet(stack, stack.status(["hbase"])["hbase"])


@dataclass
class Load:
    """Transactions from several threads, and what became of them."""

    tso: TsoClient
    stop: threading.Event = field(default_factory=threading.Event)
    done: list[tuple[int, Outcome]] = field(default_factory=list)

    def run(self, number: int) -> None:
        """Transact until told to stop, each thread in groups of a size of its own."""
        while not self.stop.is_set():
            starts = self.tso.begin_many(1 + 3 * number)
            cells = [(fresh_cell(), CONTENDED[number % 3]) if i % 2 else (fresh_cell(),) for i in range(len(starts))]
            outcomes = self.tso.commit_many([request(ts, *of) for ts, of in zip(starts, cells, strict=True)])
            self.done += zip(starts, outcomes, strict=True)

    def goes_on(self) -> None:
        """Wait until transactions that began after this call have committed."""
        now = self.tso.begin()
        wait_until(lambda: any(ts > now and type(outcome) is Committed for ts, outcome in self.done[-50:]))


def commit_table(hbase: ServerInfo) -> dict[int, layout.CommitEntry | None]:
    """Read the whole commit table."""
    parts = urlsplit(hbase.url)
    with closing(happybase.Connection(parts.hostname, parts.port)) as connection:
        rows = list(connection.table(layout.COMMIT_TABLE).scan(columns=[layout.COMMIT_FAMILY]))
    starts = {layout.start_of_commit_key(key): row for key, row in rows}
    return {
        start: layout.commit_entry(start, row.get(layout.COMMIT_COLUMN), row.get(layout.INVALID_COLUMN))
        for start, row in starts.items()
    }


def test_transactions_go_on_when_the_tso_is_killed(fleet: Fleet) -> None:
    """The one that stood by serves, with a new epoch and newer timestamps only; the client follows by itself.

    Whoever was told of a commit finds it in the commit table with that timestamp; whoever was refused at the first
    attempt does not; and nothing else is in the table.
    """
    with ExitStack() as stack:
        tso = stack.enter_context(TsoClient.open(f"zookeeper://{zookeeper_of(fleet.hbase)}", PATIENT))
        load = Load(tso)
        pool = stack.enter_context(ThreadPoolExecutor(6))
        stack.callback(load.stop.set)
        running = [pool.submit(load.run, number) for number in range(6)]
        load.goes_on()
        newest = max(ts for ts, _ in load.done)
        fleet.fail_over(tso)
        assert tso.epoch >= newest
        load.goes_on()
        load.stop.set()
        for each in running:
            each.result()
        counted = tso.statistics()
    table = commit_table(fleet.hbase)
    kinds = Counter(type(outcome) for _, outcome in load.done)
    assert kinds[Committed] > 100
    assert kinds[Aborted] > 10
    assert set(kinds) == {Committed, Aborted}
    assert counted["connections"] >= 2
    for start, outcome in load.done:
        entry = table.pop(start, None)
        if isinstance(outcome, Committed):
            assert entry == layout.CommitEntry(outcome.commit_ts)
        else:
            assert outcome == Aborted(after_retry=True) or entry is None
    assert not table


def test_what_an_earlier_tso_left_open_is_forbidden(fleet: Fleet) -> None:
    """After a fail-over each client forbids what the other one never committed, and keeps what it did commit.

    Transactions that are still running are refused: Java's has to run again, ours finds that nobody changed its cells.
    """
    server = fleet.hbase
    zookeeper = zookeeper_of(server)
    with (
        java_peer(server.log_file.parent / "conf", zookeeper) as java,
        closing(World(server, java)) as world,
        TsoClient.open(f"zookeeper://{zookeeper}", PATIENT) as tso,
    ):
        java_lost, _ = java.begin("dying")
        java.put("dying", DOCS, b"java-lost", b"f", b"a", b"lost")
        java.abandon("dying")
        our_lost = world.we_die("flushed", ("our-lost", "f:a", b"lost"))
        java.begin("committing")
        java.put("committing", DOCS, b"java-kept", b"f", b"a", b"kept")
        java.commit("committing", die_before="shadow-cells")
        world.we_die("decided", ("our-kept", "f:a", b"kept"))
        java.begin("running")
        java.put("running", DOCS, b"java-running", b"f", b"a", b"1")
        mine = world.repo.begin(ORIGIN)
        mine.put("docs", "our-running", "f:a", b"1")

        fleet.fail_over(tso)

        assert world.we_read("java-lost") == {}
        assert world.entry(java_lost) == layout.CommitEntry(None)
        assert world.entry(our_lost) is None
        assert world.java_reads(b"our-lost") == {}
        assert world.entry(our_lost) == layout.CommitEntry(None)
        assert world.we_read("our-lost") == {}
        assert world.java_reads(b"java-lost") == {}
        assert world.we_read("java-kept") == {"f:a": b"kept"}
        assert world.java_reads(b"our-kept") == {b"f:a": b"kept"}
        with pytest.raises(Refused):
            java.commit("running")
        assert world.we_read("java-running") == {}
        before = world.repo.statistics()["false_aborts"]
        mine.commit()
        assert world.repo.statistics()["false_aborts"] == before + 1
        assert world.java_reads(b"our-running") == {b"f:a": b"1"}
