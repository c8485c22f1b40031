"""`bench base-index`: from the embedded Repo to a verified base, with the handlers run again and without.

Every figure is of a whole build: snapshot, ranges, documents, shards, gates, publication, each file verified. Reading
is the handlers' work; building is what a search engine does too, so that is what tantivy is held against.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from batch_workflows.base_index import BaseReport, BuildOptions, build_base_index, open_embedded_repo
from batch_workflows.engines import Engine, InlineEngine, LocalEngine, open_engine, usable_processors
from benchmarks._base_repo import fill
from benchmarks._peers import missing, run_peer
from benchmarks._report import Report, machine_of
from catalog import Catalog, load_catalog
from messaging import Log, open_embedded_log
from messaging.home import Home
from messaging.topics import ensure_topics
from storage_repo import Repo

SEED = 7
TANTIVY = "tantivy"
_progress = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many ads, and on which engines."""

    ads: tuple[int, ...] = (10_000, 100_000)
    """`ADSINDEX_BENCH_ADS=1000000` adds a size: some 20 minutes and 6 GB."""
    engines: tuple[str, ...] = ("inline", "local", "spark")
    spark_up_to: int = 100_000


QUICK = Sizes(ads=(200, 400), engines=("inline", "local"))


@dataclass(frozen=True, slots=True)
class _Measured:
    """One build."""

    report: BaseReport
    seconds: float
    cpu_s: float
    """Of this process and of its children that have ended; 0 where Spark's processes did the work."""


def run(quick: bool, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the benchmark. Raises BenchmarkFailed."""
    chosen = sizes or (QUICK if quick else Sizes())
    if not quick and (more := os.environ.get("ADSINDEX_BENCH_ADS")):
        chosen = Sizes(ads=(*chosen.ads, int(more)), engines=chosen.engines)
    report, catalog = Report(), load_catalog()
    built: dict[tuple[str, int], _Measured] = {}
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as directory:
        machine = machine_of(Path(directory))
        for ads in chosen.ads:
            _progress.print(f"bench base-index: {ads:,} ads of {max(chosen.ads):,}", highlight=False)
            with _filled(Path(directory) / str(ads), catalog, ads) as (home, repo, log):
                for name in chosen.engines:
                    if name == "spark" and (ads > chosen.spark_up_to or importlib.util.find_spec("pyspark") is None):
                        continue
                    built[name, ads] = _build(home, catalog, repo, log, name, recompute=True)
                stored = _build(home, catalog, repo, log, "inline", recompute=False)
                _report_size(report, ads, chosen, built, stored)
                _report_peer(report, ads, home.base / stored.report.base_version, stored)
            shutil.rmtree(Path(directory) / str(ads))
    _report_growth(report, chosen, built)
    report.note(f"seed {SEED}; four of five ads have a pin of their own, with an embedding of 64 numbers")
    report.note("documents/s per core: documents by CPU seconds of the builder and its pool")
    if "spark" in chosen.engines and importlib.util.find_spec("pyspark") is None:
        report.note("Spark was left out: the extra is not installed (pip install pyspark, Java 17)")
    if missing(TANTIVY):
        report.note("tantivy was left out: it is not installed (pip install tantivy)")
    return report.to_json("base-index", machine)


@contextmanager
def _filled(directory: Path, catalog: Catalog, ads: int) -> Iterator[tuple[Home, Repo, Log]]:
    home = Home.open(directory)
    with closing(open_embedded_log(home.log, home.wake)) as log, closing(open_embedded_repo(home, catalog)) as repo:
        ensure_topics(log)
        fill(home, catalog, repo, ads, SEED)
        yield home, repo, log


def _build(home: Home, catalog: Catalog, repo: Repo, log: Log, name: str, *, recompute: bool) -> _Measured:
    parallel = usable_processors()
    engine: Engine
    if name == "inline":
        engine, shards = InlineEngine(), 1
    elif name == "local":
        engine, shards = LocalEngine(parallel), parallel
    else:
        engine, shards = open_engine(name, master=f"local[{parallel}]"), parallel
    try:
        cpu, started = _cpu(), time.perf_counter()
        options = BuildOptions(recompute=recompute, force=True, shards=shards, keep=1)
        report = build_base_index(home, catalog, repo, log, options=options, engine=engine)
        seconds = time.perf_counter() - started
    finally:
        engine.close()
    return _Measured(report, seconds, _cpu() - cpu if name != "spark" else 0.0)


def _cpu() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def _report_size(
    report: Report, ads: int, sizes: Sizes, built: dict[tuple[str, int], _Measured], stored: _Measured
) -> None:
    names = {"inline": "one process", "local": f"{usable_processors()} processes", "spark": "Spark, local mode"}
    for name in sizes.engines:
        if (name, ads) not in built:
            continue
        one = built[name, ads]
        case = f"{ads:,} ads, handlers run again, {names[name]}"
        report.add(case, "documents/s", one.report.documents / one.seconds, more_is_better=True)
        if one.cpu_s:
            report.add(case, "documents/s per core", one.report.documents / one.cpu_s, more_is_better=True)
        for step, seconds in one.report.seconds.items():
            report.add(case, f"seconds to {step}", seconds)
    case = f"{ads:,} ads, stored documents, one process"
    report.add(case, "documents/s", stored.report.documents / stored.seconds, more_is_better=True)
    report.add(case, "bytes per document", stored.report.bytes / max(1, stored.report.documents))


def _report_peer(report: Report, ads: int, base: Path, stored: _Measured) -> None:
    if missing(TANTIVY):
        return
    peer = run_peer(TANTIVY, base)
    case, building = f"{ads:,} documents, indexing alone", stored.report.seconds["build"]
    report.add(
        case, "documents/s", stored.report.documents / building, TANTIVY, peer["documents"] / peer["seconds"],
        more_is_better=True,
    )  # fmt: skip
    report.add(
        case, "bytes per document", stored.report.bytes / max(1, stored.report.documents), TANTIVY,
        peer["bytes"] / max(1, peer["documents"]),
    )  # fmt: skip


def _report_growth(report: Report, sizes: Sizes, built: dict[tuple[str, int], _Measured]) -> None:
    few, many = sizes.ads[0], sizes.ads[-1]
    if few == many:
        return
    first, last = built[sizes.engines[0], few], built[sizes.engines[0], many]
    growth = (last.seconds / last.report.documents) / (first.seconds / first.report.documents)
    report.add(f"{many:,} ads against {few:,}", "time per document, times as long", growth)
