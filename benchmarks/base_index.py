"""`bench base-index`: from the embedded Repo to a verified base, with the handlers run again and without.

Every figure is of a whole build: snapshot, ranges, documents, shards, gates, publication, and then every file read
again and compared with its checksum. Reading is the handlers' work; building is what a search engine does too, so that
is what tantivy is held against. `ADSINDEX_BENCH_ADS=N` builds for N ads only, `ADSINDEX_BENCH_HOME=DIRECTORY` keeps the
generated home there and uses it again: a million ads take as long to generate as to index.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from batch_workflows.base_index import BaseReport, BuildOptions, build_base_index, open_embedded_repo
from batch_workflows.base_store import BaseStore
from batch_workflows.engines import Engine, InlineEngine, LocalEngine, open_engine, usable_processors
from benchmarks._base_repo import fill
from benchmarks._peers import missing, run_peer
from benchmarks._report import Report, machine_of
from catalog import Catalog, load_catalog
from messaging import Log, open_embedded_log
from messaging.home import Home
from messaging.topics import ensure_topics
from storage_repo.embedded import EmbeddedRepo

SEED = 7
TANTIVY = "tantivy"
_ROUNDS_UP_TO = 100_000
"""Larger sizes are built once: minutes even out what else the machine does."""
_CALLED = {"inline": "one process", "local": f"{usable_processors()} processes", "spark": "Spark, local mode"}
_progress = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many ads, on which engines, and how often."""

    ads: tuple[int, ...] = (10_000, 100_000)
    engines: tuple[str, ...] = ("inline", "local", "spark")
    inline_up_to: int = 100_000
    """With one process a million ads take twice as long, and tell nothing new."""
    rounds: int = 3
    """Of each build the median counts."""


QUICK = Sizes(ads=(200, 400), engines=("inline", "local"), rounds=1)


@dataclass(frozen=True, slots=True)
class _Measured:
    """One build."""

    report: BaseReport
    seconds: float
    """Until the base is published and verified."""
    verify_s: float
    cpu_s: float
    """Of this process and of its children that have ended; 0 where Spark's processes did the work."""
    memory_mb: float
    """Most that one of the processes has held so far, pages of the Repo's file included."""


