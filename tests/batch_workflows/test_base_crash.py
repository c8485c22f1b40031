"""No update around the snapshot is lost: writers run, the builder is killed at seeded moments, nothing lacks."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from argus import compute_documents, load_registry
from argus.stage import open_sources
from batch_workflows.base_mirror import mirror
from batch_workflows.base_store import BaseStore
from batch_workflows.objects import Objects
from batch_workflows.sample import generate_sample
from catalog import load_catalog
from cli.inprocess import InProcess
from gateway import AdsDb
from manas import Base, current_base, open_local_index
from manas._folder import FOLDS
from messaging.home import Home
from tests.batch_workflows.s3_support import account, s3
from tests.support import ROOT

__all__ = ["account", "s3"]

ADS = 200
KILLS = {"directory": 6, "s3": 4}
STAGES = ("gateway", "updater", "wal_proxy", "argus", "manas")


class Writer:
    """Changes bids, states and titles in the ads DB until told to stop."""

    def __init__(self, ads_db: AdsDb, seed: int) -> None:
        self._ads_db, self._chance = ads_db, random.Random(seed)
        self._stop = threading.Event()
        self.changes = 0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Stop and wait."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        chance = self._chance
        while not self._stop.is_set():
            ad, number = chance.randrange(1, ADS + 1), chance.randrange(1, 1_000)
            statement = chance.choice(
                [
                    f"UPDATE ad_groups SET bid_micros = {number} * 10000 WHERE id = (SELECT ad_group_id FROM ads "
                    f"ORDER BY id LIMIT 1 OFFSET {ad - 1})",
                    f"UPDATE ads SET status = '{chance.choice(('ACTIVE', 'ACTIVE', 'PAUSED'))}' WHERE id = (SELECT id "
                    f"FROM ads ORDER BY id LIMIT 1 OFFSET {ad - 1})",
                    f"UPDATE pins SET title = 'Title {number}' WHERE id = (SELECT pin_id FROM ads ORDER BY id LIMIT 1 "
                    f"OFFSET {ad - 1})",
                    f"DELETE FROM ads WHERE id = (SELECT id FROM ads ORDER BY id LIMIT 1 OFFSET {ad - 1}) AND "
                    f"{number} < 100",
                ]
            )
            with self._ads_db.engine.begin() as connection:
                connection.exec_driver_sql(statement)
            self.changes += 1
            self._stop.wait(0.004)


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["directory", "s3"])
def test_no_update_around_a_snapshot_is_lost(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Whatever was killed and when, what serving has is what the handlers make of the newest rows."""
    home, catalog = Home.open(tmp_path / "home"), load_catalog()
    address = str(request.getfixturevalue("s3")) if kind == "s3" else str(home.base)
    store, chance = BaseStore(Objects(address)), random.Random(f"{kind} 11")
    with InProcess(home, catalog, STAGES) as pipeline:
        backends = pipeline.backends
        generate_sample(backends.ads_db, home.performance_db, backends.log, ADS, 3)
        pipeline.until_idle()
        builders, writer = Builders(home, address), Writer(backends.ads_db, 5)
        try:
            finished = sum(builders.build(seed, chance.random()) for seed in range(KILLS[kind]))
            _all_whole(store)
            assert finished < KILLS[kind], "every build was quicker than its killer"
            assert builders.build(101, None)
            _all_whole(store)
            if kind == "s3":
                mirror(store, home)
        finally:
            writer.stop()
            builders.close()
        assert writer.changes > 100
        pipeline.until_idle()
        snapshot = backends.repo.snapshot()
        rows = [row for row, _ in snapshot.scan(catalog.root)]
        sources = open_sources(home)
        wanted = {ad: body for ad, body, _ in compute_documents(snapshot, load_registry(catalog), sources, rows)}
        index = open_local_index(home, catalog, backends.log)
        assert index.base_version == store.current() == current_base(home.base)
        found = {d.document_id: d.body if d.found else None for d in index.get(rows)}
        assert found == wanted
        running = {d.document_id: d.body if d.found else None for d in backends.serving.get(rows)}
        assert running == wanted
        assert "delta" in {d.layer for d in index.get(rows)}, "nothing was written after the snapshot"
        for source in sources.values():
            source.close()
    assert [name for name in store.objects.directories() if name.startswith(".") and name != FOLDS] == []


class Builders:
    """Starts builders, one at a time, and kills them."""

    def __init__(self, home: Home, address: str) -> None:
        command = [sys.executable, "-m", "tests.batch_workflows.base_worker", str(home.root), address]
        self._nursery = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def build(self, seed: int, killed_after_s: float | None) -> bool:
        """Run a builder, kill it after some seconds if it still runs, and return whether it published."""
        assert self._nursery.stdin is not None and self._nursery.stdout is not None
        self._nursery.stdin.write(f"{seed}\n")
        builder = psutil.Process(int(self._nursery.stdout.readline()))
        if killed_after_s is not None:
            time.sleep(killed_after_s)  # the seeded moment
            with contextlib.suppress(psutil.NoSuchProcess):
                children = builder.children(recursive=True)
                builder.kill()
                _, alive = psutil.wait_procs(children, timeout=30)
                assert not alive, "processes of the pool outlived the builder"
        return self._nursery.stdout.readline() != "nothing\n"

    def close(self) -> None:
        """End the process that starts them."""
        self._nursery.communicate()


def _all_whole(store: BaseStore) -> None:
    """Whatever is listed is whole, and the pointer names one of it."""
    bases = store.bases()
    assert [base.problem for base in bases] == [""] * len(bases)
    if (current := store.current()) is not None:
        assert current in [base.version for base in bases]
    for base in bases:
        if store.objects.local is not None:
            Base.open(store.objects.local / base.version)
        else:
            store.verify(base.version)
