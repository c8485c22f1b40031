"""The whole path under load: how long until a committed update is answerable, how many documents, at what cost, and
against whom.

Every figure of ours comes from the real processes on a home of their own, on the disk that TMPDIR is on, with every
commit synced. Every size has a home of its own: a bulk load, then storms, then updates at a steady rate.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks._exceptions import BenchmarkFailed
from benchmarks._peers import DUCKDB, PATHWAY, missing, run_peer
from benchmarks._report import Report, machine_of
from benchmarks._service import SEED, STAGES, Load, Service
from benchmarks._updates import Latencies, Planner, match, write_plan
from catalog.targeting import ANY
from messaging.metrics import Histogram

_STORM_TRANSACTION = 100
"""Rows per transaction of a storm, as a bulk edit would have."""
_PROBE_LIMIT_S = 10.0
_CANDIDATES = 4
"""Served ads set aside per probe: no request can see one whose budget is spent or whose schedule is over."""
_QUANTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
_DUCKDB_REBUILDS = 5
_BUSY_LOAD = 0.25
"""Load average per core before the start from which others visibly share the processors."""

_progress = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    ads: tuple[int, ...] = (500, 5_000, 50_000)
    compared: int = 5_000
    """The size at which storms run and Pathway is compared."""
    rate: float = 200.0
    warm_up_s: float = 2.0
    steady_s: float = 15.0
    storms: int = 3
    """After one that warms up."""
    probes: int = 20
    peers: frozenset[str] = frozenset((PATHWAY, DUCKDB))

    def uses(self, peer: str) -> bool:
        """Return whether a peer is wanted and there."""
        return peer in self.peers and not missing(peer)


QUICK = Sizes(ads=(200, 2_000), compared=200, rate=40.0, warm_up_s=0.5, steady_s=3.0, storms=1, probes=4)


@dataclass(slots=True)
class _Measured:
    """What one size gave."""

    ads: int
    served: int
    load: Load
    storms: list[Load]
    steady: Latencies
    rate: float
    probes: Latencies
    cpu_us: dict[str, float]
    """Per update at the steady rate, by stage."""
    hops: dict[str, Histogram]
    peers: dict[str, dict[str, Any]] = field(default_factory=dict)


def run(quick: bool, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the benchmark. Raises BenchmarkFailed."""
    chosen = sizes or (QUICK if quick else Sizes())
    report = Report()
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as directory:
        machine = machine_of(Path(directory))
        measured = []
        for ads in chosen.ads:
            _progress.print(f"bench pipeline: {ads:,} ads of {max(chosen.ads):,}", highlight=False)
            measured.append(_measure(ads, chosen, Path(directory) / str(ads)))
    for each in measured:
        _report_size(report, each)
    for each in measured:
        _report_costs(report, each)
    _report_growth(report, measured[0], measured[-1])
    _remarks(report, chosen, measured, busy=machine["load_before"] > _BUSY_LOAD * machine["cores"])
    return report.to_json("pipeline", machine)


def _measure(ads: int, sizes: Sizes, directory: Path) -> _Measured:
    directory.mkdir()
    with Service(directory) as service:
        load = service.load_sample(ads)
        served = service.served()
        planner = Planner(service.home.ads_db, served, SEED, _CANDIDATES * sizes.probes)
        storms: list[Load] = []
        if ads == sizes.compared:
            storms = [service.storm(planner.every_bid(), _STORM_TRANSACTION) for _ in range(sizes.storms + 1)][1:]
        updates = planner.steady(sizes.rate, sizes.warm_up_s + sizes.steady_s)
        before = service.usage(settled=True)
        with service.follow() as follower:
            with service.writing(updates) as commits:
                probes = _probe(service, planner.probes, sizes)
            service.until_idle()
        used = service.usage().since(before)
        took_s = (commits[-1].committed_us - commits[0].committed_us) / 1e6
        measured = _Measured(
            ads=ads,
            served=len(served),
            load=load,
            storms=storms,
            steady=match(updates, commits, follower.applied, sizes.warm_up_s),
            rate=len(updates) / took_s if took_s else 0.0,
            probes=probes,
            cpu_us={
                stage: 1e6 * seconds / (len(updates) + 2 * len(probes.values)) for stage, seconds in used.cpu_s.items()
            },
            hops=used.hops,
        )
        ads_db = service.home.ads_db
    measured.peers = _measure_peers(ads, sizes, ads_db, planner)
    return measured


