"""`bench workflows`: each batch workflow once, by its command, on one generated home: rows, seconds, rate, peak memory.

Nothing differs and little is to be collected in that home, so this is what the workflows cost at size, every day.
Memory is what the processes of a run have of their own, sampled; pages of the Repo's file, which the kernel takes back
at will, do not count. `ADSINDEX_BENCH_ADS=N` says how large the home is, `ADSINDEX_BENCH_HOME=DIRECTORY` keeps it there
and uses it again, `ADSINDEX_BENCH_WORKFLOWS=a,b` runs these lines only.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from batch_workflows.base_index import open_embedded_repo
from benchmarks._base_repo import fill
from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report, machine_of
from catalog import load_catalog
from catalog.model import DOCUMENT_BODY
from cli.runtime import ROOT
from cli.supervisor import Supervisor, plan
from messaging import open_embedded_log
from messaging.home import Home

SEED = 7
_LOOK_S = 0.1
_MB = 1e6
_progress = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Line:
    """One workflow with its parameters, and where among its counts the rows are that it worked on."""

    name: str
    workflow: str
    settings: Callable[[Home], dict[str, Any]]
    rows: Callable[[dict[str, Any]], float]
    empty_home: bool = False
    """It wants a new home beside the generated one."""
    needs: tuple[str, ...] = ()
    """Stages that must run meanwhile."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run came to."""

    rows: float
    seconds: float
    cpu_s: float
    memory_mb: float


def run(quick: bool, ads: int = 0) -> dict[str, Any]:
    """Run the benchmark. Raises BenchmarkFailed when a workflow does not succeed."""
    wanted = ads or int(os.environ.get("ADSINDEX_BENCH_ADS", "300" if quick else "100000"))
    only = os.environ.get("ADSINDEX_BENCH_WORKFLOWS", "")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as directory:
        machine = machine_of(Path(directory))
        home = Home.open(Path(os.environ.get("ADSINDEX_BENCH_HOME", "") or directory) / str(wanted))
        documents = _generate(home, wanted)
        _progress.print(f"{wanted:,} ads, {documents:,} servable documents", highlight=False)
        for line in (line for line in LINES if not only or line.workflow in only.split(",")):
            _add(report, wanted, line, _run(line, home))
    report.note(f"{wanted:,} ads, seed {SEED}: {documents:,} servable documents; rows are those that a workflow read")
    report.note("each line is one run of `./adsindex workflow run`, its start (a second) included")
    report.note("MB: most that the processes of the run had of their own at one time, pages of files left out")
    return report.to_json("workflows", machine)


def _generate(home: Home, ads: int) -> int:
    """Fill the home and return how many documents are servable."""
    catalog = load_catalog()
    with (
        closing(open_embedded_log(home.log, home.wake)) as log,
        closing(open_embedded_repo(home, catalog)) as repo,
    ):
        fill(home, catalog, repo, log, ads, SEED)
        return sum(1 for _ in repo.snapshot().scan(catalog.document_table, columns=[DOCUMENT_BODY]))


def _run(line: Line, home: Home) -> Ran:
    target = home
    if line.empty_home:
        shutil.rmtree(home.root.with_name(f"{home.root.name}-empty"), ignore_errors=True)
        target = Home.open(home.root.with_name(f"{home.root.name}-empty"))
    settings = [f"--set={name}={json.dumps(value)}" for name, value in line.settings(home).items()]
    command = [sys.executable, "-m", "cli.main", "workflow", "run", line.workflow, "--json", "--home", str(target.root)]
    with _stages(target, line.needs), tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen([*command, *settings], cwd=ROOT, stdout=said, stderr=errors)
        memory, cpu = _watch(process)
        seconds = time.perf_counter() - started
        said.seek(0)
        errors.seek(0)
        if process.returncode:
            raise BenchmarkFailed(f"{line.name} ended with {process.returncode}: {errors.read()[-800:].decode()}")
        record = json.loads(said.read().splitlines()[-1])
    return Ran(float(line.rows(record)), seconds, cpu, memory)


def _watch(process: subprocess.Popen[bytes]) -> tuple[float, float]:
    """Wait for a process; return the most memory of it and its children in MB, and their CPU seconds."""
    parent, most = psutil.Process(process.pid), 0.0
    used: dict[int, float] = {}
    while process.poll() is None:
        now = 0.0
        try:
            for one in [parent, *parent.children(recursive=True)]:
                now += _own_bytes(one.pid)
                times = one.cpu_times()
                used[one.pid] = times.user + times.system
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            pass  # it has just ended, and is not counted at this look
        most = max(most, now)
        time.sleep(_LOOK_S)
    return most / _MB, sum(used.values())


def _own_bytes(pid: int) -> float:
    """Return a process's anonymous memory: what it has taken itself, without mapped files."""
    for row in Path(f"/proc/{pid}/status").read_text().splitlines():
        if row.startswith("RssAnon:"):
            return float(row.split()[1]) * 1024
    return 0.0


@contextmanager
def _stages(home: Home, wanted: Sequence[str]) -> Iterator[None]:
    if not wanted:
        yield
        return
    with Supervisor(home, [member for member in plan(1) if member.stage in wanted]) as supervisor:
        supervisor.start()
        supervisor.wait_ready()
        yield


def _snapshots(home: Home) -> str:
    return str(home.root / "snapshots")


def _backfill(home: Home) -> dict[str, Any]:
    """Write a Parquet file with a new value for every ad that has a history, and return what sends it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = home.root / "backfill.parquet"
    with closing(sqlite3.connect(home.performance_db)) as performance:
        ads = [ad for (ad,) in performance.execute("SELECT ad_id FROM performance ORDER BY ad_id")]
    pq.write_table(pa.table({"id": ads, "performance_version": [time.time_ns() // 1_000] * len(ads)}), file)
    return {"file": str(file), "table": "ad", "signal": "performance", "rate": 0}


def _add(report: Report, ads: int, line: Line, ran: Ran) -> None:
    case = f"{ads:,} ads, {line.name}"
    report.add(case, "rows", ran.rows)
    report.add(case, "seconds", ran.seconds)
    report.add(case, "rows/s", ran.rows / ran.seconds, more_is_better=True)
    report.add(case, "CPU seconds", ran.cpu_s)
    report.add(case, "MB", ran.memory_mb)
    _progress.print(
        f"{line.name}: {ran.rows:,.0f} rows, {ran.seconds:.1f} s, {ran.rows / ran.seconds:,.0f} rows/s, "
        f"{ran.cpu_s:.1f} s of CPU, {ran.memory_mb:.0f} MB",
        highlight=False,
    )


LINES = (
    Line("base-index", "base-index", lambda _: {}, lambda c: c["rows"]),
    Line("sync", "sync", lambda _: {"repair": False}, lambda c: c["rows"]),
    Line("refresh", "refresh", lambda _: {"max_waiting": 1 << 40}, lambda c: c["rows"]),
    Line("snapshot to Parquet", "snapshot", lambda home: {"to": _snapshots(home)}, lambda c: c["rows"]),
    Line("import of it", "snapshot-import", lambda home: {"source": _snapshots(home)}, lambda c: c["rows"], True),
    Line("backfill from Parquet", "backfill", _backfill, lambda c: c["rows"], needs=("updater",)),
    Line("gc, dry run", "gc", lambda _: {"older_than": "8d"}, lambda c: c["looked_at"]),
    Line("gc", "gc", lambda _: {"older_than": "8d", "dry_run": False}, lambda c: c["looked_at"]),
)
"""In this order: what changes the home comes last."""
