"""What the contract tests need to know of a backend, and the worker processes that use it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from storage_repo import Limits, Origin, Repo, RepoSchema
from storage_repo.embedded import Clock, EmbeddedRepo
from storage_repo.hbase import HbaseAddress, HbaseRepo, apply_schema
from storage_repo.hbase._state import STATE_TABLE
from storage_repo.hbase.connections import HbaseConnections, HbaseRefused
from storage_repo.hbase.thrift2 import TDelete, TScan

ROOT = Path(__file__).resolve().parents[2]
TABLES = (("ad", ("control", "derived")), ("campaign", ("control",)))
ORIGIN = Origin("test", "handler", "v1", "trace-1", 2, 1_700_000_000_000_000, b"hops")


@dataclass
class FakeClock:
    """Clocks that move when told to."""

    wall: int = 1_700_000_000_000_000
    steady: int = 10_000_000_000
    boot: bytes = b"boot-1"
    timeline: FakeTimeline | None = None
    """Follows this clock, for engines whose time is the TSO's."""

    def wall_us(self) -> int:
        """Return the wall clock's time."""
        return self.wall

    def steady_us(self) -> int:
        """Return the steady clock's time."""
        return self.steady

    def boot_id(self) -> bytes:
        """Return the boot's id."""
        return self.boot

    def advance(self, seconds: float) -> None:
        """Let time go by on both clocks."""
        self.wall += round(seconds * 1e6)
        self.steady += round(seconds * 1e6)
        if self.timeline is not None:
            self.timeline.moved(self.steady)


class FakeTimeline:
    """Maps the TSO's timestamps, which have the real time in them, to a clock that moves when told to."""

    def __init__(self, steady: int) -> None:
        self._moves = [(0, steady)]  # (first timestamp, time from there on)

    def moved(self, steady: int) -> None:
        """Take note that the clock was moved: timestamps before this have another time than those after it."""
        self._next_millisecond()
        self._moves.append((time.time_ns(), steady))
        self._next_millisecond()

    def us(self, ts: int) -> int:
        """Return the time at which a timestamp was given out."""
        return next(steady for first, steady in reversed(self._moves) if first <= ts)

    def latest(self, us: int) -> int:
        """Return the largest timestamp given out before a time."""
        return next((first - 1 for first, steady in self._moves if steady >= us), time.time_ns())

    def _next_millisecond(self) -> None:
        """Wait until the TSO's clock, which counts milliseconds, has gone on."""
        until = (time.time_ns() // 1_000_000 + 2) * 1_000_000
        while time.time_ns() < until:
            time.sleep(0.0005)


class Backend(Protocol):
    """Opens repos on one installation; `name` lets a worker process find the same class."""

    name: str
    root: Path
    share: float
    """Of a long workload, what this backend is given: a round trip takes longer than a call in one's own process."""

    def open(self, limits: Limits | None = None, clock: Clock | None = None, tables: Any = TABLES) -> Repo:
        """Open the installation's store once more."""


class EmbeddedBackend:
    """The embedded engine in a directory."""

    name = "embedded"
    share = 1.0

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, limits: Limits | None = None, clock: Clock | None = None, tables: Any = TABLES) -> Repo:
        """Open the directory's store."""
        schema = RepoSchema.of(tables, limits)
        return EmbeddedRepo.open(self.root / "store", schema, wake_dir=self.root / "wake", clock=clock)


class HbaseBackend:
    """Tables of a running HBase; `root` has its URL in a file, for worker processes."""

    name = "hbase"
    share = 0.3
    _applied: ClassVar[set[tuple[str, Any]]] = set()

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def install(cls, root: Path, url: str) -> HbaseBackend:
        """Return the installation after emptying its tables: creating tables takes a second each."""
        (root / "url").write_text(f"{url}&prefix=contract.")
        backend = cls(root)
        connections = HbaseConnections(HbaseAddress.parse(backend.url))
        for table in (STATE_TABLE, "ad", "campaign", "aa", "zebra"):
            with contextlib.suppress(HbaseRefused):  # not there yet
                empty_table(connections, f"contract.{table}".encode())
        connections.close()
        return backend

    @property
    def url(self) -> str:
        """The repo's URL."""
        return (self.root / "url").read_text()

    def open(self, limits: Limits | None = None, clock: Clock | None = None, tables: Any = TABLES) -> HbaseRepo:
        """Open the tables' store, on the clock's time if there is one."""
        schema = RepoSchema.of(tables, limits)
        if (self.url, tables) not in self._applied:
            apply_schema(self.url, schema)
            self._applied.add((self.url, tables))
        timeline = None
        if isinstance(clock, FakeClock):
            timeline = clock.timeline = clock.timeline or FakeTimeline(clock.steady)
        return HbaseRepo.open(self.url, schema, timeline=timeline)


