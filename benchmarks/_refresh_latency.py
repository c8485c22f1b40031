"""What control updates wait for with and without a refresh: the same steady updates of one service, in turns.

The refresh goes on all the time that it is measured: its rows are asked for as fast as the low lane is worked off. It
is of the served ads of every other ad group, and the updates are of the rest: a run that answers a row of both is
counted in the higher lane from the earlier of their times, and would say how long the refresh's row had waited.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from argus import load_registry
from batch_workflows.refresh import Pace, request, waiting
from batch_workflows.refresh_selection import selection_of
from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report
from benchmarks._service import SEED, Service
from benchmarks._updates import Planner, Update
from catalog import LaneName
from messaging import MessagingError
from messaging.metrics import Histogram
from messaging.topics import ARGUS_GROUP, NOTIFICATIONS
from storage_repo import RepoError

_QUEUED = 5_000
"""Rows of the refresh in the low lane: more than are worked off while one more page of it is read."""
_LOOK_S = 0.02
_QUANTILES = (("p50", 0.5), ("p99", 0.99))


@dataclass(frozen=True, slots=True)
class Load:
    """How large the service's ads DB is, and how it is measured."""

    ads: int
    rate: float
    """Control updates per second."""
    seconds: float
    """Of one turn."""
    warm_up_s: float
    turns: int
    """With, and as many without; of each figure the median over the turns counts."""


FULL = Load(ads=20_000, rate=50.0, seconds=15.0, warm_up_s=2.0, turns=5)
QUICK = Load(ads=300, rate=40.0, seconds=2.0, warm_up_s=0.5, turns=1)


def measure(report: Report, load: Load) -> None:
    """Measure, and add the figures to a report. Raises BenchmarkFailed."""
    alone, beside, refreshed = list[Histogram](), list[Histogram](), list[float]()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as directory, Service(Path(directory)) as service:
        service.load_sample(load.ads)
        updated, refreshed_ads = _halves(service)
        planner = Planner(service.home.ads_db, updated, SEED)
        _turn(service, planner.steady(load.rate, load.warm_up_s))
        for _ in range(load.turns):
            alone.append(_turn(service, planner.steady(load.rate, load.seconds)))
            with _refreshing(service, refreshed_ads) as refresh:
                _turn(service, planner.steady(load.rate, load.warm_up_s), idle=False)
                started, before = time.monotonic(), refresh.done()
                beside.append(_turn(service, planner.steady(load.rate, load.seconds), idle=False))
                refreshed.append((refresh.done() - before) / (time.monotonic() - started))
            service.until_idle()
    case = f"{load.ads:,} ads, {load.rate:g} control updates/s"
    for name, q in _QUANTILES:
        metric = f"{name} ms from change to answerable beside a refresh"
        report.add(case, metric, _median(beside, q), "without one", _median(alone, q))
    report.add(case, "refreshed rows/s meanwhile", statistics.median(refreshed), more_is_better=True)
    report.note(
        f"control updates beside a refresh: medians of {load.turns} turns of {load.seconds:g} s each way, as the "
        "service counts latency in the high lane; a refresh takes what processors there are"
    )


def _turn(service: Service, updates: Sequence[Update], *, idle: bool = True) -> Histogram:
    """Commit updates at their pace, and return what those of the high lane took in microseconds."""
    before = service.usage()
    service.write(updates)
    if idle:
        service.until_idle()
    found = service.usage().since(before).hops.get("total", Histogram())
    if found.count < len(updates) // 2:
        raise BenchmarkFailed(f"of {len(updates)} control updates only {found.count} became answerable")
    return found


def _halves(service: Service) -> tuple[set[str], list[str]]:
    """Return the served ads of the ad groups with even numbers, and those of the others."""
    with closing(sqlite3.connect(service.home.ads_db)) as connection:
        groups = {str(ad): group for ad, group in connection.execute("SELECT id, ad_group_id FROM ads")}
    served = service.served()
    return {ad for ad in served if groups[ad] % 2 == 0}, sorted(ad for ad in served if groups[ad] % 2)


class _Refresh:
    """A refresh of some ads that begins again when it is through, until told to end; in a thread."""

    def __init__(self, service: Service, ads: Sequence[str]) -> None:
        catalog = service.catalog
        self._selection = selection_of(catalog, load_registry(catalog), table=catalog.root, ids=ads)
        self._log, self._stop, self._failure = service.log, threading.Event(), list[Exception]()
        self._service, self._thread = service, threading.Thread(target=self._work, daemon=True)

    def begin(self) -> None:
        """Return when its rows are there."""
        self._thread.start()
        while not waiting(self._log):
            self._check()
            time.sleep(_LOOK_S)

    def end(self) -> None:
        """Stop it. Raises BenchmarkFailed if it did not go on until now."""
        self._check()
        self._stop.set()
        self._thread.join()

    def done(self) -> int:
        """Return how many of its rows are done. Raises BenchmarkFailed if none waits: it is never to be through."""
        self._check()
        if not waiting(self._log):
            raise BenchmarkFailed("the refresh was through: its rows are asked for more slowly than they are done")
        return sum(self._log.committed(ARGUS_GROUP, NOTIFICATIONS[LaneName.LOW]).values())

    def _check(self) -> None:
        if self._failure:
            raise BenchmarkFailed(f"the refresh ended: {self._failure[0]}") from self._failure[0]

    def _work(self) -> None:
        pace = Pace(max_waiting=_QUEUED, check=self._go_on)
        try:
            while True:
                request(self._service.repo, self._log, self._service.catalog, self._selection, pace=pace)
        except _Ended:
            return
        except (RepoError, MessagingError) as error:
            self._failure.append(error)

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise _Ended


class _Ended(Exception):
    """The refresh was told to end."""


@contextmanager
def _refreshing(service: Service, ads: Sequence[str]) -> Iterator[_Refresh]:
    refresh = _Refresh(service, ads)
    refresh.begin()
    yield refresh
    refresh.end()


def _median(turns: Sequence[Histogram], q: float) -> float:
    return statistics.median([float(turn.quantile(q) or 0.0) for turn in turns]) / 1_000