def run(quick: bool, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the benchmark. Raises BenchmarkFailed."""
    chosen = sizes or (QUICK if quick else Sizes())
    if not quick and (wanted := os.environ.get("ADSINDEX_BENCH_ADS")):
        chosen = Sizes(ads=tuple(map(int, wanted.split(","))), engines=chosen.engines)
    report, catalog = Report(), load_catalog()
    built: dict[tuple[str, int], _Measured] = {}
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as directory:
        machine = machine_of(Path(directory))
        kept = os.environ.get("ADSINDEX_BENCH_HOME", "")
        for ads in chosen.ads:
            root = Path(kept or directory) / str(ads)
            with _filled(root, catalog, ads) as (home, repo, log):
                for name in _engines(chosen, ads):
                    rounds = chosen.rounds if ads <= _ROUNDS_UP_TO and name != "spark" else 1
                    taken = [_build(home, catalog, repo, log, name, recompute=True) for _ in range(rounds)]
                    built[name, ads] = _median(taken)
                    _tell(name, ads, built[name, ads])
                last = built[_engines(chosen, ads)[-1], ads]
                if ads <= chosen.inline_up_to:
                    built["stored", ads] = last = _build(home, catalog, repo, log, "inline", recompute=False)
                    _tell("stored", ads, last)
                _report_size(report, ads, built)
                alone = built.get(("inline", ads)) or built.get(("local", ads), last)
                _report_peer(report, ads, home.base / last.report.base_version, alone)
            if not kept:
                shutil.rmtree(root)
    _report_growth(report, chosen, built)
    report.note(f"seed {SEED}; four of five ads have a pin of their own, with an embedding of 64 numbers")
    report.note("handlers run again: nothing that was derived before is trusted; seconds include verifying all files")
    report.note("documents/s per core: documents by CPU seconds of the builder and its pool")
    if "spark" in chosen.engines and importlib.util.find_spec("pyspark") is None:
        report.note("Spark was left out: the extra is not installed (pip install pyspark, Java 17)")
    if missing(TANTIVY):
        report.note("tantivy was left out: it is not installed (pip install tantivy)")
    return report.to_json("base-index", machine)


def _engines(sizes: Sizes, ads: int) -> list[str]:
    left_out = {"inline"} if ads > sizes.inline_up_to else set()
    if importlib.util.find_spec("pyspark") is None:
        left_out.add("spark")
    return [name for name in sizes.engines if name not in left_out]


def _tell(name: str, ads: int, one: _Measured) -> None:
    documents, seconds = one.report.documents, one.report.seconds
    _progress.print(
        f"{ads:,} ads, {name}: {documents:,} documents, {one.seconds:.1f} s, {one.cpu_s:.1f} s of CPU, {seconds}, "
        f"verified in {one.verify_s:.1f} s, {one.report.bytes:,} bytes, {one.memory_mb:.0f} MB",
        highlight=False,
    )


def _median(taken: list[_Measured]) -> _Measured:
    middle = statistics.median_low(one.seconds for one in taken)
    return next(one for one in taken if one.seconds == middle)


@contextmanager
def _filled(directory: Path, catalog: Catalog, ads: int) -> Iterator[tuple[Home, EmbeddedRepo, Log]]:
    home = Home.open(directory)
    with closing(open_embedded_log(home.log, home.wake)) as log, closing(open_embedded_repo(home, catalog)) as repo:
        ensure_topics(log)
        filled = fill(home, catalog, repo, log, ads, SEED)
        _progress.print(f"{ads:,} ads generated in {filled.seconds:.0f} s ({filled.rows:,} rows)", highlight=False)
        yield home, repo, log


def _build(home: Home, catalog: Catalog, repo: EmbeddedRepo, log: Log, name: str, *, recompute: bool) -> _Measured:
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
        verified = BaseStore.of(home).verify(report.base_version)
        seconds = time.perf_counter() - started
    finally:
        engine.close()
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
    return _Measured(report, seconds, verified.seconds, _cpu() - cpu if name != "spark" else 0.0, memory)


def _cpu() -> float:
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        total += used.ru_utime + used.ru_stime
    return total


def _report_size(report: Report, ads: int, built: dict[tuple[str, int], _Measured]) -> None:
    for name, called in _CALLED.items():
        if (name, ads) not in built:
            continue
        one = built[name, ads]
        case = f"{ads:,} ads, handlers run again, {called}"
        report.add(case, "documents", one.report.documents)
        report.add(case, "seconds to a verified base", one.seconds)
        report.add(case, "documents/s", one.report.documents / one.seconds, more_is_better=True)
        if one.cpu_s:
            report.add(case, "documents/s per core", one.report.documents / one.cpu_s, more_is_better=True)
            report.add(case, "MB of memory, largest process", one.memory_mb)
        for step, seconds in one.report.seconds.items():
            report.add(case, f"seconds to {step}", seconds)
        report.add(case, "seconds to verify", one.verify_s)
    if stored := built.get(("stored", ads)):
        case = f"{ads:,} ads, stored documents, one process"
        report.add(case, "documents/s", stored.report.documents / stored.seconds, more_is_better=True)
        report.add(case, "bytes per document", stored.report.bytes / max(1, stored.report.documents))


def _report_peer(report: Report, ads: int, base: Path, ours: _Measured) -> None:
    """Hold the building of all shards against a peer that indexes the same documents by one thread."""
    if missing(TANTIVY):
        return
    peer = run_peer(TANTIVY, base)
    case, building = f"{ads:,} ads, indexing alone", ours.report.seconds["build"] * ours.report.shards
    report.add(
        case, "documents/s per process", ours.report.documents / building, TANTIVY,
        peer["documents"] / peer["seconds"], more_is_better=True,
    )  # fmt: skip
    report.add(
        case, "bytes per document", ours.report.bytes / max(1, ours.report.documents), TANTIVY,
        peer["bytes"] / max(1, peer["documents"]),
    )  # fmt: skip


def _report_growth(report: Report, sizes: Sizes, built: dict[tuple[str, int], _Measured]) -> None:
    few, many = sizes.ads[0], sizes.ads[-1]
    for name, called in _CALLED.items():
        if few != many and (name, few) in built and (name, many) in built:
            first, last = built[name, few], built[name, many]
            growth = (last.seconds / last.report.documents) / (first.seconds / first.report.documents)
            report.add(f"{many:,} ads against {few:,}, {called}", "time per document, times as long", growth)
