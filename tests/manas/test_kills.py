"""kill -9 of real processes during folding, swapping and publishing: what is on disk is whole, and nothing is lost."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from manas import ManasClient, Segment, current_base, open_local_index, publish, rollback
from manas._exceptions import SegmentError
from manas._fold_files import Fold, read_set
from manas._folder import FOLDS
from messaging.api import Log
from messaging.embedded import open_embedded_log
from messaging.home import Home
from messaging.topics import DELTAS, ensure_topics
from tests.manas.support import (
    CATALOG,
    VALUES,
    budget,
    delta,
    document,
    ids,
    log_records,
    tombstone,
    write_segment,
)
from tests.support import ROOT

BROWSE = dict.fromkeys(VALUES, "*")
_PATIENCE_SECONDS = 120.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Return an empty home."""
    return Home.open(tmp_path / "home")


@pytest.fixture
def log(home: Home) -> Iterator[Log]:
    """Return the home's log with all topics."""
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    yield log
    log.close()


class Server:
    """The stage as a process; folds every 40 deltas."""

    def __init__(self, home: Home) -> None:
        command = [sys.executable, "-m", "tests.manas.server_worker", str(home.root), "fold_documents=40"]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    def client(self) -> ManasClient:
        """Wait until it is ready and connect."""
        assert self._process.stdout is not None
        port = next(int(line) for line in self._process.stdout if line.strip().isdigit())
        return ManasClient(port, CATALOG)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()
        self._process.wait()


class World:
    """What was published, as a dictionary of bids."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.clock = 0
        self.bids: dict[int, int] = {}

    def change(self, seed: random.Random, count: int) -> None:
        """Publish changes and deletions."""
        messages = []
        for _ in range(count):
            self.clock += 1
            ad_id = seed.randrange(1, 120)
            if seed.random() < 0.2:
                self.bids.pop(ad_id, None)
                messages.append(tombstone(ad_id, self.clock))
            else:
                self.bids[ad_id] = self.clock
                messages.append(delta(document(ad_id, bid_account_micros=self.clock * 1_000_000), self.clock))
        self._log.publish(log_records(*messages))

    def base(self, tmp_path: Path) -> Path:
        """Build a base of the documents as they are."""
        self.clock += 1
        docs = [document(ad_id, bid_account_micros=bid * 1_000_000) for ad_id, bid in self.bids.items()]
        positions = self._log.end_offsets(DELTAS)
        return write_segment(tmp_path, docs, version=self.clock, snapshot_ts=self.clock, positions=positions)

    def expected(self) -> list[dict[str, Any]]:
        """Return the hits of browsing everything."""
        return [{"ad_id": a, "score": float(b)} for a, b in sorted(self.bids.items(), key=lambda p: (-p[1], p[0]))]


def _until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)


def _folding(home: Home) -> bool:
    return any(home.base.glob(f"{FOLDS}/*/*/*.rows"))


def _answers(client: ManasClient, world: World) -> bool:
    return client.search(BROWSE, 0)["hits"] == world.expected()


def _swapping(client: ManasClient, before: str) -> bool:
    stats = client.stats()
    return bool(stats["loading"]) or stats["base"]["version"] != before


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_during_folding_and_swapping_loses_nothing(home: Home, log: Log, tmp_path: Path, seed: int) -> None:
    """Killed at five moments of folding or swapping, the next server answers all that was published."""
    chance, world = random.Random(seed), World(log)
    log.publish(log_records(budget(1)))
    world.change(chance, 30)
    publish(home.base, world.base(tmp_path))
    for kill in range(5):
        server = Server(home)
        try:
            with server.client() as client:
                _until(lambda: _answers(client, world))
                if kill % 2:
                    world.change(chance, 10)
                    before = client.stats()["base"]["version"]
                    publish(home.base, world.base(tmp_path))
                    _until(partial(_swapping, client, before))
                else:
                    world.change(chance, 90)
                    _until(lambda: _folding(home))
            time.sleep(chance.random() * 0.7)
        finally:
            server.kill()
        for found in home.base.glob(f"{FOLDS}/*/*/SET"):
            names = read_set(found.parent)
            assert names is not None
            for name in names.folds:
                Fold.open(found.parent / name)
                Segment.open(found.parent / name / "segment", verify=True)
        assert open_local_index(home, CATALOG, log).search(BROWSE, 0)["hits"] == world.expected()
    rollback(home.base)
    server = Server(home)
    try:
        with server.client() as client:
            _until(lambda: _answers(client, world))
            assert sorted(ids(client.search(BROWSE, 0))) == sorted(world.bids)
    finally:
        server.kill()
    assert not list(home.base.glob("*/*.part"))


def test_kill_during_publishing_leaves_a_whole_base_in_service(tmp_path: Path) -> None:
    """However often a publisher is killed, the pointer names a whole base, and never an older one than before."""
    chance, base_dir = random.Random(3), tmp_path / "base"
    before = ""
    for _ in range(6):
        command = [sys.executable, "-m", "tests.manas.publish_worker", str(base_dir), "20"]
        publisher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert publisher.stdout is not None
        said = publisher.stdout.readline().strip()
        time.sleep(chance.random() * 0.2)
        publisher.kill()
        said = (publisher.stdout.read().split() or [said])[-1]
        publisher.wait()
        current = current_base(base_dir)
        assert current is not None
        assert current >= said > before
        Segment.open(base_dir / current, verify=True)
        before = current
    whole = [d for d in base_dir.iterdir() if d.is_dir() and not d.name.startswith(".")]
    for directory in whole:
        try:
            Segment.open(directory, verify=True)
        except SegmentError as error:  # pragma: no cover
            raise AssertionError(f"a base was published that is not whole: {error}") from error
