"""Snapshots and imports by a pool of processes: the same files and rows as by one, and whole after kill -9."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from batch_workflows import LeaseLost, parquet_import, parquet_snapshot
from batch_workflows._parquet_rows import ImportJob, RowsTask, put_rows
from batch_workflows._runs_model import Policy, RunRequest
from batch_workflows._task_repo import close_repo
from batch_workflows.base_index import open_embedded_repo
from batch_workflows.objects import Objects
from batch_workflows.parquet_snapshot import Day, read_day
from batch_workflows.runs import RunStore
from catalog import Catalog
from storage_repo import Origin
from tests.batch_workflows.parquet_support import (
    contents,
    killed_until_done,
)
from tests.batch_workflows.run_support import Opened, run


def files_of(root: Path) -> tuple[Day, dict[str, list[bytes]]]:
    """Return the newest day of a snapshot, and the bytes of its files by table."""
    day = read_day(Objects(root))
    tables = [*day.tables, *([day.documents] if day.documents else [])]
    return day, {t.table: [(root / name).read_bytes() for name in day.files(t.table)] for t in tables}


def test_a_pool_writes_what_one_process_does(
    opened: Opened, empty: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are equal byte for byte, with equal digests; the pool's import gives back every cell, and says so."""
    monkeypatch.setattr(parquet_snapshot, "PART_ROWS", 50)
    monkeypatch.setattr(parquet_snapshot, "GROUP_ROWS", 20)
    for processes in (1, 2):
        run(opened, "snapshot", to=str(tmp_path / str(processes)), day="2026-03-01", processes=processes)
    (one, by_one), (pool, by_pool) = files_of(tmp_path / "1"), files_of(tmp_path / "2")
    assert by_one == by_pool and [len(files) for files in by_one.values()] == [3] * len(by_one)
    assert (one.tables, one.documents) == (pool.tables, pool.documents)
    monkeypatch.setattr(parquet_import, "TASK_ROWS", 30)
    monkeypatch.setattr(parquet_import, "BATCH_ROWS", 7)
    monkeypatch.setattr(parquet_import, "POOL_ROWS", 0)
    record = run(empty, "snapshot-import", source=str(tmp_path / "2"), processes=2)
    assert record.counts["verified"] is True
    assert contents(empty.repo, empty.catalog) == contents(opened.repo, opened.catalog)


def test_a_pool_killed_in_the_middle(opened: Opened, empty: Opened, catalog: Catalog, tmp_path: Path) -> None:
    """Killed with its pool at work and resumed, a snapshot and its import are whole."""
    there = str(tmp_path / "snapshots")
    assert killed_until_done(opened.home.root, catalog, "snapshot", [9], to=there, processes=2) == 1
    assert killed_until_done(empty.home.root, catalog, "snapshot-import", [25], source=there, processes=2) == 1
    assert contents(empty.repo, catalog) == contents(opened.repo, catalog)
    record = RunStore(empty.repo).get("snapshot-import-1")
    assert len(record.attempts) == 2 and record.counts["verified"] is True


def test_who_works_for_a_run_that_lost_its_lease_writes_nothing(opened: Opened, empty: Opened, tmp_path: Path) -> None:
    """A process of an import whose lease another run has taken is refused before it writes a row."""
    run(opened, "snapshot", to=str(tmp_path / "there"))
    there = Objects(tmp_path / "there")
    table = read_day(there).find("ad")
    store, request = RunStore(empty.repo), RunRequest(workflow="snapshot-import")
    _, lost, _, _ = store.take(request, "snapshot-import", Policy())
    _, kept, _, _ = store.take(request, "snapshot-import", Policy(), alone=True)
    opener = partial(open_embedded_repo, empty.home, empty.catalog)
    task = RowsTask(0, "ad", table.columns, read_day(there).files("ad")[0], 10, 60)
    job = ImportJob(opener, Origin("test"), lost.binding, there.address, empty.home.root, tmp_path, 50)
    try:
        with pytest.raises(LeaseLost, match="has lost its lease"):
            put_rows(job, task)
        assert not list(empty.repo.snapshot().scan("ad"))
        put_rows(replace(job, lease=kept.binding), task)
        assert len(list(empty.repo.snapshot().scan("ad"))) == 60
    finally:
        close_repo()
