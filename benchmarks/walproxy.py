"""The WAL proxy: how long from a put in HBase to its notification in Kafka, and how fast a backlog is worked off.

HBase, its Thrift servers, Omid's TSO, Kafka, the proxy, the writers and the reader share one machine.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import structlog

from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report, machine_of
from benchmarks._walproxy_load import CELLS_EACH, COLUMNS_EACH, PEER_ID, Reader, Writers, catalog_of, schema_of
from compose import ServerMissing, Stack
from messaging.kafka import open_kafka_log
from messaging.topics import ensure_topics
from storage_repo.hbase import apply_schema
from storage_repo.hbase.wal import remove_peer

NAMES = ("hbase", "thrift", "thrift2", "omid", "kafka")
P99_AIM_MS, CELLS_AIM = 150.0, 100_000.0
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
_READY_S = 60.0
_SLOWEST_CELLS_S = 1_000.0
"""Below this rate the proxy counts as hanging."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    rate: float = 50.0
    warm_up: int = 250
    measured: int = 1_500
    backlog_rows: int = 40_000


QUICK = Sizes(rate=20.0, warm_up=20, measured=60, backlog_rows=1_000)


def run(quick: bool, sizes: Sizes | None = None, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run the benchmark, on servers of its own unless given ("repo" and "log" URLs).

    Raises BenchmarkFailed, StackError.
    """
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        directory = Path(name)
        machine = machine_of(directory)
        try:
            with _servers(directory, given) as at:
                _measure(report, chosen, at["repo"], at["log"], directory)
        except ServerMissing as error:
            report.note(f"there are no figures: {error}")
    return report.to_json("walproxy", machine)


@contextmanager
def _servers(directory: Path, given: Mapping[str, str] | None) -> Iterator[Mapping[str, str]]:
    if given is not None:
        yield given
        return
    stack = Stack(directory / "stack")
    try:
        up = stack.up(NAMES)
        yield {"repo": up["hbase"].url, "log": up["kafka"].url}
    finally:
        stack.down()


def _measure(report: Report, sizes: Sizes, repo_url: str, log_url: str, directory: Path) -> None:
    catalog = catalog_of()
    apply_schema(repo_url, schema_of(catalog))
    with closing(open_kafka_log(log_url)) as log:
        ensure_topics(log)
    with closing(Writers(repo_url, catalog)) as writers:
        try:
            with _proxy(directory, repo_url, log_url), Reader(log_url) as reader:
                for name, write in (("commits", writers.commit), ("puts", writers.put)):
                    _latency(report, sizes, name, writers, reader, write)
            _backlog(report, sizes, writers, directory, repo_url, log_url)
        finally:
            remove_peer(repo_url, PEER_ID)
    report.note(f"aims: p99 below {P99_AIM_MS:.0f} ms from put to notification, {CELLS_AIM:,.0f} cells/s on a backlog")
    report.note(
        f"a change is {COLUMNS_EACH} columns of one row: {CELLS_EACH} cells in HBase's log with the origin and the "
        "shadow cells; HBase ships, the proxy decodes and publishes to Kafka, acknowledged by all replicas"
    )
    report.note(
        "commits: of the Repo, over Omid's TSO; puts: the same cells without a transaction, timed from the shadow "
        "cells, which say committed; servers, proxy, writers and reader share this machine"
    )


def _latency(report: Report, sizes: Sizes, name: str, writers: Writers, reader: Reader, write: Any) -> None:
    rows = [f"{name}{number:07d}" for number in range(sizes.warm_up + sizes.measured)]
    reader.seen.clear()
    times = writers.at_rate(write, rows, sizes.rate)
    if not reader.wait_for(len(rows), _READY_S):
        raise BenchmarkFailed(f"{len(rows) - len(reader.seen)} of {len(rows)} {name} were not notified")
    measured = rows[sizes.warm_up :]
    case = f"{sizes.rate:.0f} {name}/s"
    for since, index in (("asked for", 0), ("answered", 1)):
        took = sorted(1e3 * (reader.seen[row] - times[row][index]) for row in measured)
        for label, q in _QUANTILES:
            figure = took[min(len(took) - 1, int(q * len(took)))]
            report.add(case, f"{label} ms from {name[:-1]} {since} to notification", max(figure, 0.0))
    spent = sorted(1e3 * (answered - asked) for asked, answered in (times[row] for row in measured))
    report.add(case, f"p50 ms of the {name[:-1]} itself", spent[len(spent) // 2])
    _log.info("walproxy_latency", case=case, rows=len(measured))


def _backlog(
    report: Report, sizes: Sizes, writers: Writers, directory: Path, repo_url: str, log_url: str
) -> None:  # fmt: skip
    rows = [f"backlog{number:07d}" for number in range(sizes.backlog_rows)]
    cells = CELLS_EACH * len(rows)
    writing = time.perf_counter()
    writers.put_many(rows)
    written = time.perf_counter() - writing
    with Reader(log_url) as reader:
        time.sleep(0.5)  # the reader has its positions
        with _proxy(directory, repo_url, log_url) as process:
            ready, cpu_before = time.perf_counter(), _cpu_s(process)
            if not reader.wait_for(len(rows), _READY_S + cells / _SLOWEST_CELLS_S):
                raise BenchmarkFailed(f"{len(rows) - len(reader.seen)} of {len(rows)} rows were not notified")
            spent = _cpu_s(process) - cpu_before
        first, last = min(reader.seen.values()), max(reader.seen.values())
    case = f"backlog of {cells:,} cells"
    report.add(case, "cells/s from the first notification to the last", cells / (last - first), more_is_better=True)
    report.add(case, "cells/s from the proxy's registration", cells / (last - ready), more_is_better=True)
    report.add(case, "proxy: cpu s/100,000 cells", spent * 100_000 / cells)
    report.add(case, "cells/s written (Thrift2, one client)", cells / written, more_is_better=True)
    _log.info("walproxy_backlog", cells=cells, seconds=last - first, cpu_s=spent)


@contextmanager
def _proxy(directory: Path, repo_url: str, log_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a proxy process beside the block."""
    log_file = directory / "proxy.log"
    command = [sys.executable, "-m", "benchmarks._walproxy_stage", str(directory / "home"), repo_url, log_url]
    with log_file.open("ab") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"ready\n":
            raise BenchmarkFailed(f"the proxy did not start: {log_file.read_text(errors='replace')[-1500:]}")
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(_READY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _cpu_s(process: subprocess.Popen[bytes]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system
