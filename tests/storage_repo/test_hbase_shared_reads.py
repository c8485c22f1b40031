"""Calls that reading threads share, on a real HBase whose answers wait at a gate."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from repo_backends import ORIGIN, HbaseBackend

from compose import ServerInfo
from storage_repo import StoreUnavailable
from storage_repo.hbase import HbaseAddress, HbaseRepo
from storage_repo.hbase._shared_reads import SharedReads
from storage_repo.hbase.connections import HbaseConnections, HbaseRefused
from tests.storage_repo.tso_wire import wait_until

X = "control:x"
TABLE, COLUMNS = b"contract.ad", (b"control:x",)
FAR = 1 << 62


class Gated(HbaseConnections):
    """Real connections; the first two calls for rows, as many as may be under way, wait until they are let through."""

    def __init__(self, address: HbaseAddress) -> None:
        super().__init__(address)
        self.asked: list[tuple[bytes, ...]] = []
        self.gates = [threading.Event() for _ in range(2)]
        self.error: BaseException | None = None
        """What the third call meets."""

    def rows(self, table: bytes, rows: Sequence[bytes], columns: Sequence[bytes], before_ts: int) -> Any:
        """Ask HBase, in turn, or fail."""
        number = len(self.asked)
        self.asked.append(tuple(rows))
        if number < len(self.gates):
            assert self.gates[number].wait(60)
        elif number == len(self.gates) and self.error is not None:
            raise self.error
        return super().rows(table, rows, columns, before_ts)

    def let_through(self) -> None:
        """Open all gates."""
        for gate in self.gates:
            gate.set()


@pytest.fixture
def repo(tmp_path: Path, hbase_server: ServerInfo) -> Iterator[HbaseRepo]:
    """Return a repo with twenty rows, each with its name for a value."""
    installation = HbaseBackend.install(tmp_path, hbase_server.url)
    repo = installation.open()
    write(repo)
    yield repo
    repo.close()


def write(repo: HbaseRepo, suffix: bytes = b"") -> None:
    """Commit all rows."""
    transaction = repo.begin(ORIGIN)
    for number in range(20):
        transaction.put("ad", f"{number}", X, b"%d" % number + suffix)
    transaction.commit()


@pytest.fixture
def gated(repo: HbaseRepo) -> Iterator[Gated]:
    """Return gated connections to the same tables."""
    gated = Gated(repo._connections.address)
    yield gated
    gated.let_through()
    gated.close()


@pytest.fixture
def pool(gated: Gated) -> Iterator[ThreadPoolExecutor]:
    """Return reading threads."""
    with ThreadPoolExecutor(16) as pool:
        yield pool
        gated.let_through()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody gives up waiting on a slow machine; the test of that sets its own time."""
    monkeypatch.setattr("storage_repo.hbase._shared_reads._PATIENCE_S", 60.0)


def occupy(shared: SharedReads, gated: Gated, pool: ThreadPoolExecutor) -> list[Future[Any]]:
    """Have as many calls under way as may be."""
    busy = []
    for number in range(2):
        busy.append(pool.submit(shared.rows, TABLE, keys(number), COLUMNS, FAR))
        wait_until(lambda count=number + 1: len(gated.asked) == count)  # type: ignore[misc]
    return busy


def waiting(shared: SharedReads) -> int:
    """Return how many requests wait for a call."""
    return sum(len(line.waiting) for line in shared._lines.values())


def keys(*numbers: int) -> list[bytes]:
    """Return row keys."""
    return [b"%d" % number for number in numbers]


def values(results: Any) -> dict[bytes, bytes]:
    """Return row -> value."""
    return {result.row: result.columns[COLUMNS[0]].value for result in results}


