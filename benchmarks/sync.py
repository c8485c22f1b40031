"""`bench sync`: rows compared per second, what a sync costs when nothing differs, and when a few rows do.

The peer is the plain way: every row of both sides read and compared one by one, without checksums.
`ADSINDEX_BENCH_ADS=N` takes N ads only (3.5 rows each), `ADSINDEX_BENCH_HOME=DIRECTORY` keeps the generated home there
and uses it again.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from argus.core import Sources
from argus.stage import open_sources
from batch_workflows._sync_common import Part, Sync
from batch_workflows.base_index import build_base_index
from batch_workflows.sync_ads import AdsSync
from batch_workflows.sync_documents import DocumentSync, ServedSync
from batch_workflows.sync_index import IndexSync
from batch_workflows.sync_lag import Lag
from benchmarks._base_repo import fill
from benchmarks._exceptions import BenchmarkFailed
from benchmarks._report import Report, machine_of
from catalog import Catalog, load_catalog
from catalog.model import SOURCE_VERSION
from catalog.values import encode
from gateway import AdsDb
from manas import current_base
from messaging import Log, open_embedded_log
from messaging.home import Home
from storage_repo import Origin, RepoSchema
from storage_repo.embedded import EmbeddedRepo
from storage_repo.feed import StoredFeed

SEED = 7
DIFFERING = 10
"""Rows of the largest table that are made to differ: a lost message here and there."""
PEER = "row by row"
_ROUNDS_UP_TO = 50_000
"""Ads; a larger size is measured once: minutes even out what else the machine does."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Ads of each round; each brings a pin, an image and its share of groups and campaigns."""

    ads: tuple[int, ...] = (10_000, 290_000)
    """The larger one has a million rows."""
    rounds: int = 3
    """Of each measurement the fastest counts: what else the machine does only adds."""


QUICK = Sizes(ads=(200, 400), rounds=1)


@dataclass(frozen=True, slots=True)
class Filled:
    """A home of which both sides hold the same."""

    home: Home
    catalog: Catalog
    repo: EmbeddedRepo
    log: Log
    ads_db: AdsDb
    sources: Sources

    def sync(self) -> Sync:
        """Return a sync that waits for nobody: nothing is in flight."""
        lag = Lag(self.ads_db, self.log, StoredFeed(self.repo, self.log), lambda _: None, patience_s=0.0)
        return Sync(self.home, self.catalog, self.repo, self.log, self.ads_db, lag, repair=False)


def run(quick: bool, sizes: Sizes | None = None) -> dict[str, Any]:
    """Run the benchmark."""
    chosen, report = sizes or (QUICK if quick else Sizes()), Report()
    seconds: dict[int, float] = {}
    if not quick and (wanted := os.environ.get("ADSINDEX_BENCH_ADS")):
        chosen = Sizes(ads=tuple(map(int, wanted.split(","))))
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        machine = machine_of(Path(name))
        kept = os.environ.get("ADSINDEX_BENCH_HOME", "")
        for ads in chosen.ads:
            with filled(Path(kept or name) / str(ads), ads) as home:
                _log.info("bench_filled", ads=ads)
                seconds[ads] = _measure(report, home, ads, chosen.rounds if ads <= _ROUNDS_UP_TO else 1)
    first, last = chosen.ads[0], chosen.ads[-1]
    if first != last:
        case = f"{last / first:g} times as many rows"
        report.add(case, "times as long, nothing differs", seconds[last] / seconds[first])
    report.note("Both sides are on this machine: what is not compared row by row is read once all the same.")
    return report.to_json("sync", machine)


@contextmanager
def filled(root: Path, ads: int) -> Iterator[Filled]:
    """Fill an ads DB and a Repo with the same, and publish a base of its documents."""
    home, catalog = Home.open(root), load_catalog()
    with (
        closing(open_embedded_log(home.log, home.wake)) as log,
        closing(EmbeddedRepo.open(home.store, RepoSchema.of(catalog.repo_tables()), wake_dir=home.wake)) as repo,
        AdsDb.open(home.ads_db) as ads_db,
    ):
        fill(home, catalog, repo, log, ads, SEED)
        if current_base(home.base) is None:  # what serving has is compared, too
            build_base_index(home, catalog, repo, log, recompute=False, force=True)
        sources = open_sources(home)
        yield Filled(home, catalog, repo, log, ads_db, sources)
        for opened in sources.values():
            opened.close()