def empty_table(connections: HbaseConnections, table: bytes) -> None:
    """Delete all rows of a table as they are now."""
    while rows := connections.scan(table, TScan(startRow=b"", caching=1000, limit=1000, maxVersions=1), 1000):
        newest = [max(cell.timestamp for cell in row.columnValues) for row in rows]
        connections.delete(table, [TDelete(row=r.row, timestamp=ts) for r, ts in zip(rows, newest, strict=True)])


BACKENDS: dict[str, type[EmbeddedBackend] | type[HbaseBackend]] = {"embedded": EmbeddedBackend, "hbase": HbaseBackend}


def install(name: str, root: Path, request: pytest.FixtureRequest) -> Backend:
    """Return an empty installation of a backend in a directory of its own."""
    if name == "hbase":
        return HbaseBackend.install(root, request.getfixturevalue("hbase_server").url)
    return BACKENDS[name](root)


@dataclass
class Worker:
    """A worker process and the lines it has written."""

    process: subprocess.Popen[str]
    lines: list[Any] = field(default_factory=list)
    reader: threading.Thread | None = None

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()

    def finish(self, stall_s: float = 60) -> int:
        """Wait for the end; return the exit code. Fails when the worker neither ends nor writes a line for so long."""
        seen = -1
        while self.process.poll() is None:
            try:
                self.process.wait(stall_s)
            except subprocess.TimeoutExpired:
                assert len(self.lines) > seen, f"the worker has hung for {stall_s} s after {seen} lines"
                seen = len(self.lines)
        assert self.reader is not None
        self.reader.join(stall_s)
        return self.process.returncode


class Fleet:
    """Worker processes of one test: started, killed by a seeded schedule, and gone at the end."""

    def __init__(self, backend: Backend, seed: int) -> None:
        self.backend = backend
        self.rng = random.Random(seed)
        self.workers: list[Worker] = []
        self._progress = threading.Condition()

    def start(self, mode: str, **parameters: Any) -> Worker:
        """Start `repo_worker.py` in a mode."""
        arguments = {
            "backend": self.backend.name,
            "root": str(self.backend.root),
            "mode": mode,
            "worker": len(self.workers),
            "seed": self.rng.randrange(1 << 30),
            **parameters,
        }
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("repo_worker.py")), json.dumps(arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        worker = Worker(process)
        worker.reader = threading.Thread(target=self._read, args=(worker,), daemon=True)
        worker.reader.start()
        self.workers.append(worker)
        return worker

    def _read(self, worker: Worker) -> None:
        assert worker.process.stdout is not None
        for line in worker.process.stdout:
            if line.endswith("\n"):  # a killed process may leave half a line
                with self._progress:
                    worker.lines.append(json.loads(line))
                    self._progress.notify_all()
        with self._progress:
            self._progress.notify_all()

    def wait_lines(self, worker: Worker, count: int, timeout_s: float = 60) -> None:
        """Block until a worker has written so many lines or has ended."""
        with self._progress:
            ok = self._progress.wait_for(
                lambda: len(worker.lines) >= count or worker.process.poll() is not None, timeout_s
            )
        assert ok, f"worker wrote {len(worker.lines)} of {count} lines in {timeout_s} s"

    def run_with_kills(
        self, mode: str, workers: int, kills: int, lines: tuple[int, int], count: int, **parameters: Any
    ) -> None:
        """Run workers to their end, killing and replacing one after a random number of its lines, `kills` times.

        `count` is of rounds in each; it and the lines are for a backend that has a whole workload's share.
        """
        parameters["count"] = round(count * self.backend.share)
        lines = (round(lines[0] * self.backend.share), round(lines[1] * self.backend.share))
        running = [self.start(mode, **parameters) for _ in range(workers)]
        for _ in range(kills):
            at = self.rng.randrange(len(running))
            victim = running[at]
            self.wait_lines(victim, self.rng.randint(*lines))
            victim.kill()
            running[at] = self.start(mode, **parameters)
        for worker in running:
            assert worker.finish() == 0
        assert sum(worker.finish() == -9 for worker in self.workers) > 0, "no worker was killed while it worked"

    def close(self) -> None:
        """Kill what still runs."""
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.kill()
            worker.finish()


def data_directory(name: str) -> Path:
    """Return a folder of the test data; skip loudly where it is missing, except in CI."""
    base = Path(os.environ.get("ADSINDEX_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (base / name).is_dir():
        message = f"test data {name} is missing; set ADSINDEX_TEST_DATA to the folder that has it"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return base / name