def test_those_who_wait_share_a_call_and_get_their_own_rows(gated: Gated, pool: ThreadPoolExecutor) -> None:
    """Six requests become one call, in which a row that two want is asked for once; a missing row is missing."""
    shared = SharedReads(gated)
    busy = occupy(shared, gated, pool)
    wanted = [keys(5, 6), keys(6, 7), keys(8), keys(9, 999), keys(10, 11, 12), keys(13)]
    asked = [pool.submit(shared.rows, TABLE, rows, COLUMNS, FAR) for rows in wanted]
    wait_until(lambda: waiting(shared) == 6)
    gated.gates[0].set()
    for rows, answer in zip(wanted, asked, strict=True):
        assert values(answer.result()) == {row: row for row in rows if row != b"999"}
    gated.gates[1].set()
    assert [values(call.result()) for call in busy] == [{row: row} for row in keys(0, 1)]
    assert len(gated.asked) == 3 and sorted(gated.asked[2]) == sorted(keys(*range(5, 14), 999))
    assert shared._lines == {}


def test_many_rows_and_other_columns_do_not_wait(gated: Gated, pool: ThreadPoolExecutor) -> None:
    """A large request gains nothing by sharing, and calls for other columns are not in the way."""
    shared = SharedReads(gated)
    occupy(shared, gated, pool)
    assert len(values(shared.rows(TABLE, keys(*range(150)), COLUMNS, FAR))) == 20
    assert values(shared.rows(TABLE, keys(3), [*COLUMNS, b"control:y"], FAR)) == {b"3": b"3"}
    assert waiting(shared) == 0


def test_nobody_waits_long_behind_calls_that_hang(
    gated: Gated, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was in no call after a while makes one of its own."""
    monkeypatch.setattr("storage_repo.hbase._shared_reads._PATIENCE_S", 0.01)
    shared = SharedReads(gated)
    busy = occupy(shared, gated, pool)
    assert values(shared.rows(TABLE, keys(4), COLUMNS, FAR)) == {b"4": b"4"}
    assert not any(call.done() for call in busy) and waiting(shared) == 0


@pytest.mark.parametrize("error", [StoreUnavailable("away"), HbaseRefused("no such table"), MemoryError("full")])
def test_all_of_a_call_learn_that_it_failed(gated: Gated, pool: ThreadPoolExecutor, error: Exception) -> None:
    """Each by an exception of its own, of the same kind if it is HBase's; the next call is tried anew."""
    shared = SharedReads(gated)
    busy = occupy(shared, gated, pool)
    others = [pool.submit(shared.rows, TABLE, keys(number), COLUMNS, FAR) for number in range(5, 9)]
    wait_until(lambda: waiting(shared) == 4)
    gated.error = error
    gated.gates[0].set()
    met = [call.exception() for call in others]
    followers = [each for each in met if each is not error]
    kind = type(error) if isinstance(error, StoreUnavailable) else RuntimeError
    assert len(followers) == 3 == len({id(each) for each in followers})
    assert all(type(each) is kind and str(error) in str(each) for each in followers)
    gated.gates[1].set()
    assert [values(call.result()) for call in busy] == [{row: row} for row in keys(0, 1)]
    assert values(shared.rows(TABLE, keys(3), COLUMNS, FAR)) == {b"3": b"3"}
    assert shared._lines == {}


def test_snapshots_that_share_a_call_see_what_is_theirs(
    repo: HbaseRepo, gated: Gated, pool: ThreadPoolExecutor
) -> None:
    """The older of two gets the versions below those that the call brought for the newer."""
    shared = repo._reader._shared = SharedReads(gated)
    old = repo.snapshot()
    write(repo, b" new")
    new = repo.snapshot()
    busy = [pool.submit(new.get, "ad", f"{number}", [X]) for number in range(2)]
    wait_until(lambda: len(gated.asked) == 2)
    views = [pool.submit(view.get_many, [("ad", "7"), ("ad", "8")], {"ad": [X]}) for view in (old, new)]
    wait_until(lambda: waiting(shared) == 2)
    gated.gates[0].set()
    assert [view.result() for view in views] == [
        {("ad", row): {X: row.encode() + suffix} for row in ("7", "8")} for suffix in (b"", b" new")
    ]
    gated.gates[1].set()
    assert [call.result() for call in busy] == [{X: b"%d new" % number} for number in range(2)]
    assert gated.asked[2] == tuple(keys(7, 8)) and len(gated.asked) == 3
