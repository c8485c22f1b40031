"""The real service under measurement: every stage as its own process, supervised, on a home of its own."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from batch_workflows.sample import generate_sample
from benchmarks._exceptions import BenchmarkFailed
from benchmarks._updates import Commit, Update, write_plan
from catalog import Catalog, load_catalog
from catalog.model import DOCUMENT_BODY
from cli.backends import close_backends, open_backends
from cli.idle import IdleWatch, outstanding
from cli.runtime import ROOT
from cli.supervisor import Supervisor, plan
from manas import ManasClient, ManasError
from messaging import Log
from messaging.home import Home
from messaging.metrics import Histogram, read_metrics
from storage_repo import Repo

SEED = 7
STAGES = ("gateway", "updater", "wal_proxy", "argus", "manas")
_LOOK_S = 0.02
_FLUSH_S = 1.2
"""Stages write their metrics twice a second, if they look up from waiting, which they do twice a second too."""
_HOPS = "latency:high:"
_WALL = {"gateway": ("read_us", "materialize_us", "publish_us"), "updater": ("batch_us",), "wal_proxy": ("batch_us",)}
_WALL |= {"argus": ("batch_us",)}
"""Histograms whose totals are the time that a stage works on batches; Manas keeps none."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What the stages have used since they started; subtract two of them."""

    cpu_s: dict[str, float]
    wall_us: dict[str, float]
    documents_changed: int
    hops: dict[str, Histogram]
    """Latency of high control updates by hop, in microseconds, as the messages carry it."""

    def since(self, before: Usage) -> Usage:
        """Return the difference."""
        return Usage(
            {stage: self.cpu_s[stage] - before.cpu_s[stage] for stage in self.cpu_s},
            {stage: self.wall_us[stage] - before.wall_us[stage] for stage in self.wall_us},
            self.documents_changed - before.documents_changed,
            difference(self.hops, before.hops),
        )


@dataclass(frozen=True, slots=True)
class Load:
    """A bulk load or storm: from its first commit until nothing was outstanding."""

    documents: int
    """Joined and judged, also those that may not serve at present."""
    seconds: float
    used: Usage

    @property
    def rate(self) -> float:
        """Documents per second."""
        return self.documents / self.seconds

    @property
    def rate_per_core(self) -> float:
        """Documents per second of processor time of all stages."""
        return self.documents / sum(self.used.cpu_s.values())


