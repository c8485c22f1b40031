"""Reads that ask for no shadow cells because the commits are remembered, and snapshots that share a timestamp."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from repo_backends import ORIGIN, TABLES, HbaseBackend

from compose import ServerInfo
from storage_repo import RepoSchema, StoreUnavailable
from storage_repo.hbase import HbaseAddress, HbaseRepo, _cells
from storage_repo.hbase._cells import KnownCommits, Recall
from storage_repo.hbase._time import Oracle, WorldTime
from storage_repo.omid import TsoClient
from storage_repo.omid.layout import shadow_qualifier
from tests.storage_repo.tso_wire import wait_until

X, Y = "control:x", "control:y"
COLUMNS = {"ad": (X, Y)}
ROWS = [("ad", f"{number}") for number in range(5)]
OFTEN = 40
"""Reads after which a table's rows count as remembered."""


@pytest.fixture
def installation(tmp_path: Path, hbase_server: ServerInfo) -> HbaseBackend:
    """Return an empty installation."""
    return HbaseBackend.install(tmp_path, hbase_server.url)


@pytest.fixture
def repo(installation: HbaseBackend) -> Iterator[HbaseRepo]:
    """Return the repo of another process, which writes."""
    with_repo = installation.open()
    put(with_repo, b"0")
    yield with_repo
    with_repo.close()


@pytest.fixture
def reader(installation: HbaseBackend, repo: HbaseRepo) -> Iterator[HbaseRepo]:
    """Return a repo that has only read the rows, so often that it remembers their commits."""
    reader = installation.open()
    for _ in range(OFTEN):
        assert read(reader) == {row: {X: b"0", Y: b"0"} for row in ROWS}
    yield reader
    reader.close()


def put(repo: HbaseRepo, value: bytes, rows: list[tuple[str, str]] = ROWS, columns: tuple[str, ...] = (X, Y)) -> int:
    """Commit cells."""
    transaction = repo.begin(ORIGIN)
    for table, row in rows:
        for column in columns:
            transaction.put(table, row, column, value)
    return transaction.commit()


def read(repo: HbaseRepo, ts: int | None = None) -> dict[tuple[str, str], dict[str, bytes]]:
    """Read the rows' declared columns."""
    return repo.snapshot(ts).get_many(ROWS, COLUMNS)


def spent(repo: HbaseRepo, work: Callable[[], Any]) -> dict[str, int]:
    """Return the counters of reading that work moved."""
    names = ("round_trips_get", "recalled_reads", "recalled_in_vain", "slow_reads")
    before = repo.statistics()
    work()
    after = repo.statistics()
    since = Counter({name: after.get(name, 0) - before.get(name, 0) for name in names})
    since["round_trips_get"] -= 1  # by statistics() itself
    return {name: count for name, count in since.items() if count}


