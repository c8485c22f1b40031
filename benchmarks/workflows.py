"""`bench workflows`: each batch workflow by its command, killed -9 in its middle, resumed, and its result checked.

A line's seconds are those of both attempts: a workflow that keeps checkpoints goes on, another begins anew. What it
came to must be whole, or the benchmark fails and says why.

Nothing differs and little is to be collected in that home, so this is what the workflows cost at size, every day. The
base takes the stored documents and the sync leaves the handlers out: what running them again over every row costs is
timed by `bench base-index` and `bench sync`, and would be most of the time here.
Memory is what the processes of a run have of their own, sampled; pages of the Repo's file, which the kernel takes back
at will, do not count. `ADSINDEX_BENCH_ADS=N` says how large the home is, `ADSINDEX_BENCH_HOME=DIRECTORY` keeps it there
and uses it again, `ADSINDEX_BENCH_WORKFLOWS=a,b` runs these lines only (a sync wants a base, an import a snapshot).
`control-updates` is a line of its own, on a running service: what they wait for with and without a refresh.
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
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from batch_workflows.base_index import open_embedded_repo
from batch_workflows.runner import find_workflow
from batch_workflows.runs import Outcome, RunStore
from benchmarks import _refresh_latency
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
CONTROL_UPDATES = "control-updates"
_LOOK_S = 0.1
_POLL_S = 0.02
"""A small run may take a few tenths of a second, and is to be killed inside; others are asked every `_ASK_S`."""
_ASK_S = 0.5
_BACKFILLED = 100_000
"""Rows sent to the Updater, whose rate does not depend on how many there are."""
_SMALL = 200_000
"""With fewer ads some runs are over before they give a second sign of life: they are killed when they have begun."""
_MB = 1e6
_progress = Console(stderr=True)


Counts = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """Of the generated home."""

    ads: int
    documents: int
    """Servable ones."""


@dataclass(frozen=True, slots=True)
class Line:
    """One workflow with its parameters, and where among its counts the rows are that it worked on."""

    name: str
    workflow: str
    settings: Callable[[Home], dict[str, Any]]
    rows: Callable[[Counts], float]
    whole: Callable[[Counts, Size], bool]
    """Whether the counts of the resumed run are those of one that nobody killed."""
    middle: float = 0.0
    """Rows per ad after which it is killed; 0: it is left alone."""
    empty_home: bool = False
    """It wants a new home beside the generated one."""
    needs: tuple[str, ...] = ()
    """Stages that must run meanwhile."""


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run came to, both attempts together."""

    rows: float
    seconds: float
    cpu_s: float
    memory_mb: float
    killed_at: int
    """Rows or documents that it had done by its last sign of life."""
    killed_s: float
    """Of the seconds, those until it was killed."""


def run(quick: bool, ads: int = 0) -> dict[str, Any]:
    """Run the benchmark. Raises BenchmarkFailed when a workflow does not succeed."""
    wanted = ads or int(os.environ.get("ADSINDEX_BENCH_ADS", "300" if quick else "100000"))
    only = os.environ.get("ADSINDEX_BENCH_WORKFLOWS", "")
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as directory:
        machine = machine_of(Path(directory))
        if only != CONTROL_UPDATES:
            home = Home.open(Path(os.environ.get("ADSINDEX_BENCH_HOME", "") or directory) / str(wanted))
            _measure(report, home, wanted, only)
    if not only or CONTROL_UPDATES in only.split(","):
        _refresh_latency.measure(report, _refresh_latency.QUICK if quick else _refresh_latency.FULL)
    return report.to_json("workflows", machine)


def _measure(report: Report, home: Home, wanted: int, only: str) -> None:
    """Run the lines on a generated home."""
    size = _generate(home, wanted)
    _progress.print(f"{wanted:,} ads, {size.documents:,} servable documents", highlight=False)
    for line in (line for line in LINES if not only or line.workflow in only.split(",")):
        _add(report, size, line, _run(line, home, size))
    report.note(
        f"{wanted:,} ads, seed {SEED}: {size.documents:,} servable documents; rows are those that a workflow read"
    )
    report.note(
        "each line is `./adsindex workflow run`, killed -9 in its middle, and again to its end: both are counted"
    )
    report.note("MB: most that the processes of the run had of their own at one time, pages of files left out")