def _measure(report: Report, home: Filled, ads: int, rounds: int) -> float:
    tables = home.catalog.entity_tables()
    checked = _best(rounds, lambda: [AdsSync(home.sync()).run(table) for table in tables])
    plain = _best(rounds, lambda: [AdsSync(home.sync()).row_by_row(table) for table in tables])
    rows, size = _total(checked, "rows"), _total(checked, "bytes_read")
    case = f"{ads:,} ads, {rows:,.0f} rows, nothing differs"
    spent, peer = _total(checked, "seconds"), _total(plain, "seconds")
    report.add(case, "ads DB against Repo: rows/s", rows / spent, PEER, rows / peer, more_is_better=True)
    report.add(case, "ads DB against Repo: seconds", spent, PEER, peer)
    report.add(case, "ads DB against Repo: rows read", _total(checked, "rows_read"), PEER, _total(plain, "rows_read"))
    report.add(case, "ads DB against Repo: MB read", size / 1e6)
    index = _best(rounds, lambda: [IndexSync(home.sync()).run(r) for r in home.catalog.references()])
    report.add(case, "indexes against entities: rows/s", _total(index, "rows") / _total(index, "seconds"))
    with closing(DocumentSync(home.sync(), home.sources)) as documents:
        derived = _best(rounds, lambda: [documents.run(root) for root in documents.roots])
    report.add(case, "documents against handlers: rows/s", _total(derived, "rows") / _total(derived, "seconds"))
    served = _best(rounds, lambda: [ServedSync(home.sync()).run()])
    report.add(case, "served against documents: rows/s", _total(served, "rows") / _total(served, "seconds"))
    parts = (*checked, *plain, *index, *derived, *served)
    if wrong := sum(sum(part.unsynced.values()) + part.unsettled + part.in_flight + part.failing for part in parts):
        raise BenchmarkFailed(f"{wrong} rows of {ads:,} ads differed or were not judged, though nothing differs")
    whole = sum(_total(parts, "seconds") for parts in (checked, index, derived, served))
    report.add(case, "all four: seconds", whole)
    stored = _damage(home)
    table = home.catalog.tables[home.catalog.root]
    (few,) = _best(1, lambda: [AdsSync(home.sync()).run(table)])
    (all_rows,) = _best(1, lambda: [AdsSync(home.sync()).row_by_row(table)])
    case = f"{ads:,} ads, {DIFFERING} rows of {table.name} differ"
    found = sum(few.unsynced.values()) + few.unsettled
    report.add(case, "rows found", found, PEER, sum(all_rows.unsynced.values()), more_is_better=True)
    report.add(case, "rows read", few.rows_read, PEER, all_rows.rows_read)
    report.add(case, "seconds", few.seconds, PEER, all_rows.seconds)
    _put(home, stored)
    return spent


def _damage(home: Filled) -> dict[str, bytes]:
    """Change some rows of the documents' root behind the pipeline's back, far apart; return what they had."""
    table, cell = home.catalog.root, _name_cell(home)
    rows = [row for row, _ in home.repo.snapshot().scan(table, columns=[SOURCE_VERSION])]
    chosen = rows[:: max(1, len(rows) // DIFFERING)][:DIFFERING]
    found = home.repo.snapshot().get_many([(table, row) for row in chosen], {table: [cell]})
    _put(home, dict.fromkeys(chosen, encode("something else")))
    return {row: found[table, row][cell] for row in chosen}


def _put(home: Filled, names: dict[str, bytes]) -> None:
    transaction = home.repo.begin(Origin("bench"))
    for row, name in names.items():
        transaction.put(home.catalog.root, row, _name_cell(home), name)
    transaction.commit()


def _name_cell(home: Filled) -> str:
    columns = home.catalog.tables[home.catalog.root].columns.values()
    return next(c.cell for c in columns if c.source_table and c.name == "name")


def _best(rounds: int, measure: Any) -> list[Part]:
    """Return the parts of the fastest round."""
    measured: list[list[Part]] = [measure() for _ in range(rounds)]
    best = min(measured, key=lambda parts: sum(part.seconds for part in parts))
    _log.info("bench_measured", rows=_total(best, "rows"), seconds=round(_total(best, "seconds"), 2))
    return best


def _total(parts: list[Part], name: str) -> float:
    return float(sum(getattr(part, name) for part in parts))
