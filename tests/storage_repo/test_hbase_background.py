"""What a commit on HBase leaves to others: the queue of finishing work, groups of commits, pooled connections.

The connections here are stand-ins that refuse, fail and hang at will, which no server does on request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import pytest
from thriftpy2.thrift import TApplicationException

from storage_repo import StoreUnavailable
from storage_repo.api import CommitOutcome
from storage_repo.hbase import _background
from storage_repo.hbase._background import Background
from storage_repo.hbase._commit import Prepared
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase._group import GroupCommit
from storage_repo.hbase.connections import HbaseConnections, HbaseRefused, _is_final, _Pool
from storage_repo.hbase.thrift2 import TIOError

PATIENCE_S = 20.0


class Store:
    """Stands in for HBase and its commit table; `fail` is called with a table before anything is done to it."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.puts: list[tuple[bytes, Any]] = []
        self.deletes: list[Any] = []
        self.removed: list[int] = []
        self.fail: Callable[[bytes], None] = lambda _: None

    def put(self, table: bytes, puts: Sequence[Any]) -> None:
        """Write shadow cells."""
        self._reach(table)
        self.puts += [(table, put) for put in puts]

    def delete(self, table: bytes, deletes: Sequence[Any]) -> None:
        """Delete cells."""
        self._reach(table)
        self.deletes += deletes

    def remove(self, starts: Sequence[int]) -> None:
        """Remove entries."""
        self._reach(b"")
        self.removed += starts

    def _reach(self, table: bytes) -> None:
        assert self.gate.wait(PATIENCE_S)
        self.fail(table)


@pytest.fixture
def store() -> Store:
    """A store that does all it is asked."""
    return Store()


@pytest.fixture
def background(store: Store) -> Iterator[Background]:
    """A queue on that store."""
    made = Background(cast(HbaseConnections, store), cast(CommitTable, store), lambda _: None)
    yield made
    store.gate.set()
    made.close()


def refuse_once(store: Store, text: str = "no such table") -> None:
    """Have the next call on a table refused."""
    calls = iter([True])

    def fail(_: bytes) -> None:
        if next(calls, False):
            raise HbaseRefused(text)

    store.fail = fail


def test_the_entry_of_a_transaction_stays_when_one_of_its_shadow_cells_was_refused(
    store: Store, background: Background
) -> None:
    """It is all that tells that the transaction is committed; those of others go."""
    refuse_once(store)
    background.write_shadow_cells({b"t": range(2_500)}, then_remove=[50])
    assert background.flush()
    assert len(store.puts) == 500
    background.write_shadow_cells({b"t": range(10), b"u": range(10)}, then_remove=[100, 150])
    assert background.flush()
    assert store.removed == [100, 150]
    assert background.counters["background_refused"] == 2_000


def test_a_dropped_table_costs_the_others_nothing(store: Store, background: Background) -> None:
    """Shadow cells, deletions and entries of other tables in the same batch are done."""

    def fail(table: bytes) -> None:
        if table == b"dropped":
            raise HbaseRefused("dropped")

    store.fail = fail
    store.gate.clear()
    background.remove_entries([7])
    background.write_shadow_cells({b"dropped": [1], b"kept": [2]}, then_remove=[50])
    background.write_shadow_cells({b"kept": [3]}, then_remove=[100])
    background.delete_cells(b"dropped", ["gone"])
    background.delete_cells(b"kept", ["x"])
    store.gate.set()
    assert background.flush()
    assert (store.puts, store.deletes, sorted(store.removed)) == ([(b"kept", 2), (b"kept", 3)], ["x"], [7, 100])


