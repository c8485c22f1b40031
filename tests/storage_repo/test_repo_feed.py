"""What engines with a change feed of their own promise besides: dense timestamps, and a record of every commit."""

from __future__ import annotations

import threading
import time

import pytest
from repo_backends import ORIGIN, Backend
from repo_fleet import Fleet

from storage_repo import ChangeFeedRepo, Conflict, RowChange

pytestmark = pytest.mark.backends("embedded")
X, Y = "control:x", "control:y"


def put(repo: ChangeFeedRepo, row: str, value: bytes | None) -> int:
    """Commit one cell (None: a tombstone); return the timestamp."""
    transaction = repo.begin(ORIGIN)
    if value is None:
        transaction.delete("ad", row, X)
    else:
        transaction.put("ad", row, X, value)
    return transaction.commit()


def test_empty_store_is_at_zero(repo: ChangeFeedRepo) -> None:
    """An empty store is at timestamp 0 and has no change."""
    assert repo.last_commit_ts() == repo.snapshot().ts == 0
    assert repo.changes(0, 10) == []


def test_commits_are_counted(repo: ChangeFeedRepo) -> None:
    """Timestamps are 1, 2, 3…; nothing else takes one: no conflict, no transaction without writes."""
    first, second = repo.begin(ORIGIN), repo.begin(ORIGIN)
    assert first.ts == second.ts == 0
    first.put("ad", "1", X, b"1")
    second.put("ad", "1", X, b"2")
    assert first.commit() == repo.last_commit_ts() == repo.snapshot().ts == 1
    with pytest.raises(Conflict, match=r"ad/'1' control:x: started at 0, but 1 committed since"):
        second.commit()
    nothing = repo.begin(ORIGIN)
    assert nothing.commit() == 1
    assert put(repo, "2", b"2") == repo.last_commit_ts() == 2
    with pytest.raises(ValueError, match="newest commit is 2"):
        repo.begin(ORIGIN, 3)
    with pytest.raises(ValueError, match="newest commit is 2"):
        repo.snapshot(3)
    with pytest.raises(ValueError, match="newest commit is 2"):
        repo.pin("p", 3, 60)


def test_commit_many_gives_dense_timestamps(repo: ChangeFeedRepo) -> None:
    """A group's commits follow each other; the changes tell of those that committed and of no other."""
    transactions = [repo.begin(ORIGIN) for _ in range(4)]
    for n, transaction in enumerate(transactions):
        transaction.put("ad", "same" if n < 2 else f"{n}", X, b"%d" % n)
    outcomes = repo.commit_many([*transactions, repo.begin(ORIGIN)])
    assert outcomes[0] == 1 and outcomes[2:] == [2, 3, 0]
    assert isinstance(outcomes[1], Conflict) and outcomes[1].newer_ts == 1
    assert [change.commit_ts for change in repo.changes(0, 10)] == [1, 2, 3]


def test_changes_survive_reopening(backend: Backend) -> None:
    """Changes are there after a restart, and timestamps go on."""
    for n in (1, 2):
        repo = backend.open()
        assert put(repo, "1", b"%d" % n) == n
        assert len(repo.changes(0, 10)) == n
        repo.close()


def test_sizes_are_in_the_statistics(repo: ChangeFeedRepo) -> None:
    """Statistics have the sizes of what is stored."""
    put(repo, "1", b"1")
    put(repo, "1", b"2")
    expected = {
        "cells": 1,
        "history_versions": 1,
        "change_records": 2,
        "transaction_records": 2,
        "last_commit_ts": 2,
        "low_watermark": 0,
    }
    statistics = repo.statistics()
    assert {name: statistics[name] for name in expected} == expected
    assert statistics["file_bytes"] > 0


def test_changes_say_what_each_commit_wrote(repo: ChangeFeedRepo) -> None:
    """The feed has every commit in order, with rows and columns as written and the whole origin."""
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", "1", X, b"1")
    transaction.put("campaign", "7", X, b"1")
    transaction.delete("ad", "1", Y)
    transaction.commit()
    aborted = repo.begin(ORIGIN)
    aborted.put("ad", "2", X, b"1")
    aborted.abort()
    put(repo, "3", b"1")
    first, second = repo.changes(0, 10)
    assert first.rows == (RowChange("ad", "1", (X, Y)), RowChange("campaign", "7", (X,)))
    assert (first.commit_ts, first.origin) == (1, ORIGIN)
    assert second.rows == (RowChange("ad", "3", (X,)),)
    assert repo.changes(0, 1) == [first]
    assert repo.changes(1, 10) == [second]
    assert repo.changes(2, 10) == []


def test_trim_changes_forgets_only_changes(repo: ChangeFeedRepo) -> None:
    """Trimmed changes are gone; cells, history and later changes are not."""
    for n in range(5):
        put(repo, "1", b"%d" % n)
    assert repo.trim_changes(3) == 3
    assert repo.trim_changes(3) == 0
    assert [change.commit_ts for change in repo.changes(0, 10)] == [4, 5]
    assert [v.origin for v in repo.history("ad", "1")[X]] == [ORIGIN] * 5
    assert repo.trim_changes(100) == 2


def test_wait_for_changes(repo: ChangeFeedRepo) -> None:
    """Waiting returns at once when there is something, False at the end of its time, and wakes up on a commit."""
    assert not repo.wait_for_changes(0, 0.01)
    results: list[bool] = []
    waiter = threading.Thread(target=lambda: results.append(repo.wait_for_changes(0, 30)))
    waiter.start()
    put(repo, "1", b"1")
    waiter.join(120)
    assert results == [True]
    assert repo.wait_for_changes(0, 0)
    assert not repo.wait_for_changes(1, 0)


def test_wait_for_changes_wakes_up_by_another_process(repo: ChangeFeedRepo, fleet: Fleet) -> None:
    """A commit of another process wakes the waiting one long before its time is over."""
    worker = fleet.start("stamp", count=1)
    begun = time.monotonic()
    assert repo.wait_for_changes(0, 60)
    assert time.monotonic() - begun < 50
    assert worker.finish() == 0
