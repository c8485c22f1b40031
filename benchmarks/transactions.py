"""Transactions on HBase: our engine against Omid's own Java client, and against the same cells without transactions.

A transaction is of 10 cells in 5 rows. `update` reads and writes them, `write` only writes, `read` only reads. All take
turns on one HBase with one TSO; every thread has rows of its own, so that nobody is refused and all do equal work.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from benchmarks._report import Report, machine_of
from benchmarks._transactions_java import JavaClient, java_client
from benchmarks._transactions_load import COLUMNS, ROWS_EACH, SCHEMA, TABLE, Load, Measured, Ours, percentile
from compose import ServerMissing, Stack
from storage_repo import RepoSchema
from storage_repo.hbase.address import HbaseAddress
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.repo import HbaseRepo, apply_schema

UPDATE, WRITE, READ, AGAIN = "update", "write", "read", "read again"
JAVA, ASYNC, RAW = "java", "java, async", "raw"
_WITHOUT = {WRITE: "raw-write", READ: "raw-read", AGAIN: "raw-read again"}
_RAW_TABLE = "raw"
_SERVERS = ("hbase", "thrift", "thrift2", "omid")

_progress = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    loads: tuple[Load, ...] = (Load(1, 80), Load(16, 480), Load(64, 960), Load(64, 960, batched=True))
    """Rounds of about a minute, with Java's share."""
    rows: int = 20_000
    repeats: int = 3
    """After the first round, in which the JVMs compile."""


QUICK = Sizes(loads=(Load(1, 20), Load(8, 80), Load(8, 80, batched=True)), rows=1_000, repeats=1)


@dataclass(frozen=True, slots=True)
class HbaseServers:
    """The Repo's URL, the directory with hbase-site.xml, and the processes that serve."""

    url: str
    conf: Path
    pids: Mapping[str, int]


@dataclass(slots=True)
class _Case:
    """What one way of doing a load gave, round by round."""

    runs: list[Measured] = field(default_factory=list)
    cpu_ms: list[dict[str, float]] = field(default_factory=list)
    """Processor milliseconds a transaction: of the client, and of the servers."""
    costs: list[dict[str, float]] = field(default_factory=list)


_Cases = dict[tuple[str, Load, str], _Case]
"""(kind, load, who) -> figures."""


def run(quick: bool, sizes: Sizes | None = None, given: HbaseServers | None = None) -> dict[str, Any]:
    """Run the benchmark, on servers of its own unless told otherwise. Raises BenchmarkFailed, StackError."""
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    cases: _Cases = {}
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        machine = machine_of(Path(name))
        try:
            with _servers(Path(name), given) as at:
                cases = _measure(chosen, at, Path(name))
        except ServerMissing as error:
            report.note(f"there are no figures: {error}")
    _report(report, chosen, cases)
    return report.to_json("transactions", machine)


@contextmanager
def _servers(directory: Path, given: HbaseServers | None) -> Iterator[HbaseServers]:
    if given is not None:
        yield given
        return
    stack = Stack(directory / "stack")
    try:
        up = stack.up(_SERVERS)
        hbase = stack.status(["hbase"])["hbase"]
        yield HbaseServers(hbase.url, hbase.log_file.parent / "conf", {name: up[name].pid for name in _SERVERS})
    finally:
        stack.down()


def _measure(sizes: Sizes, at: HbaseServers, directory: Path) -> _Cases:
    separator = "&" if "?" in at.url else "?"
    url = f"{at.url}{separator}prefix=bench_"
    apply_schema(url, SCHEMA)
    apply_schema(url, RepoSchema.of([(_RAW_TABLE, ("f",))]))
    address = HbaseAddress.parse(url)
    cases: _Cases = {}
    with ExitStack() as stack:
        repo = stack.enter_context(closing(HbaseRepo.open(url, SCHEMA)))
        raw = stack.enter_context(closing(HbaseConnections(address)))
        table, raw_table = f"bench_{TABLE}", f"bench_{_RAW_TABLE}"
        ours = Ours(repo, raw, table.encode(), raw_table.encode(), sizes.rows)
        ours.fill()
        java = stack.enter_context(java_client(at.conf, address.zookeeper, table, sizes.rows, directory))
        clients = {JAVA: java.pid, ASYNC: java.pid}
        for turn in range(sizes.repeats + 1):
            for kind in (UPDATE, WRITE, READ, AGAIN):
                _progress.print(f"bench transactions: round {turn} of {sizes.repeats}, {kind}", highlight=False)
                if kind == AGAIN:
                    ours.read_once()
                for load in sizes.loads:
                    for who, act in _contestants(kind, load, ours, java):
                        before, counted = _cpu_s(at.pids, clients.get(who)), repo.statistics()
                        measured = act()
                        if turn:
                            case = cases.setdefault((kind, load, who), _Case())
                            case.runs.append(measured)
                            case.cpu_ms.append(_spent(before, _cpu_s(at.pids, clients.get(who)), measured))
                            if not who:
                                repo.flush()
                                case.costs.append(_costs(counted, repo.statistics(), measured))
    return cases


