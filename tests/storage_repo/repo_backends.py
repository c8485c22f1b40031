"""What the contract tests need to know of a backend, and the worker processes that use it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest

from storage_repo import Limits, Origin, Repo, RepoSchema
from storage_repo.embedded import Clock, EmbeddedRepo

ROOT = Path(__file__).resolve().parents[2]
TABLES = (("ad", ("control", "derived")), ("campaign", ("control",)))
ORIGIN = Origin("test", "handler", "v1", "trace-1", 2, 1_700_000_000_000_000, b"hops")


@dataclass
class FakeClock:
    """Clocks that move when told to."""

    wall: int = 1_700_000_000_000_000
    steady: int = 10_000_000_000
    boot: bytes = b"boot-1"

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


BACKENDS: dict[str, type[EmbeddedBackend]] = {"embedded": EmbeddedBackend}


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

    def run_with_kills(self, mode: str, workers: int, kills: int, lines: tuple[int, int], **parameters: Any) -> None:
        """Run workers to their end, killing and replacing one after a random number of its lines, `kills` times."""
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
