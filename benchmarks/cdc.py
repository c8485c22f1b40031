"""Change capture: rows per second and processor seconds of the whole Gateway, against Debezium's embedded engine.

Both tail the same binlog of the same real server. They are held while an application writes a round of rows; then one
after the other, in another order every round, is let go and measured until it has dealt with every row: the Gateway
when the log has acknowledged its messages, Debezium when it has thrown its JSON envelopes away. So each has the machine
to itself, save the servers.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from benchmarks import _cdc_debezium
from benchmarks._cdc_rows import COLUMNS, PER_STATEMENT, Application
from benchmarks._cdc_tail import Pass, Tail
from benchmarks._report import Report, machine_of
from benchmarks._stack_servers import Servers, apply_topics, servers
from cli.runtime import ROOT
from cli.settings import choose
from compose import ServerMissing
from messaging.home import Home

GATEWAY, DEBEZIUM, LEAN = "gateway", "debezium", "debezium, no schemas"
BULK, SINGLE = f"bulk statements of {PER_STATEMENT} rows", "one-row transactions"
_SERVER_IDS = {DEBEZIUM: 9_101, LEAN: 9_102}
_SLOWEST_RATE = 150.0
"""Rows per second below which a tail counts as hanging."""

_SNAPSHOT_DONE = '"left": []'
"""What the Gateway logs when it has enqueued the rows that were there before; here there are none."""
_SNAPSHOT_S = 60.0
_LONGEST_S = 180.0
"""No further round is begun after this, but two there are at least: so a busy machine is done in six minutes, too."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    bulk: int = 60_000
    single: int = 20_000
    warm_ups: int = 2
    """Rounds that are not counted, the first of them reported apart: a JVM compiles its code then."""
    repeats: int = 5
    """Rounds that are counted; of their figures the medians are reported."""
    peers: tuple[str, ...] = (DEBEZIUM, LEAN)


QUICK = Sizes(bulk=10_000, single=2_000, warm_ups=1, repeats=1)


@dataclass(slots=True)
class _Measured:
    """What one tail gave: CPU seconds until it asked for the binlog, and its passes by shape, the first one cold."""

    start_cpu_s: float = 0.0
    rss_mib: float = 0.0
    passes: dict[str, list[Pass]] = field(default_factory=dict)
    server_cpu_s: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    """(Shape, server) -> what the server used for each of the passes, per 100,000 rows."""


def run(quick: bool, sizes: Sizes | None = None, given: Servers | None = None) -> dict[str, Any]:
    """Run the benchmark, on servers of its own unless told otherwise. Raises BenchmarkFailed, StackError."""
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    measured: dict[str, _Measured] = {}
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # the account that the server runs as must get through
        machine = machine_of(directory)
        peers = chosen.peers
        if missing := _cdc_debezium.missing_tools():
            report.note(f"{' and '.join(missing)} not found on this machine, so there are no figures of Debezium")
            peers = ()
        try:
            with servers(directory, given) as at:
                measured = _measure(chosen, peers, at, directory)
        except ServerMissing as error:
            report.note(f"there are no figures at all: {error}")
    _report(report, chosen, measured)
    return report.to_json("cdc", machine)


def _measure(sizes: Sizes, peers: Sequence[str], at: Servers, directory: Path) -> dict[str, _Measured]:
    with ExitStack() as stack:
        application = stack.enter_context(Application(at.ads_db))
        tails: dict[str, Tail] = {}
        measured: dict[str, _Measured] = {}
        starters: dict[str, Callable[[], Tail]] = {GATEWAY: lambda: _start_gateway(at, directory)}
        for peer in peers:
            starters[peer] = lambda peer=peer: _cdc_debezium.start(  # type: ignore[misc]
                application.url, directory, peer.replace(", ", "-").replace(" ", "-"), _SERVER_IDS[peer],
                schemas=peer != LEAN,
            )  # fmt: skip
        for name, start in starters.items():
            with application.tail_starting():
                tail = tails[name] = stack.enter_context(start())
            if name == GATEWAY:
                tail.wait_for_log(_SNAPSHOT_DONE, _SNAPSHOT_S)
            tail.check()
            measured[name] = _Measured(start_cpu_s=tail.cpu_s())
            tail.hold()
        started, order = time.monotonic(), list(tails)
        for turn in range(sizes.warm_ups + sizes.repeats):
            if turn > 1 and time.monotonic() - started > _LONGEST_S:
                break
            for shape, rows, write in (
                (BULK, sizes.bulk, application.bulk),
                (SINGLE, sizes.single, application.one_by_one),
            ):
                write(rows)
                for name in order:
                    before = at.cpu_s()
                    done = tails[name].take(rows, 60.0 + rows / _SLOWEST_RATE)
                    _log.info("cdc_pass", tail=name, shape=shape, rate=done.rate, cpu_s_per_100k=done.cpu_s_per_100k)
                    measured[name].passes.setdefault(shape, []).append(done)
                    for server, cpu_s in at.cpu_s().items():
                        spent = (cpu_s - before[server]) * 100_000 / rows
                        measured[name].server_cpu_s.setdefault((shape, server), []).append(spent)
                order.append(order.pop(0))  # whoever comes first finds the server busy with what was just written
        for name, tail in tails.items():
            measured[name].rss_mib = tail.rss_mib()
    return measured