def test_entries_go_after_the_last_put_even_over_an_outage(
    store: Store, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be done is done later, in order, and once."""
    monkeypatch.setattr(_background, "_RETRY_SECONDS", 0.01)
    failures = iter(range(3))

    def fail(_: bytes) -> None:
        assert not store.removed
        if next(failures, None) is not None:
            raise StoreUnavailable("away")

    store.fail = fail
    background.write_shadow_cells({b"t": range(5_000)}, then_remove=[50])
    assert background.flush()
    assert [put for _, put in store.puts] == list(range(5_000))
    assert (store.removed, background.counters["background_retries"]) == ([50], 3)


def test_commits_do_not_wait_for_ever_for_room(
    store: Store, background: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While nothing gets done and the queue is full, work is left out and counted; its entries stay."""
    monkeypatch.setattr(_background, "_CAPACITY", 10)
    monkeypatch.setattr(_background, "_FULL_SECONDS", 0.2)
    store.gate.clear()
    background.delete_cells(b"t", ["first"])
    while not background._busy:
        time.sleep(0.001)
    background.write_shadow_cells({b"t": range(20)}, then_remove=[50])
    started = time.monotonic()
    background.write_shadow_cells({b"t": range(30)}, then_remove=[100])
    assert 0.1 < time.monotonic() - started < PATIENCE_S / 2
    assert background.counters["background_left_out"] == 30
    store.gate.set()
    assert background.flush()
    assert (len(store.puts), store.removed) == (20, [50])


def test_closing_does_not_wait_for_a_call_that_hangs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A supervisor kills after some seconds; what is left out is harmless."""
    monkeypatch.setattr(_background, "_CLOSE_SECONDS", 0.1)
    monkeypatch.setattr(_background, "_RETRY_SECONDS", 0.1)
    background = Background(cast(HbaseConnections, store), cast(CommitTable, store), lambda _: None)
    store.gate.clear()
    background.remove_entries([1])
    started = time.monotonic()
    background.close()
    assert time.monotonic() - started < PATIENCE_S / 2
    store.gate.set()


@pytest.mark.parametrize(
    ("error", "final"),
    [
        (TApplicationException(TApplicationException.UNKNOWN_METHOD, "Invalid method name"), True),
        (TApplicationException(TApplicationException.INTERNAL_ERROR, "Internal error processing putMultiple"), False),
        (TApplicationException(TApplicationException.BAD_SEQUENCE_ID), False),
        (TIOError("DoNotRetryIOException: no", canRetry=False), True),
        (TIOError("RegionTooBusyException", canRetry=True), False),
        (OSError("reset"), False),
    ],
)
def test_only_what_trying_again_does_not_cure_is_final(error: Exception, final: bool) -> None:
    """An exception in the Thrift server's own code may be over the next moment."""
    assert _is_final(error) is final


class Line:
    """Stands in for a connection."""

    def __init__(self) -> None:
        self.client, self.closed = self, False

    def close(self) -> None:
        """Note it."""
        self.closed = True


def test_one_lost_connection_gives_up_all_that_are_idle() -> None:
    """After a restart of the server they are dead as well; trying each would use up the patience of a call."""
    made: list[Line] = []

    def connect() -> Line:
        made.append(Line())
        return made[-1]

    pool: _Pool[Any] = _Pool("Thrift", ("localhost", 1), cast(Any, connect))
    barrier = threading.Barrier(3)
    threads = [threading.Thread(target=pool.use, args=(lambda _: barrier.wait(PATIENCE_S),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    def lost(_: Any) -> None:
        raise OSError("reset")

    with pytest.raises(OSError, match="reset"):
        pool.use(lost)
    assert [line.closed for line in made] == [True] * 3
    pool.use(lambda _: None)
    assert [line.closed for line in made] == [True] * 3 + [False]
    pool.close()


class SlowToLead:
    """A lock after which the thread "late" loses the processor, once, just after its request was put in line."""

    def __init__(self) -> None:
        self._lock, self._was_late = threading.Lock(), False
        self.go_on = threading.Event()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()
        if threading.current_thread().name == "late" and not self._was_late:
            self._was_late = True
            assert self.go_on.wait(PATIENCE_S)


def test_a_leader_whose_request_another_one_took_does_not_leak() -> None:
    """Its place among the leaders is given back: with one less, all later commits would wait for one another."""
    begun, may_end = threading.Event(), threading.Event()

    def apply(batch: Sequence[Prepared]) -> list[CommitOutcome]:
        begun.set()
        assert may_end.wait(PATIENCE_S)
        return [1] * len(batch)

    group = GroupCommit(apply)
    lock = SlowToLead()
    cast(Any, group)._lock = lock
    one = (cast(Prepared, object()),)
    first = threading.Thread(target=group.submit, args=(one,))
    first.start()
    assert begun.wait(PATIENCE_S)
    late = threading.Thread(target=group.submit, args=(one,), name="late")
    late.start()
    while not group._waiting:  # it leads already, and does not know yet
        time.sleep(0.001)
    second = threading.Thread(target=group.submit, args=(one,))
    second.start()
    while len(group._waiting) < 2:
        time.sleep(0.001)
    may_end.set()  # the first leader hands over to the second, whose group has the late one too
    second.join(PATIENCE_S)
    first.join(PATIENCE_S)
    lock.go_on.set()
    late.join(PATIENCE_S)
    assert not any(thread.is_alive() for thread in (first, second, late))
    assert group._leaders == 0