def _generate(home: Home, ads: int) -> Size:
    """Fill the home and return how much is in it."""
    catalog = load_catalog()
    with (
        closing(open_embedded_log(home.log, home.wake)) as log,
        closing(open_embedded_repo(home, catalog)) as repo,
    ):
        fill(home, catalog, repo, log, ads, SEED)
        return Size(ads, sum(1 for _ in repo.snapshot().scan(catalog.document_table, columns=[DOCUMENT_BODY])))


def _run(line: Line, home: Home, size: Size) -> Ran:
    target = home
    if line.empty_home:
        shutil.rmtree(home.root.with_name(f"{home.root.name}-empty"), ignore_errors=True)
        target = Home.open(home.root.with_name(f"{home.root.name}-empty"))
    settings = [f"--set={name}={json.dumps(value)}" for name, value in line.settings(home).items()]
    command = [sys.executable, "-m", "cli.main", "workflow", "run", line.workflow, "--json", "--home", str(target.root)]
    killed, at = _Attempt(0.0, 0.0, 0.0, {}), 0
    with _stages(target, line.needs), closing(open_embedded_repo(target, load_catalog())) as repo:
        runs = RunStore(repo)
        if line.middle:
            every_s = _POLL_S if size.ads < _SMALL else _ASK_S
            killed = _attempt(line, [*command, *settings], partial(_is_in_middle, runs, line, size), every_s)
            if killed.counts and size.ads >= _SMALL:
                raise BenchmarkFailed(f"{line.name} ended before it could be killed: {str(killed.counts)[:800]}")
            last = runs.runs(line.workflow, 1)[0]
            at = last.progress.done if last.progress is not None else 0
            if find_workflow(line.workflow).resumable:
                settings = ["--resume"]
        if killed.counts:  # of a few hundred rows, before anybody could look
            done, killed = killed, _Attempt(0.0, 0.0, 0.0, {})
        else:
            done = _attempt(line, [*command, *settings], lambda: False, 3600.0)
        record = runs.runs(line.workflow, 1)[0]
    attempts = 2 if killed.seconds and find_workflow(line.workflow).resumable else 1
    if record.outcome is not Outcome.SUCCEEDED or len(record.attempts) != attempts or record.failures:
        raise BenchmarkFailed(f"{line.name}: {record.outcome.value} after {len(record.attempts)} attempts")
    if not line.whole(done.counts, size):
        raise BenchmarkFailed(f"{line.name} is not whole after a kill at {at:,}: {str(done.counts)[:800]}")
    if line.empty_home:
        shutil.rmtree(target.root)
    return Ran(
        float(line.rows(done.counts)), killed.seconds + done.seconds, killed.cpu_s + done.cpu_s,
        max(killed.memory_mb, done.memory_mb), at, killed.seconds,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One process."""

    seconds: float
    cpu_s: float
    memory_mb: float
    counts: Counts


def _attempt(line: Line, command: list[str], is_enough: Callable[[], bool], every_s: float) -> _Attempt:
    """Run a command to its end, or until it `is_enough`, asked every so often: then kill it -9."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as errors:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=errors)
        try:
            memory, cpu, killed = _watch(process, is_enough, every_s)
        finally:
            process.kill()
            process.wait()
        seconds = time.perf_counter() - started
        said.seek(0)
        errors.seek(0)
        if killed:
            return _Attempt(seconds, cpu, memory, {})
        if process.returncode:
            raise BenchmarkFailed(f"{line.name} ended with {process.returncode}: {errors.read()[-800:].decode()}")
        return _Attempt(seconds, cpu, memory, json.loads(said.read().splitlines()[-1]))


def _is_in_middle(runs: RunStore, line: Line, size: Size) -> bool:
    """Return whether the run that goes on has done enough; of a small one, whether it has begun."""
    last = next(iter(runs.runs(line.workflow, 1)), None)
    if last is None or last.outcome is not Outcome.RUNNING:
        return False
    return size.ads < _SMALL or (last.progress is not None and last.progress.done >= line.middle * size.ads)


def _watch(
    process: subprocess.Popen[bytes], is_enough: Callable[[], bool], every_s: float
) -> tuple[float, float, bool]:
    """Wait for a process, or kill it; return the most memory of it and its children in MB, their CPU seconds, and
    whether it was killed."""
    parent, most = psutil.Process(process.pid), 0.0
    used: dict[int, float] = {}
    killed, looked, asked = False, 0.0, 0.0
    while process.poll() is None:
        if time.monotonic() - looked > _LOOK_S:
            looked, now = time.monotonic(), 0.0
            try:
                for one in [parent, *parent.children(recursive=True)]:
                    now += _own_bytes(one.pid)
                    times = one.cpu_times()
                    used[one.pid] = times.user + times.system
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                pass  # it has just ended, and is not counted at this look
            most = max(most, now)
        if time.monotonic() - asked > every_s:
            asked = time.monotonic()
            if is_enough():
                process.kill()
                killed = process.wait() < 0
                break
        time.sleep(_POLL_S)
    return most / _MB, sum(used.values()), killed


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
    """Write a Parquet file with a new value for ads that have a history, and return what sends it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = home.root / "backfill.parquet"
    with closing(sqlite3.connect(home.performance_db)) as performance:
        ads = [
            ad for (ad,) in performance.execute("SELECT ad_id FROM performance ORDER BY ad_id LIMIT ?", [_BACKFILLED])
        ]
    pq.write_table(pa.table({"id": ads, "performance_version": [time.time_ns() // 1_000] * len(ads)}), file)
    return {"file": str(file), "table": "ad", "signal": "performance", "rate": 0}


def _add(report: Report, size: Size, line: Line, ran: Ran) -> None:
    case = f"{size.ads:,} ads, {line.name}"
    report.add(case, "rows", ran.rows)
    report.add(case, "seconds", ran.seconds)
    report.add(case, "rows/s", ran.rows / ran.seconds, more_is_better=True)
    if line.middle:
        report.add(case, "seconds until killed", ran.killed_s)
    report.add(case, "CPU seconds", ran.cpu_s)
    report.add(case, "MB", ran.memory_mb)
    killed = f", killed -9 after {ran.killed_s:.1f} s at {ran.killed_at:,}, whole" if line.middle else ""
    _progress.print(
        f"{line.name}: {ran.rows:,.0f} rows, {ran.seconds:.1f} s, {ran.rows / ran.seconds:,.0f} rows/s, "
        f"{ran.cpu_s:.1f} s of CPU, {ran.memory_mb:.0f} MB{killed}",
        highlight=False,
    )


def _rows(counts: Counts) -> float:
    return float(counts["rows"])


LINES = (
    Line(
        "base-index of stored documents", "base-index", lambda _: {"stored": True, "force": True, "keep": 1}, _rows,
        lambda c, size: c["documents"] == size.documents, middle=0.5,
    ),
    Line(
        "sync of ads DB, indexes and serving", "sync", lambda _: {"repair": False, "parts": "ads_db,index,served"},
        _rows, lambda c, _: c["unsynced"] == {}, middle=2.0,
    ),
    Line(
        "refresh", "refresh", lambda _: {"max_waiting": 1 << 40}, _rows,
        lambda c, size: c["by_table"]["ad"] == size.ads, middle=0.5,
    ),
    Line(
        "snapshot to Parquet", "snapshot", lambda home: {"to": _snapshots(home)}, _rows,
        lambda c, size: c["tables"]["ad"] == size.ads and c["tables"]["documents"] == size.documents, middle=2.0,
    ),
    Line(
        "import of it", "snapshot-import", lambda home: {"source": _snapshots(home)}, _rows,
        lambda c, size: bool(c["verified"]) and c["tables"]["ad"] == size.ads, middle=2.0, empty_home=True,
    ),
    Line(
        "backfill from Parquet", "backfill", _backfill, _rows, lambda c, _: "rejected" not in c, middle=0.02,
        needs=("updater",),
    ),
    Line(
        "gc", "gc", lambda _: {"older_than": "8d", "dry_run": False}, lambda c: float(c["looked_at"]),
        lambda c, _: c["changed_meanwhile"] == 0, middle=2.0,
    ),
    Line(
        "gc, dry run", "gc", lambda _: {"older_than": "8d"}, lambda c: float(c["looked_at"]),
        lambda c, _: c["rows"].keys() <= {"documents"},
    ),
)  # fmt: skip
"""In this order: what changes the home comes last; the dry run after it finds nothing that it could have taken."""
