"""Any order and repetition of updates, by one process or several that are killed, ends in the newest state."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalog import Catalog, LaneName, load_catalog
from messaging import Log, OutRecord, open_embedded_log
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import UPDATER_GROUP, UPDATES, ensure_topics
from tests.support import ROOT
from tests.updater.support import index_rows, open_repo, recounted_index_rows, stored, update
from updater import UpdaterCore

CATALOG = load_catalog()  # not a fixture: Hypothesis would print it with every failure
TOPIC = UPDATES[LaneName.HIGH]

values = st.fixed_dictionaries(
    {"ad_group_id": st.none() | st.integers(1, 3), "pin_id": st.none() | st.sampled_from(["p1", "p2"])},
    optional={"name": st.text(st.characters(codec="utf-8"), max_size=5)},
)
histories = st.dictionaries(
    st.sampled_from(["1", "2", "3"]), st.lists(st.none() | values, min_size=1, max_size=5), min_size=1
)


def newest(updates: Sequence[pb.EntityUpdate], contents: dict[tuple[str, int], Any]) -> dict[str, dict[str, Any]]:
    """Return the model: row -> values of its highest version, without nulls; deleted rows have none."""
    versions: dict[str, int] = {}
    for item in updates:
        versions[item.row] = max(versions.get(item.row, 0), item.source_version)
    return {
        row: {k: v for k, v in (contents[row, version] or {}).items() if v is not None}
        for row, version in versions.items()
    }


@settings(max_examples=40, deadline=None)
@given(histories, st.data())
def test_any_order_and_repetition_ends_in_the_newest_state(history: dict[str, list[Any]], data: st.DataObject) -> None:
    """Shuffled, repeated and cut into any batches, a history with deletes ends as its highest versions say."""
    contents = {(row, n): v for row, versions in history.items() for n, v in enumerate(versions, start=1)}
    updates = [update("ad", row, version, v) for (row, version), v in contents.items()]
    repeated = updates + data.draw(st.lists(st.sampled_from(updates), max_size=6))
    shuffled = data.draw(st.permutations(repeated))
    with tempfile.TemporaryDirectory() as root:
        repo = open_repo(Path(root), CATALOG)
        try:
            core = UpdaterCore(repo, CATALOG)
            left = list(shuffled)
            while left:
                size = data.draw(st.integers(1, len(left)))
                result = core.apply(left[:size])
                assert not result.dead_letters
                left = left[size:]
                assert index_rows(repo, CATALOG) == recounted_index_rows(repo, CATALOG)
            expected = newest(shuffled, contents)
            assert {row: stored(repo, CATALOG, "ad", row) for row in expected} == expected
            assert {r.outcome for r in core.apply(shuffled).results} <= {"duplicate", "stale"}
        finally:
            repo.close()


def start_worker(root: Path) -> subprocess.Popen[bytes]:
    """Start a process that runs the Updater's stage on the home; it runs until it is killed or its input ends."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.updater.worker", str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def outstanding(log: Log) -> int:
    """Return how many records the Updater has not committed yet."""
    committed = log.committed(UPDATER_GROUP, TOPIC)
    return sum(end - committed[partition] for partition, end in log.end_offsets(TOPIC).items())


@pytest.mark.stress
def test_killed_processes_with_overlapping_batches_converge(tmp_path: Path, catalog: Catalog) -> None:
    """Two processes that are killed again and again on shuffled, repeated updates leave exactly the newest state."""
    rng = random.Random(20_240_607)
    contents: dict[tuple[str, int], Any] = {}
    for n in range(60):
        for version in range(1, 9):
            gone = rng.random() < 0.2
            contents[str(n), version] = (
                None if gone else {"id": n, "ad_group_id": rng.randint(1, 5), "pin_id": f"p{rng.randint(1, 9)}"}
            )
    updates = [update("ad", row, version, v) for (row, version), v in contents.items()]
    log = open_embedded_log(tmp_path / "log", tmp_path / "run" / "wake")
    ensure_topics(log)
    workers = [start_worker(tmp_path) for _ in range(2)]
    kills = 0
    try:
        for wave in range(6):
            batch = updates * 2
            rng.shuffle(batch)
            # Keys are random on purpose: updates of one row reach both processes at once, and out of order.
            log.publish([OutRecord(TOPIC, str(rng.random()), item.SerializeToString()) for item in batch])
            before = outstanding(log)
            wait_until_below(log, before - rng.randint(1, 300))
            victim = wave % 2
            assert workers[victim].poll() is None
            workers[victim].kill()
            kills += workers[victim].wait(30) == -9
            workers[victim] = start_worker(tmp_path)
        wait_until_below(log, 1)
        for worker in workers:
            worker.communicate(timeout=30)
            assert worker.returncode == 0
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.communicate()
    repo = open_repo(tmp_path, catalog)
    try:
        expected = newest(updates, contents)
        assert kills == 6
        assert {row: stored(repo, catalog, "ad", row) for row in expected} == expected
        assert index_rows(repo, catalog) == recounted_index_rows(repo, catalog)
        assert log.end_offsets("dead_letters") == {0: 0}
    finally:
        repo.close()
        log.close()


def wait_until_below(log: Log, count: int) -> None:
    """Wait until fewer than `count` records are outstanding, two minutes at most."""
    deadline = time.monotonic() + 120
    tick = threading.Event()
    while (left := outstanding(log)) >= count:
        assert time.monotonic() < deadline, f"{left} records are still outstanding"
        tick.wait(0.01)
