"""A process that tails the binlog: held while rows are written, let go, and measured until it has dealt with them."""

from __future__ import annotations

import ctypes
import json
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from benchmarks._exceptions import BenchmarkFailed

_STOP_S = 20.0
_QUOTED = 1_500
"""Characters of a tail's log that an error quotes."""


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """Let Linux kill this process when the benchmark is killed: a held one would stay for ever."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@dataclass(frozen=True, slots=True)
class Pass:
    """One round of rows as one tail took it."""

    rows: int
    seconds: float
    cpu_s: float
    """Of the process and its children, user and system."""

    @property
    def rate(self) -> float:
        """Rows per second."""
        return self.rows / self.seconds

    @property
    def cpu_s_per_100k(self) -> float:
        """Processor seconds per 100,000 rows."""
        return self.cpu_s * 100_000 / self.rows


class Tail:
    """A subprocess with one protocol for every tail; use as a context manager.

    A line with a number on its standard input asks to be told when that many more rows are dealt with; the answer is
    {"rows": ...} on standard output. The end of its standard input ends it.
    """

    def __init__(self, name: str, command: Sequence[str], log_file: Path, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._log_file = log_file
        with log_file.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=env and dict(env),
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - the benchmark has one thread
            )
        self._tree = psutil.Process(self._process.pid)
        assert self._process.stdout is not None
        self._answers = selectors.DefaultSelector()
        self._answers.register(self._process.stdout, selectors.EVENT_READ)

    def cpu_s(self) -> float:
        """Return the processor seconds of the process and its children since it started."""
        total = 0.0
        for process in [self._tree, *self._tree.children(recursive=True)]:
            times = process.cpu_times()
            total += times.user + times.system
        return total

    def rss_mib(self) -> float:
        """Return the resident memory of the process and its children."""
        tree = [self._tree, *self._tree.children(recursive=True)]
        return sum(process.memory_info().rss for process in tree) / (1 << 20)

    def check(self) -> None:
        """Raise BenchmarkFailed with the end of its log if the process has ended."""
        if (code := self._process.poll()) is not None:
            raise BenchmarkFailed(f"{self.name} ended with {code}: {self.log_end()}")

    def log_end(self) -> str:
        """Return the end of what the process wrote to standard error."""
        return self._log_file.read_text(errors="replace")[-_QUOTED:]

    def wait_for_log(self, text: str, timeout_s: float) -> None:
        """Wait until the process has written a text to standard error. Raises BenchmarkFailed."""
        deadline = time.monotonic() + timeout_s
        while text not in self._log_file.read_text(errors="replace"):
            self.check()
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{self.name} has not logged {text!r} in {timeout_s:.0f} s: {self.log_end()}")
            time.sleep(0.05)

    def hold(self) -> None:
        """Stop the process (SIGSTOP): rows written meanwhile wait for it in the binlog."""
        self._signal(signal.SIGSTOP)

    def take(self, rows: int, timeout_s: float) -> Pass:
        """Let the process go and wait until it has dealt with `rows` more; hold it again. Raises BenchmarkFailed."""
        self.check()
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % rows)
        self._process.stdin.flush()
        cpu_before, started = self.cpu_s(), time.perf_counter()
        self._signal(signal.SIGCONT)
        answer = self._answer(started + timeout_s)
        seconds, cpu_s = time.perf_counter() - started, self.cpu_s() - cpu_before
        self.hold()
        if answer["rows"] != rows:
            raise BenchmarkFailed(f"{self.name} dealt with {answer['rows']:,} rows, but {rows:,} were written")
        return Pass(rows, seconds, cpu_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._answers.close()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _answer(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        while not self._answers.select(timeout=1.0):
            self.check()
            if time.perf_counter() > deadline:
                raise BenchmarkFailed(f"{self.name} did not deal with all rows in time: {self.log_end()}")
        line = self._process.stdout.readline()
        if not line:
            self._process.wait(_STOP_S)
            self.check()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _signal(self, number: signal.Signals) -> None:
        for process in [self._tree, *self._tree.children(recursive=True)]:
            process.send_signal(number)