class Service:
    """All stages but the debug UI, which is not on the path; use as a context manager from the main thread."""

    def __init__(self, directory: Path) -> None:
        """Use a new home below `directory`, which must be on the disk that is to be measured."""
        self.home = Home.open(directory / "home")
        self.catalog: Catalog = load_catalog()
        self._supervisor = Supervisor(self.home, [m for m in plan(1) if m.stage in STAGES])
        self._backends = open_backends(self.home, self.catalog, server_only=True)

    def __enter__(self) -> Self:
        self._supervisor.__enter__()
        try:
            self._supervisor.start()
            self._supervisor.wait_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.__exit__(kind, error, trace)
        close_backends(self._backends)

    @property
    def repo(self) -> Repo:
        """The Storage Repo that the stages work on."""
        return self._backends.repo

    @property
    def log(self) -> Log:
        """Their log."""
        return self._backends.log

    def load_sample(self, ads: int) -> Load:
        """Commit a generated sample in one transaction and wait until all of it is served."""
        before = self.usage(settled=True)
        committed: list[float] = []
        watching = threading.Event()

        def watch() -> None:
            while not watching.wait(0.005):
                if self._backends.ads_db.last_change():
                    committed.append(time.monotonic())
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            home = self.home
            generate_sample(self._backends.ads_db, home.performance_db, self._backends.log, ads, SEED)
            self.until_idle()
        finally:
            watching.set()
            watcher.join()
        if not committed:
            raise BenchmarkFailed(f"the sample of {ads} ads was never seen in the ads DB {home.ads_db}")
        seconds = time.monotonic() - committed[0]
        return Load(ads, seconds, self.usage().since(before))

    def storm(self, updates: Sequence[Update], per_transaction: int) -> Load:
        """Commit updates as fast as the ads DB takes them and wait until all of them are served."""
        before = self.usage(settled=True)
        commits = self.write(updates, per_transaction)
        self.until_idle()
        seconds = time.time() - commits[0].committed_us / 1e6
        used = self.usage().since(before)
        return Load(used.documents_changed, seconds, used)

    def write(self, updates: Sequence[Update], per_transaction: int = 1) -> list[Commit]:
        """Let the writer process commit a plan; return a commit per update."""
        with self.writing(updates, per_transaction) as result:
            pass
        return result

    @contextmanager
    def writing(self, updates: Sequence[Update], per_transaction: int = 1) -> Iterator[list[Commit]]:
        """Run the writer process beside the block; the list is full when the block is left. Raises BenchmarkFailed."""
        plan_file, out = self.home.root / "plan.json", self.home.root / "commits.json"
        write_plan(plan_file, updates, per_transaction)
        command = [sys.executable, "-m", "benchmarks._writer", *map(str, (self.home.ads_db, plan_file, out))]
        log = self.home.logs / "writer.log"
        commits: list[Commit] = []
        with log.open("ab") as errors, subprocess.Popen(command, cwd=ROOT, stdout=errors, stderr=errors) as process:
            try:
                yield commits
                code = process.wait()
            except BaseException:
                process.kill()
                raise
        if code:
            raise BenchmarkFailed(f"the writer ended with {code}: {log.read_text()[-500:]}")
        times = json.loads(out.read_text())
        commits += [Commit(*times[i // per_transaction]) for i in range(len(updates))]

    def until_idle(self, timeout_s: float = 900.0) -> None:
        """Wait until nothing is outstanding. Raises BenchmarkFailed when a stage dies or it takes too long."""
        watch, deadline = IdleWatch(), time.monotonic() + timeout_s
        while True:
            if died := self._supervisor.tend():
                raise BenchmarkFailed(f"{', '.join(died)} died; see {self.home.logs}")
            try:
                state = outstanding(self._backends, self._backends.serving.stats()["positions"], certain=True)
            except ManasError as error:
                raise BenchmarkFailed(f"serving is away: {error}") from error
            if watch.look(state):
                return
            if time.monotonic() > deadline:
                waiting = {place: count for place, count in state.waiting.items() if count}
                raise BenchmarkFailed(f"not idle after {timeout_s:.0f} s; waiting: {waiting}")
            time.sleep(_LOOK_S)

    def served(self) -> set[str]:
        """Return the ids of all documents that are served."""
        table = self.catalog.document_table
        return {row for row, _ in self._backends.repo.snapshot().scan(table, columns=[DOCUMENT_BODY])}

    def search(self, request: Mapping[str, Any], k: int = 10) -> Mapping[str, Any]:
        """Ask the Manas server."""
        return self._backends.serving.search(request, k)

    def execute(self, statement: str, parameters: tuple[Any, ...]) -> float:
        """Commit one statement as an application would; return when COMMIT had returned (time.monotonic)."""
        with closing(sqlite3.connect(self.home.ads_db, timeout=30.0, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute(statement, parameters)
            return time.monotonic()

    def follow(self) -> Follower:
        """Follow what becomes answerable from now on; use as a context manager."""
        return Follower(ManasClient(self._supervisor.port("manas-0"), self.catalog))

    def usage(self, *, settled: bool = False) -> Usage:
        """Return what the stages have used so far; unless `settled`, waits until they have written their metrics."""
        if not settled:
            time.sleep(_FLUSH_S)
        cpu: dict[str, float] = {}
        for managed in self._supervisor.processes:
            if managed.popen is None:
                raise BenchmarkFailed(f"{managed.name} is not running; see {self.home.logs}")
            times = psutil.Process(managed.popen.pid).cpu_times()
            cpu[managed.stage] = times.user + times.system
        wall: dict[str, float] = {}
        hops: dict[str, Histogram] = {}
        changed = 0
        for metrics in read_metrics(self.home.metrics):
            stage = metrics["process"].rpartition("-")[0]
            changed += metrics["counters"].get("documents_changed", 0)
            if stage in _WALL:
                wall[stage] = sum(metrics["histograms"].get(name, Histogram()).total for name in _WALL[stage])
            if stage == "manas":
                found = metrics["histograms"].items()
                hops = {name.removeprefix(_HOPS): h for name, h in found if name.startswith(_HOPS)}
        return Usage({s: cpu[s] for s in STAGES}, {s: wall.get(s, 0.0) for s in _WALL}, changed, hops)


class Follower:
    """Collects what becomes answerable, in a thread: document -> (origin, answerable) times in microseconds."""

    def __init__(self, client: ManasClient) -> None:
        self.applied: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._client = client
        self._failure: ManasError | None = None
        self._thread = threading.Thread(target=self._collect, args=(client.follow(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()
        self._thread.join(10)
        if self._failure is not None and error is None:
            raise BenchmarkFailed(f"following Manas broke off: {self._failure}") from self._failure

    def _collect(self, stream: Iterator[Any]) -> None:
        try:
            for document in stream:
                self.applied[document.document_id].append((document.origin_us, document.answerable_us))
        except ManasError as error:
            self._failure = error


def difference(after: Mapping[str, Histogram], before: Mapping[str, Histogram]) -> dict[str, Histogram]:
    """Return what was added to histograms in between."""
    result: dict[str, Histogram] = {}
    for name, late in after.items():
        early = before.get(name, Histogram())
        part = result[name] = Histogram()
        part.buckets = {b: n for b, c in late.buckets.items() if (n := c - early.buckets.get(b, 0))}
        part.count, part.total, part.maximum = late.count - early.count, late.total - early.total, late.maximum
    return result