def _contestants(kind: str, load: Load, ours: Ours, java: JavaClient) -> Iterator[tuple[str, Callable[[], Measured]]]:
    """Yield who does this load, and how; ours first, without a name."""
    yield "", lambda: ours.run(kind, load)
    if kind != AGAIN and not load.batched:  # Java's client remembers nothing, and has no batches
        yield JAVA, lambda: java.run(kind, load)
    if kind in (UPDATE, WRITE) and not load.batched:
        yield ASYNC, lambda: java.run(kind, load, mode="async")
    if kind in _WITHOUT:
        yield RAW, lambda: ours.run(_WITHOUT[kind], load)


def _cpu_s(pids: Mapping[str, int], client: int | None) -> dict[str, float]:
    """Return the processor seconds that the client (ours: this process) and the servers have used."""
    found = {
        "client": psutil.Process(client).cpu_times(),
        **{n: psutil.Process(p).cpu_times() for n, p in pids.items()},
    }
    return {name: times.user + times.system for name, times in found.items()}


def _spent(before: Mapping[str, float], after: Mapping[str, float], measured: Measured) -> dict[str, float]:
    """Return processor milliseconds a transaction."""
    spent = {name: (after[name] - before[name]) * 1e3 / measured.count for name in before}
    return {"client": spent.pop("client"), "servers": sum(spent.values())}


def _costs(before: Mapping[str, int], after: Mapping[str, int], measured: Measured) -> dict[str, float]:
    """Return what a transaction cost in calls: each is a round trip, shared by those that are in flight together."""
    calls = {name: after[name] - before.get(name, 0) for name in after}
    asked = 1  # by the statistics themselves
    return {
        "HBase round trips/transaction": (calls["round_trips"] - asked) / measured.count,
        "TSO answers/transaction": (calls["tso_responses"] - calls["tso_pads"]) / measured.count,
        "TSO reads/transaction": calls["tso_reads"] / measured.count,
    }


def _report(report: Report, sizes: Sizes, cases: _Cases) -> None:
    for kind in (UPDATE, WRITE, READ, AGAIN):
        for load in sizes.loads:
            ours = cases.get((kind, load, ""), _Case())
            way = "in one batch" if load.batched else "in threads" if load.in_flight > 1 else "serial"
            for who, prefix in ((JAVA, "java"), (ASYNC, "java-async"), (RAW, f"raw-{kind.split()[0]}")):
                theirs = cases.get((kind, load if who == RAW else _in_threads(load, sizes), who))
                if theirs is None and (cases or who != JAVA or kind == AGAIN):
                    continue
                _compare(report, f"{prefix}/{kind}, {load.in_flight} in flight, {way}", who, ours, theirs or _Case())
            for metric in ours.costs[0] if ours.costs else ():
                median = statistics.median(cost[metric] for cost in ours.costs)
                report.add(f"cost/{kind}, {load.in_flight} in flight, {way}", metric, median)
    cells = len(COLUMNS) * ROWS_EACH
    report.note(
        f"a transaction: {cells} cells in {ROWS_EACH} of {sizes.rows:,} rows; medians of {sizes.repeats} rounds after "
        "the first; every thread has rows of its own, so none is refused"
    )
    report.note(
        "java: Omid's own client, one process with a thread for each that is in flight, beside our batches too, for it "
        "has none; commit returns when its shadow cells are written and its commit-table entry is removed (its "
        "default); java-async: it does both afterwards. Ours returns when the shadow cells are written; it goes "
        "through Thrift servers, which Java does not need"
    )
    report.note(
        "raw-write, raw-read: our client writes or reads the same cells through the same Thrift servers, as many at a "
        "time, without transactions (Percolator kept 0.23 of the writes and 0.94 of the reads). In threads each of its "
        "threads makes its own calls, as any client's, where ours share theirs; in one batch both make one call"
    )
    report.note(
        "read again: a tenth of the rows, which were read before and which nobody has changed since, so that their "
        "commits are remembered; read: any rows, most of which somebody has changed since they were last read"
    )
    report.note(
        "in one batch: one thread reads, changes and commits all in flight with one call each; its p50 and p99 "
        "are those of a batch. HBase round trips include the background's; TSO reads: pieces its answers came in"
    )


def _in_threads(load: Load, sizes: Sizes) -> Load:
    """Return the load that Java does beside this one: as many in flight, each in a thread."""
    return next(each for each in sizes.loads if each.in_flight == load.in_flight and not each.batched)


def _compare(report: Report, case: str, who: str, ours: _Case, theirs: _Case) -> None:
    def median(of: _Case, figure: Callable[[Measured], float]) -> float | None:
        return statistics.median(map(figure, of.runs)) if of.runs else None

    def cpu(of: _Case, whose: str) -> float | None:
        return statistics.median(each[whose] for each in of.cpu_ms) if of.cpu_ms else None

    def rate(run: Measured) -> float:
        return run.rate

    report.add(case, "transactions/s", median(ours, rate), who, median(theirs, rate), more_is_better=True)
    for name, share in (("p50 ms", 0.5), ("p99 ms", 0.99)):

        def latency(run: Measured, share: float = share) -> float:
            return percentile(run.latencies_ms, share)

        report.add(case, name, median(ours, latency), who, median(theirs, latency))
    for whose in ("client", "servers"):
        report.add(case, f"cpu ms/transaction, {whose}", cpu(ours, whose), who, cpu(theirs, whose))
