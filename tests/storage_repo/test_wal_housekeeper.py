"""Old versions on HBase are collected by one proxy, a bounded number of rows at a time, whatever fails."""

from __future__ import annotations

import threading
from pathlib import Path

from messaging.metrics import StageMetrics
from storage_repo import StoreUnavailable
from storage_repo.hbase.wal._housekeeper import Housekeeper


class Counted:
    """Stands in for a Repo: notes what it is asked for, and fails at its second call."""

    def __init__(self, rounds: int, stop: threading.Event) -> None:
        self.asked: list[int | None] = []
        self.closed = False
        self._rounds, self._stop = rounds, stop

    def collect_garbage(self, max_cells: int | None = None, *, max_rows: int | None = None) -> int:
        """Say that two versions went."""
        self.asked.append(max_rows)
        if len(self.asked) == self._rounds:
            self._stop.set()
        if len(self.asked) == 2:
            raise StoreUnavailable("away")
        return 2

    def close(self) -> None:
        """Note it."""
        self.closed = True


def test_rounds_are_bounded_and_failures_counted(tmp_path: Path) -> None:
    """Each round asks for its share of rows; one that fails is done later; what went is in the metrics."""
    stop, metrics = threading.Event(), StageMetrics(tmp_path, "wal_proxy-0")
    repo = Counted(3, stop)
    Housekeeper(lambda: repo, lambda: True, 500, metrics, tick_s=0.01).run(stop)
    assert (repo.asked, repo.closed) == ([5, 5, 5], True)
    assert {name: metrics.counters[name] for name in ("versions_collected", "collections", "collections_failed")} == {
        "versions_collected": 4,
        "collections": 2,
        "collections_failed": 1,
    }


def test_only_whoever_holds_the_first_partition_collects(tmp_path: Path) -> None:
    """The others do not even open the store; a share that comes later is noticed."""
    stop, metrics = threading.Event(), StageMetrics(tmp_path, "wal_proxy-0")
    repo, looks, opened = Counted(1, stop), list[int](), list[int]()

    def is_mine() -> bool:
        looks.append(len(opened))
        return len(looks) > 3

    def open_repo() -> Counted:
        opened.append(len(looks))
        return repo

    Housekeeper(open_repo, is_mine, 1, metrics, tick_s=0.01).run(stop)
    assert (opened, repo.asked, metrics.gauges["collects"]) == ([4], [1], 1)
