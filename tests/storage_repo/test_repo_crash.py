"""What processes that are killed leave behind: nothing torn, nothing acknowledged lost, money all there."""

from __future__ import annotations

import pytest
from repo_backends import Backend, Fleet
from repo_workloads import ACCOUNTS, INITIAL_BALANCE, open_accounts, read_balances

from storage_repo import SnapshotTooOld

pytestmark = pytest.mark.stress


def test_bank_sums_up_at_every_snapshot(backend: Backend, fleet: Fleet) -> None:
    """Transfers by several processes with kill -9 keep the total at the newest and at all older snapshots."""
    repo = backend.open()
    open_accounts(repo)
    limits = {"max_transaction_age_s": 0.3, "versions_kept": 2}
    fleet.run_with_kills("bank", workers=3, kills=3, lines=(10, 80), count=100, limits=limits)
    last = repo.last_commit_ts()
    assert last > 200
    readable = 0
    for ts in range(1, last + 1):
        try:
            assert sum(read_balances(repo.snapshot(ts)).values()) == ACCOUNTS * INITIAL_BALANCE, f"at {ts}"
            readable += 1
        except SnapshotTooOld:
            continue
    assert readable > 1
    assert repo.statistics()["low_watermark"] > 0, "nothing was collected: this run has not tested old snapshots"
    repo.close()


def test_killed_commits_are_whole_or_absent(backend: Backend, fleet: Fleet) -> None:
    """After kill -9 during commits: nothing torn, the acknowledged present, changes exactly for the committed."""
    fleet.run_with_kills("stamp", workers=3, kills=4, lines=(4, 100), count=80)
    repo = backend.open()
    last = repo.last_commit_ts()
    changes = repo.changes(0, last + 10)
    assert [change.commit_ts for change in changes] == list(range(1, last + 1))

    committed = {}
    for change in changes:
        snapshot = repo.snapshot(change.commit_ts)
        cells = [(row.table, row.row, column) for row in change.rows for column in row.columns]
        values = {snapshot.get(table, row)[column] for table, row, column in cells}
        assert len(values) == 1, f"torn transaction at {change.commit_ts}: {values}"
        name = values.pop().decode()
        assert name not in committed, f"{name} committed twice"
        committed[name] = change.commit_ts
        assert ("campaign", f"by-name-{name}") in {(row.table, row.row) for row in change.rows}

    for worker in fleet.workers:
        for line in worker.lines:
            for name, ts in line.get("acknowledged", {}).items():
                assert committed[name] == ts, f"{name} was acknowledged at {ts}"
    stored = {row.removeprefix("by-name-") for row, _ in repo.snapshot().scan("campaign", prefix="by-name-")}
    assert stored == set(committed)
    written = {
        (table, row, column, version.commit_ts)
        for table in ("ad", "campaign")
        for row, _ in repo.snapshot().scan(table)
        for column, versions in repo.history(table, row).items()
        for version in versions
    }
    assert written == {
        (row.table, row.row, column, change.commit_ts)
        for change in changes
        for row in change.rows
        for column in row.columns
    }
    repo.close()
