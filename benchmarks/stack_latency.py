"""`bench pipeline --stack`: from a commit in MariaDB to answerable, over the binlog and Kafka, at a steady rate.

The same stages and the same accounting as the pipeline benchmark, with the real servers on the same machine.
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
from benchmarks._service import SEED, STAGES, Service
from benchmarks._stack_servers import Servers, apply_topics, servers
from benchmarks._updates import Commit, Latencies, Planner, Update, match, write_plan
from cli.runtime import ROOT
from cli.settings import choose
from compose import ServerMissing
from messaging.home import Home

_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
P99_AIM_MS = 1_000.0
"""Of the service, at 100 updates a second on two cores."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    ads: int = 10_000
    rate: float = 100.0
    warm_up_s: float = 5.0
    steady_s: float = 30.0


QUICK = Sizes(ads=500, rate=20.0, warm_up_s=1.0, steady_s=4.0)


def run(quick: bool, sizes: Sizes | None = None, given: Servers | None = None) -> dict[str, Any]:
    """Run the benchmark, on servers of its own unless told otherwise. Raises BenchmarkFailed, StackError."""
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # the account that the server runs as must get through
        machine = machine_of(directory)
        case = f"{chosen.ads:,} ads, {chosen.rate:.0f} updates/s, MariaDB and Kafka"
        try:
            with servers(directory, given) as at:
                _measure(report, case, chosen, at, directory)
        except ServerMissing as error:
            for label, _ in _QUANTILES:
                report.add(case, f"{label} ms from commit to answerable", None)
            report.note(f"there are no figures: {error}")
    return report.to_json("pipeline --stack", machine)


class StackService(Service):
    """All stages on a home whose settings name real servers."""

    def __init__(self, directory: Path, at: Servers) -> None:
        self._at = at
        home = Home.open(directory / "home")
        choose(home, ads_db=at.ads_db, log=at.log)
        apply_topics(home)
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


def _measure(report: Report, case: str, sizes: Sizes, at: Servers, directory: Path) -> None:
    with StackService(directory, at) as service:
        service.fill(sizes.ads)
        updates = service.planner().steady(sizes.rate, sizes.warm_up_s + sizes.steady_s)
        before, servers_before = service.usage(settled=True), at.cpu_s()
        with service.follow() as follower:
            with service.writing(updates) as commits:
                pass
            service.until_idle()
        used, servers_after = service.usage().since(before), at.cpu_s()
    took_s = (commits[-1].committed_us - commits[0].committed_us) / 1e6
    latencies = match(updates, commits, follower.applied, sizes.warm_up_s)
    _log.info("stack_latency", updates=len(latencies.values), unmatched=latencies.unmatched)
    for label, q in _QUANTILES:
        report.add(case, f"{label} ms from commit to answerable", latencies.quantile(q))
    report.add(case, "updates/s committed", len(updates) / took_s if took_s else None)
    for stage in STAGES:
        report.add(f"{case}, cost per stage", f"{stage}: cpu us/update", 1e6 * used.cpu_s[stage] / len(updates))
    for name, spent in servers_after.items():
        cost = 1e6 * (spent - servers_before[name]) / len(updates)
        report.add(f"{case}, cost per stage", f"{name} server: cpu us/update", cost)
    for hop, histogram in used.hops.items():
        for label, q in (("p50", 0.5), ("p99", 0.99)):
            if hop != "total" and (value := histogram.quantile(q)) is not None:
                report.add(f"{case}, per hop", f"{hop}: {label} ms", value / 1e3)
    _remarks(report, sizes, latencies)


def _remarks(report: Report, sizes: Sizes, latencies: Latencies) -> None:
    p99 = latencies.quantile(0.99)
    if p99 is not None:
        report.note(f"aim: p99 below {P99_AIM_MS:.0f} ms; {'met' if p99 < P99_AIM_MS else 'NOT met'}")
    report.note(
        "per hop: from the messages' headers; NAME is the time inside a stage, queue:NAME the time before it: on the "
        "wire, in the log, and until the stage has done what came before. Their p99 do not add up to the whole's"
    )
    report.note(f"load average at the end {os.getloadavg()[0]:.2f}")
    text = f"{len(latencies.values):,} updates measured"
    if latencies.unmatched:
        text += f", {latencies.unmatched} more were run together with an earlier update of the same row"
    report.note(text)
    report.note(
        f"after {sizes.warm_up_s:g} s to warm up, {sizes.steady_s:g} s, every update a transaction of an application's "
        "process; MariaDB, Kafka, all stages and the application share this machine"
    )
