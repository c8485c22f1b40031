"""What processes that are killed leave behind: nothing torn, nothing acknowledged lost, money all there."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from repo_backends import Backend
from repo_fleet import Fleet
from repo_workloads import ACCOUNTS, INITIAL_BALANCE, open_accounts, read_balances

from storage_repo import Limits, SnapshotTooOld
from storage_repo.embedded import EmbeddedRepo

pytestmark = pytest.mark.stress


def test_bank_sums_up_at_every_snapshot(backend: Backend, fleet: Fleet) -> None:
    """Transfers by several processes with kill -9 keep the total at the newest and at all older snapshots."""
    limits: dict[str, Any] = {"max_transaction_age_s": 0.3, "versions_kept": 2}
    repo = backend.open(Limits(**limits))
    open_accounts(repo)
    fleet.run_with_kills("bank", workers=3, kills=3, lines=(10, 80), count=100, limits=limits)
    stamps = sorted({line["ts"] for worker in fleet.workers for line in worker.lines})
    assert len(stamps) > 200
    readable = 0
    for ts in stamps:
        try:
            assert sum(read_balances(repo.snapshot(ts)).values()) == ACCOUNTS * INITIAL_BALANCE, f"at {ts}"
            readable += 1
        except SnapshotTooOld:
            continue
    assert readable > 1
    assert repo.statistics()["low_watermark"] > 0, "nothing was collected: this run has not tested old snapshots"
    repo.close()


def test_killed_commits_are_whole_or_absent(backend: Backend, fleet: Fleet) -> None:
    """After kill -9 during commits: nothing torn, the acknowledged present, a feed has exactly the committed."""
    fleet.run_with_kills("stamp", workers=3, kills=4, lines=(4, 100), count=80)
    repo = backend.open(Limits(versions_kept=1_000_000))
    tried = {name: cells for w in fleet.workers for line in w.lines for name, cells in line.get("tried", {}).items()}
    written: defaultdict[int, dict[tuple[str, str, str], bytes | None]] = defaultdict(dict)
    for table in ("ad", "campaign"):
        for row, _ in repo.snapshot().scan(table):
            for column, versions in repo.history(table, row).items():
                for version in versions:
                    written[version.commit_ts][table, row, column] = version.value

    committed: dict[str, int] = {}
    for commit_ts, cells in written.items():
        values = set(cells.values())
        assert len(values) == 1, f"torn transaction at {commit_ts}: {values}"
        name = (values.pop() or b"").decode()
        assert len(cells) == tried[name], f"torn transaction at {commit_ts}: {sorted(cells)}"
        assert name not in committed, f"{name} committed twice"
        committed[name] = commit_ts
        assert ("campaign", f"by-name-{name}", "control:name") in cells
        snapshot = repo.snapshot(commit_ts)
        visible = snapshot.get_many([(table, row) for table, row, _ in cells])
        assert all(visible[table, row][column] == name.encode() for table, row, column in cells)

    acknowledged = {n: ts for w in fleet.workers for line in w.lines for n, ts in line.get("acknowledged", {}).items()}
    assert acknowledged.items() <= committed.items(), "an acknowledged commit is lost or has another timestamp"
    stored = {row.removeprefix("by-name-") for row, _ in repo.snapshot().scan("campaign", prefix="by-name-")}
    assert stored == set(committed)
    if isinstance(repo, EmbeddedRepo):
        changes = repo.changes(0, len(committed) + 10)
        assert [change.commit_ts for change in changes] == list(range(1, repo.last_commit_ts() + 1))
        assert written.keys() == {change.commit_ts for change in changes}
        for change in changes:
            assert written[change.commit_ts].keys() == {(r.table, r.row, c) for r in change.rows for c in r.columns}
    repo.close()
