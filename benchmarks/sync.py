"""`bench sync`: rows compared per second, what a sync costs when nothing differs, and when a few rows do.

The peer is the plain way: every row of both sides read and compared one by one, without checksums.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import structlog

from argus import ArgusCore, Hint, load_registry
from argus.core import Sources
from argus.stage import open_sources
from batch_workflows._sync_common import Part, Sync
from batch_workflows.sample import generate_sample
from batch_workflows.sync_ads import AdsSync
from batch_workflows.sync_documents import DocumentSync, ServedSync
from batch_workflows.sync_index import IndexSync
from batch_workflows.sync_lag import Lag
from benchmarks._report import Report, machine_of
from catalog import Catalog, load_catalog
from catalog.keys import join_key
from catalog.model import SOURCE_VERSION
from catalog.values import encode
from gateway import AdsDb, Change, Materializer, open_rows
from messaging import Log, open_embedded_log
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import ensure_topics
from storage_repo import Origin, RepoSchema
from storage_repo.embedded import EmbeddedRepo
from storage_repo.feed import StoredFeed
from updater import UpdaterCore

SEED = 7
DIFFERING = 10
"""Rows of the largest table that are made to differ: a lost message here and there."""
PEER = "row by row"
_CHUNK = 1_000

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Sizes:
    """Ads of each round; each brings a pin, an image and its share of groups and campaigns."""

    ads: tuple[int, ...] = (2_000, 10_000)
    rounds: int = 2
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
    with tempfile.TemporaryDirectory(prefix="adsindex-bench-") as name:
        machine = machine_of(Path(name))
        for ads in chosen.ads:
            with filled(Path(name) / f"home-{ads}", ads) as home:
                _log.info("bench_filled", ads=ads)
                seconds[ads] = _measure(report, home, ads, chosen.rounds)
    first, last = chosen.ads[0], chosen.ads[-1]
    case = f"{last / first:g} times as many rows"
    report.add(case, "times as long, nothing differs", seconds[last] / seconds[first])
    report.note("Both sides are on this machine: what is not compared row by row is read once all the same.")
    return report.to_json("sync", machine)


@contextmanager
def filled(root: Path, ads: int) -> Iterator[Filled]:
    """Fill an ads DB, and the Repo from it by the stages' own cores."""
    home, catalog = Home.open(root), load_catalog()
    with (
        closing(open_embedded_log(home.log, home.wake)) as log,
        closing(EmbeddedRepo.open(home.store, RepoSchema.of(catalog.repo_tables()), wake_dir=home.wake)) as repo,
        AdsDb.open(home.ads_db) as ads_db,
    ):
        ensure_topics(log)
        generate_sample(ads_db, home.performance_db, log, ads, SEED)
        ads_db.ensure_capture(catalog)
        updater, version = UpdaterCore(repo, catalog), 0
        materializer = Materializer(catalog)
        with closing(open_rows(ads_db, catalog)) as rows:
            for table in catalog.entity_tables():
                after, source = None, table.source
                while source and (keys := rows.keys(source.table, source.key, after, _CHUNK)):
                    changes = [Change(version + n, source.table, join_key(key), 0) for n, key in enumerate(keys, 1)]
                    updater.apply(materializer.materialize(changes, rows).updates)
                    after, version = keys[-1], version + len(keys)
        sources = open_sources(home)
        core = ArgusCore(repo, load_registry(catalog), sources)
        for root_table in load_registry(catalog).plans:
            waiting = (row for row, _ in repo.snapshot().scan(root_table, columns=[SOURCE_VERSION]))
            while chunk := list(islice(waiting, _CHUNK)):
                notes = [pb.Notification(table=root_table, row=row, refresh=True) for row in chunk]
                log.publish(core.process_hints(Hint(note) for note in notes).records())
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
    if wrong := sum(sum(part.unsynced.values()) for part in (*checked, *plain, *index, *derived, *served)):
        report.note(f"{wrong} rows differed though nothing should")
    _damage(home)
    table = home.catalog.tables[home.catalog.root]
    (few,) = _best(1, lambda: [AdsSync(home.sync()).run(table)])
    (all_rows,) = _best(1, lambda: [AdsSync(home.sync()).row_by_row(table)])
    case = f"{ads:,} ads, {DIFFERING} rows of {table.name} differ"
    found = sum(few.unsynced.values()) + few.unsettled
    report.add(case, "rows found", found, PEER, sum(all_rows.unsynced.values()), more_is_better=True)
    report.add(case, "rows read", few.rows_read, PEER, all_rows.rows_read)
    report.add(case, "seconds", few.seconds, PEER, all_rows.seconds)
    return spent


def _damage(home: Filled) -> None:
    """Change some rows of the documents' root behind the pipeline's back, far from each other."""
    table = home.catalog.tables[home.catalog.root]
    cell = next(c.cell for c in table.columns.values() if c.source_table and c.name == "name")
    rows = [row for row, _ in home.repo.snapshot().scan(table.name, columns=[SOURCE_VERSION])]
    transaction = home.repo.begin(Origin("bench"))
    for row in rows[:: max(1, len(rows) // DIFFERING)][:DIFFERING]:
        transaction.put(table.name, row, cell, encode("something else"))
    transaction.commit()


def _best(rounds: int, measure: Any) -> list[Part]:
    """Return the parts of the fastest round."""
    measured: list[list[Part]] = [measure() for _ in range(rounds)]
    return min(measured, key=lambda parts: sum(part.seconds for part in parts))


def _total(parts: list[Part], name: str) -> float:
    return float(sum(getattr(part, name) for part in parts))
