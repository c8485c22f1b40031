"""Change capture: rows per second and processor seconds of the whole Gateway, against Debezium's embedded engine.

Both tail the same binlog of the same real server. They are held while an application writes a round of rows; then one
after the other is let go and measured until it has dealt with every row: the Gateway when the log has acknowledged its
messages, Debezium when it has thrown its JSON envelopes away. So both have the machine to themselves, save the server.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
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

_DATABASE = "mysql"
_SNAPSHOT_DONE = '"left": []'
"""What the Gateway logs when it has enqueued the rows that were there before; here there are none."""
_SNAPSHOT_S = 60.0

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    bulk: int = 200_000
    single: int = 50_000
    repeats: int = 3
    """After the first round, which is reported apart: a JVM compiles its code then."""
    peers: tuple[str, ...] = (DEBEZIUM, LEAN)


QUICK = Sizes(bulk=10_000, single=2_000, repeats=1)


@dataclass(slots=True)
class _Measured:
    """What one tail gave: CPU seconds until it asked for the binlog, and its passes by shape, the first one cold."""

    start_cpu_s: float = 0.0
    rss_mib: float = 0.0
    passes: dict[str, list[Pass]] = field(default_factory=dict)
    server_cpu_s: dict[str, list[float]] = field(default_factory=dict)


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
        for _ in range(sizes.repeats + 1):
            for shape, rows, write in (
                (BULK, sizes.bulk, application.bulk),
                (SINGLE, sizes.single, application.one_by_one),
            ):
                write(rows)
                for name, tail in tails.items():
                    before = at.cpu_s()
                    done = tail.take(rows, 60.0 + rows / _SLOWEST_RATE)
                    _log.info("cdc_pass", tail=name, shape=shape, rate=done.rate, cpu_s_per_100k=done.cpu_s_per_100k)
                    measured[name].passes.setdefault(shape, []).append(done)
                    if _DATABASE in before:
                        spent = (at.cpu_s()[_DATABASE] - before[_DATABASE]) * 100_000 / rows
                        measured[name].server_cpu_s.setdefault(shape, []).append(spent)
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
    for shape, rows in ((BULK, sizes.bulk), (SINGLE, sizes.single)):
        for name, chosen in (("", slice(1, None)), (", first round", slice(1))):
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
        for peer in sizes.peers:
            served = {tail: of.server_cpu_s.get(shape) for tail, of in measured.items()}
            mine, theirs_of = served.get(GATEWAY), served.get(peer)
            report.add(
                f"{rows:,} rows, {shape}, the database server's share",
                "cpu s/100,000 rows",
                statistics.median(mine) if mine else None,
                peer,
                statistics.median(theirs_of) if theirs_of else None,
            )
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
        f"medians of {sizes.repeats} rounds after the first; every tail takes the same rows of {COLUMNS} columns from "
        "the same binlog, one after the other; half inserts, half updates; the start of a JVM is in no round"
    )
    report.note(
        "cpu s: user and system of the tail's processes. The Gateway decodes, groups, reads every entity again from "
        "the server, encodes and produces to Kafka, acknowledged by all replicas; Debezium makes JSON envelopes and "
        "throws them away"
    )
    report.note(
        f"{DEBEZIUM}: the embedded engine as it comes, every envelope with its row's schema; {LEAN}: without, which is "
        "the least that it can do"
    )


def _rate(done: Pass) -> float:
    return done.rate


def _cpu_s_per_100k(done: Pass) -> float:
    return done.cpu_s_per_100k
