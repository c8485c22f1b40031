"""Log backends under the contract tests, and worker processes on them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from messaging import EmbeddedLog, Log
from messaging.kafka import open_kafka_log

WORKER = "tests.messaging.log_worker"
ROOT = Path(__file__).resolve().parents[2]


class Backend(Protocol):
    """One installation of a log."""

    def open(self) -> Log:
        """Open a handle."""

    def address(self) -> list[str]:
        """What a worker process needs to open the same log (see `open_address`)."""


@dataclass
class EmbeddedBackend:
    """The embedded log in a directory."""

    root: Path

    def open(self) -> Log:
        """Open a handle."""
        return EmbeddedLog(self.root / "log", self.root / "wake")

    def address(self) -> list[str]:
        """Return kind and place."""
        return ["embedded", str(self.root)]


@dataclass
class KafkaBackend:
    """A real broker, shared by tests: each has a prefix of its own."""

    url: str
    prefix: str

    def open(self) -> Log:
        """Open a handle."""
        return open_kafka_log(self.url, prefix=self.prefix)

    def address(self) -> list[str]:
        """Return kind and place."""
        return ["kafka", self.url, self.prefix]


def open_address(address: list[str]) -> Log:
    """Open the log of a backend by its address."""
    kind, *place = address
    if kind == "embedded":
        return EmbeddedBackend(Path(place[0])).open()
    if kind == "kafka":
        return KafkaBackend(*place).open()
    raise ValueError(f"no such backend: {kind}")


class Worker:
    """A process that runs one mode of log_worker. It says "ready" when it starts to work."""

    def __init__(self, backend: Backend, mode: str, **parameters: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", WORKER, mode, json.dumps({"address": backend.address(), **parameters})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self.expect("ready")

    def line(self) -> str:
        """Return the next line that the worker prints; '' when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def expect(self, line: str) -> None:
        """Fail unless the worker prints this line next."""
        got = self.line()
        if got != line:
            raise AssertionError(f"worker printed {got!r}, not {line!r}; exit code {self.process.poll()}")

    def kill(self) -> None:
        """kill -9, and wait until it is dead."""
        self.process.kill()
        self._reap()

    def finish(self) -> None:
        """Close its input, which ends it, and fail unless it exits with 0."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        if self.process.wait(timeout=30) != 0:
            raise AssertionError(f"worker failed with {self.process.returncode}")
        self._reap()

    def _reap(self) -> None:
        self.process.wait(timeout=30)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
