"""The same real ads on HBase and on the embedded Repo, served by all stages, and workflows that are killed on them."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batch_workflows.ads_import import load_csv
from batch_workflows.execution import execute
from batch_workflows.runs import RunRequest, RunStore
from catalog import Catalog, load_catalog
from catalog.model import DOCUMENT_BODY, INDEX_CELL, INTERNAL_TABLES, SOURCE_VERSION
from catalog.values import encode
from cli.inprocess import InProcess
from cli.runtime import hbase_schema
from cli.settings import choose
from cli.stages import hbase_proxy_arguments
from gateway import AdsDb
from messaging import open_embedded_log
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DELTAS, ensure_topics
from storage_repo import INDEX_SEPARATOR, Origin, Repo
from storage_repo.hbase import apply_schema
from storage_repo.hbase.wal import prepare_peer
from tests.batch_workflows.kill_support import Worker

STAGES = ("gateway", "updater", "wal_proxy", "argus", "manas")
Tables = dict[str, dict[str, dict[str, bytes]]]


def first_lines(source: Path, target: Path, count: int) -> Path:
    """Copy the header and the first rows of a CSV whose cells may have line ends in them."""
    with source.open(encoding="utf-8-sig", newline="") as read, target.open("w", newline="") as write:
        rows = csv.reader(read)
        writer = csv.writer(write)
        for _ in range(count + 1):
            writer.writerow(next(rows))
    return target


def loaded_home(root: Path, exports: Mapping[str, Path]) -> Home:
    """Make a home with real ads in its ads DB, and nothing in its Repo yet."""
    home = Home.open(root)
    db, log = AdsDb.open(home.ads_db), open_embedded_log(home.log, home.wake)
    ensure_topics(log)
    db.ensure_capture(load_catalog())
    for mapping, file in exports.items():
        assert load_csv(file, mapping, db, home.performance_db, log).rows_bad == 0
    log.close()
    db.close()
    return home


def copied_home(source: Home, root: Path, repo: str = "") -> Home:
    """Copy a loaded home, to the very versions of signals; `repo` is the URL of an HBase whose tables are made then."""
    shutil.copytree(source.root, root)
    home, catalog = Home.open(root), load_catalog()
    if repo:
        choose(home, repo=repo)
        apply_schema(repo, hbase_schema(catalog))
        prepare_peer(*hbase_proxy_arguments(home, catalog, {}))
    return home


@dataclass
class Site:
    """A home whose stages run; `run` runs a workflow on it, killed on the way if it is on HBase."""

    pipeline: InProcess
    worker: Worker | None = None

    @property
    def backends(self) -> Any:
        """What it rests on."""
        return self.pipeline.backends

    @property
    def catalog(self) -> Catalog:
        """Its declarations."""
        return self.pipeline.catalog

    @property
    def repo(self) -> Repo:
        """Its Repo."""
        return self.pipeline.backends.repo

    def settle(self) -> None:
        """Wait until nothing is on its way."""
        self.pipeline.until_idle()

    def sql(self, statement: str) -> None:
        """Change the ads DB as any application would, and wait until that has arrived."""
        self.pipeline.backends.ads_db.execute(statement)
        self.settle()

    def run(
        self,
        workflow: str,
        kills: Sequence[int] = (),
        later_s: float = 0.0,
        between: Callable[[], None] = lambda: None,
        **parameters: Any,
    ) -> Any:
        """Run a workflow to its end and return its record; see `Worker.run` for a home that has one."""
        if self.worker is not None:
            return self.worker.run(RunStore(self.repo), workflow, kills, parameters, later_s, between)
        request = RunRequest(workflow=workflow, parameters=parameters, who="test")
        return execute(self.pipeline.backends, request).to_json()


@contextmanager
def site(home: Home, *, killing: bool = False) -> Iterator[Site]:
    """Run the stages of a home."""
    worker = Worker(home) if killing else None
    try:
        with InProcess(home, load_catalog(), STAGES) as pipeline:
            yield Site(pipeline, worker)
    finally:
        if worker is not None:
            worker.close()


def tables_of(repo: Repo, catalog: Catalog, ts: int | None = None) -> Tables:
    """Return every cell of every table but the internal ones, as of a timestamp."""
    internal, snapshot = {name for name, _ in INTERNAL_TABLES}, repo.snapshot(ts)
    return {
        t: {row: dict(cells) for row, cells in snapshot.scan(t)} for t, _ in catalog.repo_tables() if t not in internal
    }


def deltas_since(pipeline: InProcess, ends: Mapping[int, int]) -> set[str]:
    """Return the documents that were published after some ends of the topic."""
    log = pipeline.backends.log
    return {
        pb.DocumentDelta.FromString(record.value).document_id
        for partition, start in ends.items()
        for record in log.read(DELTAS, partition, start, 100_000)
    }


def damage(site: Site) -> None:
    """Damage rows of every kind behind the pipeline's back; the same rows on every Repo with the same ads.

    Nothing that a signal brought goes: a sync has nothing to compare that with.
    """
    repo, catalog, snapshot = site.repo, site.catalog, site.repo.snapshot()
    ads, groups, pins = (
        [row for row, _ in snapshot.scan(table, columns=[SOURCE_VERSION])] for table in ("ad", "ad_group", "pin")
    )
    plain = {SOURCE_VERSION, *(c.cell for c in catalog.tables["pin"].columns.values() if c.signal is None)}
    column = {name: catalog.tables["ad"].columns[name].cell for name in ("status", "name")}
    reference = next(r for r in catalog.references() if (r.table, r.target) == ("ad", "ad_group"))
    index_rows = [row for row, _ in snapshot.scan(reference.index_table)]
    transaction = repo.begin(Origin("chaos"))
    for cell in snapshot.get("ad_group", groups[0]):  # lost
        transaction.delete("ad_group", groups[0], cell)
    transaction.put("ad", ads[1], column["status"], b"\xff\xff")  # does not parse
    transaction.put("ad", ads[2], column["name"], encode("old"))  # and no update can put it right
    transaction.put("ad", ads[2], SOURCE_VERSION, encode(1 << 60))
    for cell, value in snapshot.get("pin", pins[3], sorted(plain)).items():  # invented
        transaction.put("pin", "nobody-has-it", cell, value)
    transaction.delete(reference.index_table, index_rows[4], INDEX_CELL)
    transaction.put(reference.index_table, f"{ads[0]}{INDEX_SEPARATOR}{ads[5]}", INDEX_CELL, b"")
    transaction.put(catalog.document_table, ads[6], DOCUMENT_BODY, b"\x01")
    transaction.delete(catalog.document_table, ads[7], DOCUMENT_BODY)
    transaction.commit()
    site.settle()
