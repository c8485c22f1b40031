"""Refresh, killed -9 on the way.

Kills of the other workflows are beside what those are about. Base index: test_base_crash. Sync: test_sync_crash.
Snapshot and import: test_parquet. Backfill: test_backfill. Those and garbage collection on
HBase: test_hbase_workflows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from batch_workflows.runs import RunStore
from catalog import LaneName
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import NOTIFICATIONS
from tests.batch_workflows.kill_support import Worker
from tests.batch_workflows.sync_support import filled, state_of, work
from tests.debug_ui.pipeline import Pipeline

CAMPAIGNS = 30


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