def test_rows_with_remembered_commits_are_read_without_shadow_cells(
    reader: HbaseRepo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call, which names the data columns and the mark of a deleted family only."""
    asked: list[list[bytes]] = []
    rows = reader._connections.rows

    def watched(table: bytes, keys: Any, columns: Any, before_ts: int) -> Any:
        asked.append(list(columns))
        return rows(table, keys, columns, before_ts)

    monkeypatch.setattr(reader._connections, "rows", watched)
    assert spent(reader, lambda: read(reader)) == {"round_trips_get": 1, "recalled_reads": 1}
    assert asked == [[b"control:x", b"control:", b"control:y"]]


def test_what_another_process_commits_is_seen_at_once(reader: HbaseRepo, repo: HbaseRepo) -> None:
    """A commit that is not remembered is looked up: in one more call, for its rows; then it is remembered."""
    put(repo, b"1", ROWS[:2], (X,))
    found: list[Any] = []
    cost = spent(reader, lambda: found.append(read(reader)))
    assert cost == {"round_trips_get": 2, "recalled_reads": 1, "recalled_in_vain": 1}
    assert found == [{row: {X: b"1" if row in ROWS[:2] else b"0", Y: b"0"} for row in ROWS}]
    assert spent(reader, lambda: read(reader)) == {"round_trips_get": 1, "recalled_reads": 1}


def test_rows_that_others_keep_changing_are_read_with_shadow_cells_again(reader: HbaseRepo, repo: HbaseRepo) -> None:
    """After a few calls in vain, reading takes one call again."""
    for number in range(6):
        put(repo, b"%d" % number)
        assert read(reader)[ROWS[0]] == {X: b"%d" % number, Y: b"%d" % number}
    put(repo, b"7")
    assert spent(reader, lambda: read(reader)) == {"round_trips_get": 1}


def test_an_older_snapshot_does_not_see_a_remembered_commit(reader: HbaseRepo, repo: HbaseRepo) -> None:
    """Remembered or not, a commit is visible only to later snapshots, and the version below it is found."""
    before = reader.snapshot().ts
    put(repo, b"1")
    new = {row: {X: b"1", Y: b"1"} for row in ROWS}
    assert read(reader) == new and read(reader) == new
    assert read(reader, before) == {row: {X: b"0", Y: b"0"} for row in ROWS}


def test_cells_of_a_transaction_that_died_are_not_seen(
    reader: HbaseRepo, repo: HbaseRepo, installation: HbaseBackend
) -> None:
    """Before its commit nothing of it is visible; after the TSO has granted it all is, without any shadow cell."""
    for step, visible in (("flushed", b"0"), ("decided", b"1")):

        def stop(at: str, step: str = step) -> None:
            if at == step:
                raise MemoryError(step)

        with_end = HbaseRepo.open(installation.url, RepoSchema.of(TABLES), faults=stop)
        with pytest.raises(MemoryError):
            put(with_end, b"1")
        with_end.close()
        assert read(reader) == {row: {X: visible, Y: visible} for row in ROWS}


def test_a_java_clients_deleted_family_is_seen(reader: HbaseRepo, repo: HbaseRepo) -> None:
    """The mark of a deleted family is asked for in every read; here it is written as the Java client does."""
    names: Any = repo._names
    family_mark = names.column("ad", X)._replace(
        name="control:", key=b"control:", qualifier=b"", shadow=shadow_qualifier(b"")
    )
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", "0", X, b"9")
    transaction._columns["ad", "0"] = [family_mark]
    transaction._writes["ad", "0"] = {X: None}
    transaction.commit()
    found = read(reader)
    assert found.pop(ROWS[0]) == {}
    assert set(found) == set(ROWS[1:]) and all(row == {X: b"0", Y: b"0"} for row in found.values())


def test_whole_rows_need_no_memory(reader: HbaseRepo) -> None:
    """Without chosen columns the families come with their shadow cells."""
    cost = spent(reader, lambda: reader.snapshot().get_many(ROWS))
    assert cost == {"round_trips_get": 1}


def test_memory_is_bounded_and_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is full the half that was learnt first goes."""
    monkeypatch.setattr(_cells, "_REMEMBERED", 10)
    known = KnownCommits()
    for start in range(25):
        assert known.learn_all({start: start + 1})
    assert list(known) == list(range(15, 25)) and not known.learn_all({24: 25})


def test_recall_is_likely_after_a_run_of_hits_and_not_after_some_misses() -> None:
    """It starts with no trust, and a table that changes under it loses it soon."""
    recall = Recall()
    hits = 0
    while not recall.is_likely():
        recall.note(True)
        hits += 1
    assert 10 < hits < OFTEN
    for _ in range(100):
        recall.note(True)
    for _ in range(4):
        recall.note(False)
    assert not recall.is_likely()


class Gated(TsoClient):
    """The real client, whose questions wait at a gate before they leave."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asks, self.gate = threading.Semaphore(0), threading.Semaphore(0)

    def begin(self) -> int:
        """Say that a question is about to leave, and wait."""
        self.asks.release()
        assert self.gate.acquire(timeout=120)
        return super().begin()


@pytest.fixture
def gated(hbase_server: ServerInfo, installation: HbaseBackend) -> Iterator[Gated]:
    """A client of the running TSO."""
    with Gated.open(HbaseAddress.parse(installation.url).tso) as client:
        assert isinstance(client, Gated)
        yield client


def in_line(oracle: Oracle, pool: ThreadPoolExecutor, count: int) -> list[Future[int]]:
    """Ask for so many views while another question is on its way; return when one waits to ask, the rest for it."""
    views = [pool.submit(oracle.view) for _ in range(count)]

    def waiting() -> bool:
        gathering: Any = oracle._gathering
        return gathering is not None and len(gathering._condition._waiters) == count - 1

    wait_until(waiting)
    return views


def test_views_that_wait_share_a_timestamp_asked_for_after_all_of_them(gated: Gated) -> None:
    """Whoever comes while a question is on its way gets the answer to the next one, never to that one."""
    oracle = Oracle(gated, WorldTime())
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(oracle.view)
        assert gated.asks.acquire(timeout=120)
        others = in_line(oracle, pool, 8)
        gated.gate.release(3)
        shared = {view.result() for view in others}
    assert len(shared) == 1 and gated.statistics()["begins"] == 2
    assert first.result() < min(shared) < oracle.view()


def test_views_fail_together_and_each_with_an_error_of_its_own(gated: Gated) -> None:
    """When the client is closed all that wait are told, and the next one does not hang either."""
    oracle = Oracle(gated, WorldTime())
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(oracle.view)
        assert gated.asks.acquire(timeout=120)
        others = in_line(oracle, pool, 8)
        gated.close()
        gated.gate.release(3)
        errors = [view.exception() for view in (first, *others)]
    assert all(isinstance(error, StoreUnavailable) for error in errors)
    assert len({id(error) for error in errors}) == 9
    with pytest.raises(StoreUnavailable):
        oracle.view()