def _start_gateway(at: Servers, directory: Path) -> Tail:
    home = Home.open(directory / "home")
    choose(home, ads_db=at.ads_db, log=at.log)
    apply_topics(home)
    command = [sys.executable, "-m", "benchmarks._cdc_gateway", str(home.root)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return Tail(GATEWAY, command, directory / "gateway.log", environment)


def _report(report: Report, sizes: Sizes, measured: dict[str, _Measured]) -> None:
    made = len(measured[GATEWAY].passes[BULK]) if GATEWAY in measured else 0
    cold = max(0, min(sizes.warm_ups, made - 1))
    for shape, rows in ((BULK, sizes.bulk), (SINGLE, sizes.single)):
        for name, chosen in (("", slice(cold, None)), (", first round", slice(1))):
            for metric, figure, more_is_better in (
                ("rows/s", _rate, True),
                ("cpu s/100,000 rows", _cpu_s_per_100k, False),
            ):
                figures = {
                    tail: statistics.median(map(figure, of.passes[shape][chosen])) for tail, of in measured.items()
                }
                for peer in sizes.peers or (None,):
                    case = f"{rows:,} rows, {shape}{name}"
                    theirs = figures.get(peer) if peer else None
                    report.add(case, metric, figures.get(GATEWAY), peer, theirs, more_is_better=more_is_better)
        for server in sorted({server for of in measured.values() for _, server in of.server_cpu_s}):
            used = {tail: statistics.median(of.server_cpu_s[shape, server][cold:]) for tail, of in measured.items()}
            for peer in sizes.peers:
                case = f"{rows:,} rows, {shape}, the {server} server's share"
                report.add(case, "cpu s/100,000 rows", used.get(GATEWAY), peer, used.get(peer))
    for metric, attribute in (("cpu s", "start_cpu_s"), ("resident MiB afterwards", "rss_mib")):
        for peer in sizes.peers:
            mine_of, their = measured.get(GATEWAY), measured.get(peer)
            report.add(
                "start until it follows the binlog" if metric == "cpu s" else "memory",
                metric,
                getattr(mine_of, attribute) if mine_of else None,
                peer,
                getattr(their, attribute) if their else None,
            )
    report.note(
        f"medians of {made - cold} rounds after {cold} to warm up; every tail takes the same rows of {COLUMNS} "
        "columns from the same binlog, one after the other, the order changing every round; half inserts, half "
        "updates; the start of a JVM is in no round but in a line of its own"
    )
    report.note(
        "cpu s: user and system of the tail's whole process tree. The Gateway decodes, groups, reads every entity "
        "again from the server, encodes and produces to Kafka, acknowledged by all replicas; Debezium makes JSON "
        "envelopes and throws them away, so the Kafka server works for the Gateway only"
    )
    report.note(
        f"{DEBEZIUM}: the embedded engine with its standard JSON converters as they come, so that every envelope "
        f"carries its row's schema; {LEAN}: converter.schemas.enable=false, which is the least that it can do"
    )
    before, _, longer = os.getloadavg()
    report.note(f"load average at the end {before:.2f}, over a quarter of an hour {longer:.2f}")
    if made:
        report.note(_verdict(measured, cold))


def _verdict(measured: Mapping[str, _Measured], cold: int) -> str:
    """Say whether the Gateway takes no more processor time than Debezium as it comes, in either shape."""
    if DEBEZIUM not in measured:
        return f"aim: not slower than Debezium in cpu s; nothing was compared ({DEBEZIUM} was not run)"
    ours, theirs = (
        {shape: statistics.median(map(_cpu_s_per_100k, passes[cold:])) for shape, passes in of.passes.items()}
        for of in (measured[GATEWAY], measured[DEBEZIUM])
    )
    missed = [shape for shape in ours if ours[shape] > theirs[shape]]
    return f"aim: not slower than Debezium in cpu s; {'NOT met for ' + ' and '.join(missed) if missed else 'met'}"


def _rate(done: Pass) -> float:
    return done.rate


def _cpu_s_per_100k(done: Pass) -> float:
    return done.cpu_s_per_100k
