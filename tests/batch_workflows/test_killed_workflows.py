"""Refresh and garbage collection, killed -9 on the way, and what a resumed sync counts.

Kills of the other workflows are beside what those are about. Base index: test_base_crash. Sync: test_sync_crash.
Snapshot and import: test_parquet. Backfill: test_backfill. All of them on HBase: test_hbase_workflows.
"""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from batch_workflows import sync
from batch_workflows._sync_common import Part
from batch_workflows.execution import execute
from batch_workflows.gc import GarbageCollector
from batch_workflows.runs import RunRequest, RunStore
from batch_workflows.sync import SyncParameters, synchronize
from batch_workflows.sync_index import IndexSync
from catalog import LaneName, Reference
from catalog.model import INDEX_CELL
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import NOTIFICATIONS
from storage_repo import Origin
from tests.batch_workflows.kill_support import Worker
from tests.batch_workflows.sync_support import filled, state_of, sync_of, work
from tests.debug_ui.pipeline import Pipeline

CAMPAIGNS = 30
LATER_S = 40 * 24 * 3600.0
CHANGES = """
UPDATE campaigns SET status = 'ARCHIVED' WHERE id > 5; UPDATE ad_groups SET status = 'ARCHIVED' WHERE id > 50;
UPDATE ads SET status = 'ARCHIVED' WHERE id >= 600; DELETE FROM ads WHERE id < 300
"""


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """An idle pipeline."""
    opened = filled(tmp_path / "home", CAMPAIGNS)
    yield opened
    opened.close()


@pytest.fixture
def worker(pipeline: Pipeline) -> Iterator[Worker]:
    """What runs workflows on it."""
    with closing(Worker(pipeline.backends.home)) as made:
        yield made


def asked(pipeline: Pipeline, start: dict[int, int]) -> Counter[str]:
    """Count the rows that were asked to run, in the low lane, after some offsets."""
    topic = NOTIFICATIONS[LaneName.LOW]
    records = [r for partition, offset in start.items() for r in pipeline.log.read(topic, partition, offset, 100_000)]
    return Counter(f"{note.table}/{note.row}" for note in (pb.Notification.FromString(r.value) for r in records))


def test_a_killed_refresh_asks_for_every_row(pipeline: Pipeline, worker: Worker) -> None:
    """Killed before and after its checkpoints and resumed, it asks for every row, and for no batch more than twice."""
    start = pipeline.log.end_offsets(NOTIFICATIONS[LaneName.LOW])
    done = worker.run(RunStore(pipeline.backends.repo), "refresh", [2, 3, 1], {"table": "ad"})
    rows = asked(pipeline, start)
    assert rows.keys() == {f"ad/{100 * i + n}" for i in range(1, CAMPAIGNS + 1) for n in (0, 1)}
    assert done["counts"]["rows"] == len(rows) and len(done["attempts"]) == 4
    assert max(rows.values()) <= 2 and list(rows.values()).count(1) > 0, "it began anew"
    before = state_of(pipeline)
    work(pipeline)
    assert state_of(pipeline) == before


def test_a_killed_collection_takes_out_what_a_whole_one_does(
    pipeline: Pipeline, worker: Worker, tmp_path: Path
) -> None:
    """Killed before and after its commits: rows, index rows and documents are those of a run that nobody killed."""
    pipeline.sql(CHANGES)
    work(pipeline)
    # By another process: whoever closes a file of LMDB's gives up all of its process's locks on it.
    subprocess.run(["cp", "-r", tmp_path / "home", tmp_path / "whole"], check=True)
    whole = Pipeline.open(tmp_path / "whole", capture=False)
    backends, limit_us, at_us = whole.backends, 30 * 24 * 3600 * 1_000_000, now_us() + round(LATER_S * 1e6)
    try:
        for _ in range(2):  # the second has the documents of what the first retired
            GarbageCollector(backends.repo, backends.catalog, limit_us=limit_us, dry_run=False, at_us=at_us).run()
            work(whole)
        runs = RunStore(pipeline.backends.repo)
        for kills in ([2, 5, 6], [3]):
            worker.run(runs, "gc", kills, {"dry_run": False}, LATER_S)
            work(pipeline)
        dry = worker.run(runs, "gc", (), {}, LATER_S)
        assert dry["counts"]["rows"] == {}, "nothing is left for a next run"
        assert sorted(run.outcome.value for run in runs.runs("gc")) == ["interrupted"] * 4 + ["succeeded"] * 3
        assert state_of(pipeline) == state_of(whole)
    finally:
        whole.close()
    found = synchronize(sync_of(pipeline), SyncParameters(), sources={"performance": pipeline.source})
    assert not any(part.unsynced for part in found.values())


def test_a_resumed_sync_counts_what_was_found_before(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the attempt that ended found and repaired is in the record of the run, once, with its examples."""
    monkeypatch.setattr(sync, "_sleep", lambda _: work(pipeline))
    repo, reference = pipeline.backends.repo, pipeline.backends.catalog.references()[0]
    index = next(row for row, _ in repo.snapshot().scan(reference.index_table))
    spoil = repo.begin(Origin("chaos"))
    for cell in repo.snapshot().get("image", "img-100"):
        spoil.delete("image", "img-100", cell)
    spoil.delete(reference.index_table, index, INDEX_CELL)
    spoil.commit()
    compare = IndexSync.run

    def end(self: IndexSync, reference: Reference) -> Part:
        raise KeyboardInterrupt

    monkeypatch.setattr(IndexSync, "run", end)
    with pytest.raises(KeyboardInterrupt):
        execute(pipeline.backends, RunRequest(workflow="sync"))
    monkeypatch.setattr(IndexSync, "run", compare)
    done = execute(pipeline.backends, RunRequest(workflow="sync", resume=0))
    found = done.counts["unsynced"]
    assert isinstance(found, dict) and found.items() >= {"image:missing_in_repo": 1}.items()
    assert f"{reference.index_table}:index_row_missing" in found, found
    assert done.counts["examples"]["image:missing_in_repo"] == ["img-100"]  # type: ignore[index,call-overload]
    assert {"ads_db:image", f"index:{reference.index_table}"} <= done.counts["parts"].keys()  # type: ignore[union-attr]
