"""What the contract tests need to know of a backend."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
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

    def open(self, limits: Limits | None = None, clock: Clock | None = None, tables: Any = TABLES) -> Repo:
        """Open the installation's store once more."""


class EmbeddedBackend:
    """The embedded engine in a directory."""

    name = "embedded"

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self, limits: Limits | None = None, clock: Clock | None = None, tables: Any = TABLES) -> Repo:
        """Open the directory's store."""
        schema = RepoSchema.of(tables, limits)
        return EmbeddedRepo.open(self.root / "store", schema, wake_dir=self.root / "wake", clock=clock)


class HbaseBackend:
    """Tables of a running HBase; `root` has its URL in a file, for worker processes."""

    name = "hbase"
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


def data_directory(name: str) -> Path:
    """Return a folder of the test data; skip loudly where it is missing, except in CI."""
    base = Path(os.environ.get("ADSINDEX_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (base / name).is_dir():
        message = f"test data {name} is missing; set ADSINDEX_TEST_DATA to the folder that has it"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return base / name
