"""Worker processes of the consistency tests: forked from one that has imported everything, watched, and killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repo_backends import ROOT, Backend


class Nursery:
    """The process that forks workers (`repo_worker.py`): an import takes a second, a fork some milliseconds."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("repo_worker.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self._changed = threading.Condition()
        self._begun: list[int] = []
        self._codes: dict[int, int] = {}
        threading.Thread(target=self._read, daemon=True).start()

    def start(self, arguments: dict[str, Any], pipe: Path) -> int:
        """Fork a worker that writes its lines into a named pipe; return its process id."""
        assert self._process.stdin is not None
        with self._changed:
            begun = len(self._begun)
            self._process.stdin.write(json.dumps({**arguments, "pipe": str(pipe)}) + "\n")
            self._process.stdin.flush()
            assert self._changed.wait_for(lambda: len(self._begun) > begun, 60), "no worker was forked within 60 s"
            return self._begun[-1]

    def code(self, pid: int, timeout_s: float = 0.0) -> int | None:
        """Return the exit code of a worker, negative for a signal; None if it has not ended within a time."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._codes, timeout_s)
            return self._codes.get(pid)

    def close(self) -> None:
        """End it; workers that still run go on."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._changed:
                if "code" in event:
                    self._codes[event["pid"]] = event["code"]
                else:
                    self._begun.append(event["pid"])
                self._changed.notify_all()


@dataclass
class Worker:
    """A worker process and the lines it has written."""

    nursery: Nursery
    pid: int
    lines: list[Any] = field(default_factory=list)
    reader: threading.Thread | None = None
    silent: bool = False
    """It has closed its pipe: it has ended, or is about to."""

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        if self.nursery.code(self.pid) is None:
            os.kill(self.pid, signal.SIGKILL)

    def finish(self, stall_s: float = 60) -> int:
        """Wait for the end; return the exit code. Fails when the worker neither ends nor writes a line for so long."""
        seen = -1
        while (code := self.nursery.code(self.pid, stall_s)) is None:
            assert len(self.lines) > seen, f"the worker has hung for {stall_s} s after {seen} lines"
            seen = len(self.lines)
        assert self.reader is not None
        self.reader.join(stall_s)
        return code


class Fleet:
    """Worker processes of one test: started, killed by a seeded schedule, and gone at the end."""

    def __init__(self, backend: Backend, nursery: Nursery, seed: int) -> None:
        self.backend, self.nursery = backend, nursery
        self.rng = random.Random(seed)
        self.workers: list[Worker] = []
        self._progress = threading.Condition()

    def start(self, mode: str, **parameters: Any) -> Worker:
        """Start a worker in a mode of `repo_worker.py`."""
        arguments = {
            "backend": self.backend.name,
            "root": str(self.backend.root),
            "mode": mode,
            "worker": len(self.workers),
            "seed": self.rng.randrange(1 << 30),
            **parameters,
        }
        pipe = self.backend.root / f"worker-{len(self.workers)}"
        os.mkfifo(pipe)
        worker = Worker(self.nursery, self.nursery.start(arguments, pipe))
        worker.reader = threading.Thread(target=self._read, args=(worker, pipe), daemon=True)
        worker.reader.start()
        self.workers.append(worker)
        return worker

    def _read(self, worker: Worker, pipe: Path) -> None:
        with pipe.open() as lines:
            for line in lines:
                if line.endswith("\n"):  # a killed process may leave half a line
                    with self._progress:
                        worker.lines.append(json.loads(line))
                        self._progress.notify_all()
        with self._progress:
            worker.silent = True
            self._progress.notify_all()

    def wait_lines(self, worker: Worker, count: int, timeout_s: float = 120) -> None:
        """Block until a worker has written so many lines or has ended."""
        with self._progress:
            ok = self._progress.wait_for(lambda: len(worker.lines) >= count or worker.silent, timeout_s)
        assert ok, f"worker wrote {len(worker.lines)} of {count} lines in {timeout_s} s"

    def run_with_kills(
        self, mode: str, workers: int, kills: int, lines: tuple[int, int], count: int, **parameters: Any
    ) -> None:
        """Run workers to their end, killing and replacing one after a random number of its lines, `kills` times.

        `count` is of rounds in each.
        """
        parameters["count"] = count
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
            worker.kill()
            worker.finish()