def _probe(service: Service, ads: list[int], sizes: Sizes) -> Latencies:
    """Beside the steady load: pause an ad and ask `search` until it is gone, resume it and ask until it is back."""
    found = Latencies()
    time.sleep(sizes.warm_up_s)
    pause = sizes.steady_s / (4 * sizes.probes)
    everybody: dict[str, Any] = dict.fromkeys(service.catalog.dimensions, ANY)
    for ad in ads:
        request = {**everybody, "filter": {"term": {"field": "ad_id", "value": ad}}}
        if service.search(request)["total"] != 1:
            continue
        if len(found.values) == 2 * sizes.probes:
            break
        for status, expected in (("PAUSED", 0), ("ACTIVE", 1)):
            time.sleep(pause)
            committed = service.execute("UPDATE ads SET status = ? WHERE id = ?", (status, ad))
            deadline = committed + _PROBE_LIMIT_S
            while service.search(request)["total"] != expected:
                if time.monotonic() > deadline:
                    raise BenchmarkFailed(f"ad {ad} set to {status}, search has not noticed in {_PROBE_LIMIT_S:.0f} s")
            found.values.append((time.monotonic() - committed) * 1e3)
    return found


def _measure_peers(ads: int, sizes: Sizes, ads_db: Path, planner: Planner) -> dict[str, dict[str, Any]]:
    """Run the peers on the ads DB as it is now, after our processes have ended."""
    found: dict[str, dict[str, Any]] = {}
    plans = ads_db.with_name("peer-steady.json"), ads_db.with_name("peer-storm.json")
    write_plan(plans[0], planner.steady(sizes.rate, sizes.warm_up_s + sizes.steady_s))
    write_plan(plans[1], planner.every_bid(), _STORM_TRANSACTION)
    if sizes.uses(DUCKDB):
        found[DUCKDB] = run_peer(DUCKDB, ads_db, str(plans[0]), str(_DUCKDB_REBUILDS))
    if ads == sizes.compared and sizes.uses(PATHWAY):
        found[PATHWAY] = run_peer(PATHWAY, ads_db, str(plans[0]), str(sizes.warm_up_s), str(plans[1]))
    return found


def _report_size(report: Report, each: _Measured) -> None:
    pathway, duckdb = each.peers.get(PATHWAY), each.peers.get(DUCKDB)
    theirs = Latencies(pathway["latencies_ms"]) if pathway else Latencies()
    rebuild_ms = duckdb["rebuild_s"] * 1e3 if duckdb else None
    case = f"{each.ads:,} ads, {each.rate:.0f} updates/s"
    for name, q in _QUANTILES:
        metric = f"{name} ms from commit to answerable"
        ours = each.steady.quantile(q)
        if each.storms:
            report.add(case, metric, ours, PATHWAY, theirs.quantile(q))
        report.add(case, metric, ours, DUCKDB, rebuild_ms)
    for name, q in (("p50", 0.5), ("max", 1.0)):
        report.add(case, f"{name} ms from commit to seen by polling search", each.probes.quantile(q))

    case = f"{each.ads:,} ads, bulk load"
    rebuilt = duckdb["documents"] / duckdb["rebuild_s"] if duckdb else None
    per_core = duckdb["documents"] / duckdb["cpu_s"] if duckdb else None
    if each.storms:
        rate = pathway["documents"] / pathway["load_s"] if pathway else None
        report.add(case, "documents/s", each.load.rate, PATHWAY, rate, more_is_better=True)
    report.add(case, "documents/s", each.load.rate, DUCKDB, rebuilt, more_is_better=True)
    if each.storms:
        rate = pathway["documents"] / pathway["load_cpu_s"] if pathway else None
        report.add(case, "documents/s per core", each.load.rate_per_core, PATHWAY, rate, more_is_better=True)
    report.add(case, "documents/s per core", each.load.rate_per_core, DUCKDB, per_core, more_is_better=True)
    if each.storms:
        case = f"{each.ads:,} ads, storm of bids, {_STORM_TRANSACTION} a transaction"
        for metric, ours_of, key in (
            ("documents/s", _rate, "storm_s"),
            ("documents/s per core", _rate_per_core, "storm_cpu_s"),
        ):
            rate = pathway["storm_documents"] / pathway[key] if pathway else None
            ours = statistics.median(ours_of(storm) for storm in each.storms)
            report.add(case, metric, ours, PATHWAY, rate, more_is_better=True)


