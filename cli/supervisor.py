"""Start every stage as a process of its own, start those that die again, and stop all of them."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Self

import psutil
import structlog

from cli.runtime import ROOT, CommandError, ProcessFile, RunCatalog, process_file
from messaging.home import Home

READY_SECONDS = 180.0
"""Starting takes one or two seconds; a machine under load may take much longer, and giving up early helps nobody."""
STOP_SECONDS = 8.0
BACKOFF_SECONDS = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Waits before the first, second, ... restart in a row: at once after an accident, slowly when it is the rule."""
STABLE_SECONDS = 20.0
"""A process that lived this long is forgiven its earlier restarts."""


@dataclass(slots=True)
class Managed:
    """One process under supervision."""

    stage: str
    worker: int
    settings: tuple[str, ...] = ()
    popen: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    in_a_row: int = 0
    started: float = 0.0
    due: float = 0.0

    @property
    def name(self) -> str:
        """Process name, for example "argus-1"."""
        return f"{self.stage}-{self.worker}"


@dataclass(slots=True)
class Supervisor:
    """Supervises the stage processes of one home; at most one supervisor per home (a file lock)."""

    home: Home
    processes: list[Managed]
    catalog: RunCatalog | None = None
    """What all processes are started with; without one each loads the home's."""
    _lock: IO[str] | None = field(default=None, repr=False)

    def __enter__(self) -> Self:
        self._lock = (self.home.run / "up.lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            running = process_file(self.home, "up").read()
            raise CommandError(
                f"the service is already up on {self.home.root}" + (f" (pid {running['pid']})" if running else "")
            ) from None
        self.announce()
        for managed in self.processes:
            process_file(self.home, managed.name).path.unlink(missing_ok=True)
        for left in self.home.run.glob("*-*.json"):  # of an earlier run that had more workers or shards, and was killed
            if ProcessFile(left).read() is None:
                left.unlink(missing_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        process_file(self.home, "up").path.unlink(missing_ok=True)
        if self._lock is not None:
            self._lock.close()

    def announce(self, ui_port: int = 0) -> None:
        """Tell other processes that the home is in use, where its page is, and with which catalogue it runs."""
        born = psutil.Process().create_time()
        values: dict[str, object] = {"pid": os.getpid(), "born": born, "started_at": born, "ui_port": ui_port}
        if self.catalog is not None:
            values |= {"catalog": str(self.catalog.copy), "catalog_source": str(self.catalog.source)}
        process_file(self.home, "up").write(**values)

    def add(self, stage: str) -> None:
        """Supervise one more process, worker 0 of a stage; before `start`."""
        self.processes.append(Managed(stage, 0))
        process_file(self.home, self.processes[-1].name).path.unlink(missing_ok=True)

    def start(self) -> None:
        """Start all processes; does not wait until they are ready."""
        for managed in self.processes:
            self._spawn(managed)

    def wait_ready(self, timeout_s: float = READY_SECONDS) -> None:
        """Wait until every process has said that it works. Raises CommandError naming those that have not."""
        deadline = time.monotonic() + timeout_s
        while missing := [m.name for m in self.processes if not self._is_ready(m)]:
            if time.monotonic() > deadline:
                raise CommandError(
                    f"not ready after {timeout_s:.0f} s: {', '.join(missing)}; see {self.home.logs}/<name>.log"
                )
            self.tend()
            time.sleep(0.02)

    def _is_ready(self, managed: Managed) -> bool:
        values = process_file(self.home, managed.name).read()
        return bool(values and values["state"] == "ready")

    def port(self, name: str) -> int:
        """Return the port of a ready process, 0 if it has none."""
        values = process_file(self.home, name).read()
        return int(values["port"]) if values else 0

    def keep_port(self, stage: str, port: int) -> None:
        """Start the stage on the same port again when it dies: people have its address."""
        for managed in self.processes:
            if managed.stage == stage:
                managed.settings = (f"port={port}",)

    def tend(self) -> list[str]:
        """Start again what has died; call it often. Returns the names of processes found dead."""
        died = []
        now = time.monotonic()
        for managed in self.processes:
            if managed.popen is not None and managed.popen.poll() is not None:
                code = managed.popen.returncode
                died.append(managed.name)
                managed.in_a_row = 0 if now - managed.started > STABLE_SECONDS else managed.in_a_row + 1
                wait = BACKOFF_SECONDS[min(managed.in_a_row, len(BACKOFF_SECONDS) - 1)]
                managed.due = now + wait
                managed.popen = None
                managed.restarts += 1
                structlog.get_logger().warning(
                    "stage_died", process=managed.name, exit_code=code, restarts=managed.restarts, again_in_s=wait
                )
            if managed.popen is None and now >= managed.due:
                self._spawn(managed)
        return died

    def _spawn(self, managed: Managed) -> None:
        command = [
            sys.executable, "-m", "cli.worker", managed.stage,
            "--home", str(self.home.root), "--worker", str(managed.worker), "--restarts", str(managed.restarts),
        ]  # fmt: skip
        if self.catalog is not None:
            command += ["--catalog", str(self.catalog.copy), str(self.catalog.source)]
        for setting in managed.settings:
            command += ["--set", setting]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with (self.home.logs / f"{managed.name}.log").open("ab") as out:
            managed.popen = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )
        managed.started = time.monotonic()

    def stop(self) -> None:
        """Ask all processes to end, downstream last, and kill those that do not within STOP_SECONDS."""
        running = [m for m in self.processes if m.popen is not None and m.popen.poll() is None]
        for managed in running:
            if managed.popen is not None:
                managed.popen.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for managed in running:
            if managed.popen is None:
                continue
            try:
                managed.popen.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                structlog.get_logger().warning("stage_killed", process=managed.name, after_s=STOP_SECONDS)
                managed.popen.kill()
                managed.popen.wait()
        for managed in self.processes:
            managed.popen = None


def plan(
    argus_workers: int,
    settings: Sequence[tuple[str, str]] = (),
    *,
    manas_processes: int = 1,
    shards: int = 1,
    wal_proxies: int = 1,
) -> list[Managed]:
    """Return the processes of the embedded set. `settings` are (stage, "key=value") pairs.

    More than one Manas process need settings that have them share a port. With `shards` there is one for each, and a
    broker in front of them. Raises CommandError for both.
    """
    if shards > 1 and manas_processes > 1:
        raise CommandError("a shard has one process: give either --shards or --manas-processes")

    def of(stage: str, worker: int = 0, *more: str) -> Managed:
        return Managed(stage, worker, (*(value for name, value in settings if name == stage), *more))

    if shards > 1:
        serving = [of("manas", number, f"shard={number}/{shards}") for number in range(shards)]
        serving.append(of("broker", 0, f"shards={shards}"))
    else:
        serving = [of("manas", worker) for worker in range(manas_processes)]
    return [
        *serving,
        of("debug_ui"),
        *(of("argus", worker) for worker in range(argus_workers)),
        *(of("wal_proxy", worker) for worker in range(wal_proxies)),
        of("updater"),
        of("gateway"),
        of("workflows"),
    ]
