"""Collects old versions on HBase in the background, a few rows at a time, by one WAL proxy of all.

HBase keeps every version that nobody deletes, and the embedded store's counterpart of this proxy collects as well. The
one is whoever holds the first partition of the topic of open transactions; while that changes hands two may collect,
which costs time and nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol

import structlog

from messaging.metrics import StageMetrics
from storage_repo._exceptions import RepoError

TICK_S = 5.0
"""Between two rounds; each also moves the low watermark, which is one write."""


class Collectable(Protocol):
    """What is needed of a Repo on HBase."""

    def collect_garbage(self, max_cells: int | None = None, *, max_rows: int | None = None) -> int:
        """Advance the low watermark and sweep some rows; return how many versions went."""

    def close(self) -> None:
        """Close the connections."""


class Housekeeper:
    """One thread's work: call `run` in it. `rows_per_s` bounds what is read, on average over a round."""

    def __init__(
        self,
        open_repo: Callable[[], Collectable],
        is_mine: Callable[[], bool],
        rows_per_s: float,
        metrics: StageMetrics,
        *,
        tick_s: float | None = None,
    ) -> None:
        self._open_repo, self._is_mine, self._metrics = open_repo, is_mine, metrics
        self._tick_s = TICK_S if tick_s is None else tick_s
        self._rows = max(1, round(rows_per_s * self._tick_s))

    def run(self, stop: threading.Event) -> None:
        """Collect until told to stop. What fails is counted and done in a later round."""
        repo: Collectable | None = None
        try:
            while not stop.wait(self._tick_s):
                mine = self._is_mine()
                self._metrics.gauge("collects", int(mine))
                if not mine:
                    continue
                try:
                    if repo is None:
                        repo = self._open_repo()
                    self._metrics.count("versions_collected", repo.collect_garbage(max_rows=self._rows))
                    self._metrics.count("collections")
                except RepoError as error:
                    self._metrics.count("collections_failed")
                    structlog.get_logger().warning("collection_failed", error=str(error))
        finally:
            if repo is not None:
                repo.close()
