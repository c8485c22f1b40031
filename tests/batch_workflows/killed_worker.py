"""Runs workflows on a home, each in a process that kills itself -9 at its n-th moment: `killed_worker HOME`.

A line of standard input asks for a run: {"workflow", "parameters", "resume", "kill_at", "later_s"}; kill_at 0 lets it
end. A moment is a look whether to go on, after a checkpoint, a step of the commit on HBase (flushed, decided, shadow
cells written, …), and before and after a commit of the embedded Repo. Each run is forked from this process, which has
imported all and opened nothing. The answer is one line: what became of it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import structlog

import cli.backends
from batch_workflows import backfill, gc, leases, parquet_import, parquet_snapshot, refresh, runner
from batch_workflows._runs_model import RunRequest
from batch_workflows.execution import execute
from cli.backends import close_backends, open_backends
from cli.errors import known_errors
from cli.runtime import hbase_schema, open_catalog, open_repo
from cli.settings import EMBEDDED, Settings
from messaging.headers import now_us
from messaging.home import Home
from storage_repo import Repo
from storage_repo.embedded import EmbeddedRepo
from storage_repo.hbase import HbaseRepo


class Moments:
    """Counts moments, and ends the process at one of them as kill -9 does."""

    def __init__(self, kill_at: int) -> None:
        self._kill_at, self._lock, self.count = kill_at, threading.Lock(), 0

    def one(self, _: str = "") -> None:
        """A moment has come."""
        with self._lock:
            self.count += 1
            if self.count == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Fork a run per line."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    print("ready", flush=True)
    for line in sys.stdin:
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            os.write(writer, json.dumps(run(Home.open(Path(sys.argv[1])), **json.loads(line))).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            said = answer.read()
        _, status = os.waitpid(pid, 0)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        print(said or json.dumps({"killed": killed}), flush=True)


def run(
    home: Home, workflow: str, parameters: dict[str, Any], resume: bool, kill_at: int, later_s: float
) -> dict[str, Any]:
    """Run a workflow by small units, `later_s` seconds from now by the garbage collector's clock."""
    moments = Moments(kill_at)
    watch(moments)
    backfill.BATCH, gc._CHUNK, refresh._BATCH = 20, 40, 25
    parquet_snapshot.PART_ROWS, parquet_snapshot.GROUP_ROWS = 60, 20
    parquet_import.BATCH_ROWS, parquet_import.TASK_ROWS, parquet_import.CHECKPOINT_S = 60, 60, 0.0
    gc.now_us = lambda: now_us() + round(later_s * 1e6)  # type: ignore[attr-defined]
    opened = open_backends(home, open_catalog(home))
    try:
        record = execute(
            opened, RunRequest(workflow=workflow, parameters=parameters, who="test", resume=0 if resume else None)
        )
    except known_errors() as error:
        return {"killed": False, "error": f"{type(error).__name__}: {error}", "moments": moments.count}
    finally:
        close_backends(opened)
    return {"killed": False, "record": record.to_json(), "moments": moments.count}


def watch(moments: Moments) -> None:
    """Have every moment of this process counted."""
    check, checkpoint, commit = runner.RunContext.check, leases.Lease.checkpoint, EmbeddedRepo.commit_many

    def checked(self: Any) -> None:
        check(self)
        moments.one()

    def stored(self: Any, state: Any) -> None:
        checkpoint(self, state)
        moments.one()

    def committed(self: Any, transactions: Any) -> Any:
        moments.one()
        outcomes = commit(self, transactions)
        moments.one()
        return outcomes

    def opened(home: Home, catalog: Any) -> Repo:
        url = Settings.load(home).repo
        if url == EMBEDDED:
            return open_repo(home, catalog)
        return HbaseRepo.open(url, hbase_schema(catalog), faults=moments.one)

    runner.RunContext.check = checked  # type: ignore[method-assign]
    leases.Lease.checkpoint = stored  # type: ignore[method-assign]
    EmbeddedRepo.commit_many = committed  # type: ignore[method-assign]
    cli.backends.open_repo = opened  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