def _rate(load: Load) -> float:
    return load.rate


def _rate_per_core(load: Load) -> float:
    return load.rate_per_core


def _report_costs(report: Report, each: _Measured) -> None:
    case = f"{each.ads:,} ads, bulk load, cost per stage"
    for stage in STAGES:
        report.add(case, f"{stage}: cpu us/document", 1e6 * each.load.used.cpu_s[stage] / each.load.documents)
        if stage in each.load.used.wall_us:
            report.add(case, f"{stage}: wall us/document", each.load.used.wall_us[stage] / each.load.documents)
    case = f"{each.ads:,} ads, {each.rate:.0f} updates/s, cost per stage"
    for stage in STAGES:
        report.add(case, f"{stage}: cpu us/update", each.cpu_us[stage])
    for hop, histogram in each.hops.items():
        for name, q in (("p50", 0.5), ("p99", 0.99)):
            if hop != "total" and (value := histogram.quantile(q)) is not None:
                report.add(case, f"{hop}: {name} ms", value / 1e3)


def _report_growth(report: Report, small: _Measured, large: _Measured) -> None:
    case = f"{large.ads:,} ads against {small.ads:,}"
    for name, q in _QUANTILES[:1]:
        before, after = small.steady.quantile(q), large.steady.quantile(q)
        if before and after:
            report.add(case, f"{name} from commit to answerable, times as long", after / before)
    before, after = sum(small.cpu_us.values()), sum(large.cpu_us.values())
    if before:
        report.add(case, "cpu per update, times as much", after / before)


def _remarks(report: Report, sizes: Sizes, measured: list[_Measured], *, busy: bool) -> None:
    for peer in (PATHWAY, DUCKDB):
        if not sizes.uses(peer):
            why = "is not installed here" if missing(peer) else "was not asked for"
            report.note(
                f"{peer} {why}, so there are no figures of it: run ./adsindex bench, which installs "
                "requirements-bench.lock into an environment of its own"
            )
    report.note(
        "the load average before the start was that of a busy machine: latencies are too long and rates too low"
        if busy
        else "the machine was idle before the start"
    )
    for each in measured:
        text = f"{each.ads:,} ads: {each.served:,} may serve now; {len(each.steady.values):,} updates measured"
        if each.steady.unmatched:
            text += f", {each.steady.unmatched} more were run together with an earlier update of the same row"
        text += f"; {len(each.probes.values)} polled by search"
        if each.storms:
            text += f"; storms: median of {len(each.storms)} after one to warm up"
        report.note(text)
    report.note(
        f"steady rate: after {sizes.warm_up_s:g} s to warm up, {sizes.steady_s:g} s, every update a synced transaction "
        "of an application's process; an update is answerable when the last document that it changes is"
    )
    report.note("bulk load: one transaction into an empty service; from its commit until nothing is outstanding")
    report.note(
        "pathway joins five of the nine tables in memory without derived columns, history, transactions or durability; "
        "its latency is from next() in the connector to the Python callback"
    )
    report.note(
        f"duckdb rebuilds the same join, its latency is one rebuild (median of {_DUCKDB_REBUILDS}) at best: a change "
        "waits for the rebuild before; taking in the changes is not in its time"
    )
