"""`bench pipeline --stack`: from a commit in MariaDB to answerable, over the binlog and Kafka, at a steady rate.

The same stages and the same accounting as the pipeline benchmark, with the real servers on the same machine: first with
the embedded Repo, then with the Repo on HBase and Omid, where the rate is raised as well until updates come too late.
"""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from batch_workflows.sample import generate_sample
from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report, machine_of
from benchmarks._service import SEED, STAGES, Service, Usage
from benchmarks._stack_servers import Servers, apply_tables, apply_topics, servers
from benchmarks._updates import Commit, Latencies, Planner, Update, match, write_plan
from cli.runtime import ROOT
from cli.settings import choose
from compose import ServerMissing
from messaging.home import Home

_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
P99_AIM_MS = 1_000.0
"""Of the service, at 100 updates a second on two cores."""
WHOLE_P99_AIM_MS = 2_000.0
"""Over HBase, at 50 updates a second; also what makes a higher rate count as sustained."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    ads: int = 10_000
    rate: float = 100.0
    warm_up_s: float = 5.0
    steady_s: float = 30.0
    whole_ads: int = 2_000
    whole_rate: float = 50.0
    rising: tuple[float, ...] = (75.0, 100.0, 150.0, 200.0, 300.0)
    """Rates over HBase, each for `rising_s`, until one is not sustained."""
    rising_s: float = 15.0


QUICK = Sizes(
    ads=500, rate=20.0, warm_up_s=1.0, steady_s=4.0, whole_ads=200, whole_rate=10.0, rising=(20.0,), rising_s=3
)


def run(quick: bool, sizes: Sizes | None = None, given: Servers | None = None) -> dict[str, Any]:
    """Run the benchmark, on servers of its own unless told otherwise. Raises BenchmarkFailed, StackError."""
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # the account that the server runs as must get through
        machine = machine_of(directory)
        for place, whole in (("two", False), ("whole", True)):
            if given is None or whole == bool(given.repo):
                _case(report, chosen, directory / place, given, whole=whole)
        _remarks(report, chosen)
    return report.to_json("pipeline --stack", machine)


def _case(report: Report, sizes: Sizes, directory: Path, given: Servers | None, *, whole: bool) -> None:
    ads, rate = (sizes.whole_ads, sizes.whole_rate) if whole else (sizes.ads, sizes.rate)
    on = "MariaDB, Kafka, HBase and Omid" if whole else "MariaDB and Kafka"
    case = f"{ads:,} ads, {rate:.0f} updates/s, {on}"
    directory.mkdir()
    directory.chmod(0o711)
    try:
        with servers(directory, given, hbase=whole) as at, StackService(directory, at) as service:
            service.fill(ads)
            planner = service.planner()
            run = _measure(service, at, planner, rate, sizes.warm_up_s, sizes.steady_s)
            _report(report, case, run, WHOLE_P99_AIM_MS if whole else P99_AIM_MS)
            if whole:
                _rise(report, service, at, planner, sizes, run, on)
    except ServerMissing as error:
        for label, _ in _QUANTILES:
            report.add(case, f"{label} ms from commit to answerable", None)
        report.note(f"there are no figures: {error}")


class StackService(Service):
    """All stages on a home whose settings name real servers."""

    def __init__(self, directory: Path, at: Servers) -> None:
        self._at = at
        home = Home.open(directory / "home")
        choose(home, ads_db=at.ads_db, log=at.log, repo=at.repo or None)
        apply_topics(home)
        apply_tables(home)
        super().__init__(directory)

    def fill(self, ads: int) -> None:
        """Commit a generated sample in one transaction and wait until all of it is served."""
        generate_sample(self._backends.ads_db, self.home.performance_db, self._backends.log, ads, SEED)
        self.until_idle()

    def planner(self) -> Planner:
        """Return a planner that knows the ads DB as it is."""
        copy = self.home.root / "planned.db"
        with closing(sqlite3.connect(copy)) as connection, connection:
            for table, columns in (("ads", "id, ad_group_id"), ("ad_groups", "id, bid_micros")):
                rows = self._backends.ads_db.execute(f"SELECT {columns} FROM {table}")[0].rows
                connection.execute(f"CREATE TABLE {table} ({columns})")
                connection.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        return Planner(copy, self.served(), SEED)

    @contextmanager
    def writing(self, updates: Sequence[Update], per_transaction: int = 1) -> Iterator[list[Commit]]:
        """Run the writer process beside the block; the list is full when the block is left. Raises BenchmarkFailed."""
        plan, out, log = (self.home.root / name for name in ("plan.json", "commits.json", "writer.log"))
        write_plan(plan, updates, per_transaction)
        command = [sys.executable, "-m", "benchmarks._mysql_writer", self._at.ads_db, str(plan), str(out)]
        commits: list[Commit] = []
        with log.open("ab") as errors, subprocess.Popen(command, cwd=ROOT, stdout=errors, stderr=errors) as process:
            try:
                yield commits
                code = process.wait()
            except BaseException:
                process.kill()
                raise
        if code:
            raise BenchmarkFailed(f"the writer ended with {code}: {log.read_text()[-500:]}")
        times = json.loads(out.read_text())
        commits += [Commit(*times[i // per_transaction]) for i in range(len(updates))]


@dataclass(frozen=True, slots=True)
class Run:
    """Updates at one rate, and what they took."""

    latencies: Latencies
    updates: int
    took_s: float
    """Of the writer."""
    used: Usage
    servers_s: dict[str, float]
    """Processor time of servers."""

    def bottleneck(self) -> str:
        """Say who used most of a core, and before which stage updates waited longest."""
        cores = {f"the {name} server": spent / self.took_s for name, spent in self.servers_s.items()}
        cores |= {stage: spent / self.took_s for stage, spent in self.used.cpu_s.items()}
        busiest = max(cores, key=lambda name: cores[name])
        waits = {hop: histogram.quantile(0.5) or 0.0 for hop, histogram in self.used.hops.items() if "queue:" in hop}
        longest = max(waits, key=lambda hop: waits[hop], default="")
        wait = f"; longest wait: {longest}, p50 {waits[longest] / 1e3:.0f} ms" if longest else ""
        return f"all together {sum(cores.values()):.2f} cores, most of it {busiest} ({cores[busiest]:.2f}){wait}"


def _measure(
    service: StackService, at: Servers, planner: Planner, rate: float, warm_up_s: float, steady_s: float
) -> Run:
    updates = planner.steady(rate, warm_up_s + steady_s)
    before, servers_before = service.usage(settled=True), at.cpu_s()
    with service.follow() as follower:
        with service.writing(updates) as commits:
            pass
        service.until_idle()
    used, servers_after = service.usage().since(before), at.cpu_s()
    took_s = (commits[-1].committed_us - commits[0].committed_us) / 1e6
    latencies = match(updates, commits, follower.applied, warm_up_s)
    _log.info("stack_latency", rate=rate, updates=len(latencies.values), unmatched=latencies.unmatched)
    spent = {name: servers_after[name] - servers_before[name] for name in servers_after}
    return Run(latencies, len(updates), took_s, used, spent)


def _report(report: Report, case: str, run: Run, aim_ms: float) -> None:
    for label, q in _QUANTILES:
        report.add(case, f"{label} ms from commit to answerable", run.latencies.quantile(q))
    report.add(case, "updates/s committed", run.updates / run.took_s if run.took_s else None)
    for stage in STAGES:
        report.add(f"{case}, cost per stage", f"{stage}: cpu us/update", 1e6 * run.used.cpu_s[stage] / run.updates)
    for name, spent in run.servers_s.items():
        report.add(f"{case}, cost per stage", f"{name} server: cpu us/update", 1e6 * spent / run.updates)
    for hop, histogram in run.used.hops.items():
        for label, q in (("p50", 0.5), ("p99", 0.99)):
            if hop != "total" and (value := histogram.quantile(q)) is not None:
                report.add(f"{case}, per hop", f"{hop}: {label} ms", value / 1e3)
    p99 = run.latencies.quantile(0.99)
    if p99 is not None:
        report.note(f"{case}: aim: p99 below {aim_ms:.0f} ms; {'met' if p99 < aim_ms else 'NOT met'}")
    text = f"{case}: {len(run.latencies.values):,} updates measured"
    if run.latencies.unmatched:
        text += f", {run.latencies.unmatched} more were run together with an earlier update of the same row"
    report.note(text)


def _rise(
    report: Report, service: StackService, at: Servers, planner: Planner, sizes: Sizes, run: Run, on: str
) -> None:
    """Raise the rate until p99 misses the aim; report the highest rate that held, and what was short then."""
    held: float | None = None
    rate = sizes.whole_rate
    for following in (*sizes.rising, None):
        p99 = run.latencies.quantile(0.99)
        if p99 is None or p99 >= WHOLE_P99_AIM_MS:
            break
        held = rate
        if following is None:
            break
        rate = following
        run = _measure(service, at, planner, rate, sizes.warm_up_s, sizes.rising_s)
        report.add(f"{sizes.whole_ads:,} ads, {rate:.0f} updates/s, {on}", "p99 ms from commit to answerable",
                   run.latencies.quantile(0.99))  # fmt: skip
    report.add(f"{sizes.whole_ads:,} ads, {on}", "highest updates/s tried with p99 within the aim", held)
    report.note(f"at {rate:.0f} updates/s over HBase: {run.bottleneck()}")


def _remarks(report: Report, sizes: Sizes) -> None:
    report.note(
        "per hop: from the messages' headers; NAME is the time inside a stage, queue:NAME the time before it: on the "
        "wire, in the log, and until the stage has done what came before. Their p99 do not add up to the whole's"
    )
    report.note(f"load average at the end {os.getloadavg()[0]:.2f}")
    report.note(
        f"after {sizes.warm_up_s:g} s to warm up, {sizes.steady_s:g} s, every update a transaction of an application's "
        "process; all servers, all stages and the application share this machine"
    )
