"""A generated home is one that the pipeline could have left: what benchmarks at size rest on."""

from __future__ import annotations

import shutil
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from argus import ArgusCore, Hint, load_registry
from argus.stage import open_sources
from batch_workflows.base_index import open_embedded_repo
from batch_workflows.sync_lag import Lag
from benchmarks import _base_repo
from benchmarks._base_repo import fill
from catalog import Catalog, LaneName, load_catalog
from catalog.keys import join_key
from catalog.model import RUN, SOURCE_VERSION, TIMELINE, signal_version_cell
from catalog.values import encode
from gateway import AdsDb, Change, Materializer, open_rows
from messaging import open_embedded_log
from messaging.headers import new_header
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from storage_repo import Repo
from storage_repo.feed import StoredFeed
from updater import UpdaterCore

ADS = 160
CATALOG = load_catalog()
STAMPS = {RUN, TIMELINE, SOURCE_VERSION, signal_version_cell("performance")}
"""When something came and ran, which differs from home to home."""


def rows_of(repo: Repo) -> dict[tuple[str, str], dict[str, bytes]]:
    """Return all cells of all declared tables and indexes; of stamps only that they are there."""
    snapshot = repo.snapshot()
    return {
        (table, row): {cell: b"" if cell in STAMPS else data for cell, data in cells.items()}
        for table, _ in CATALOG.repo_tables()
        for row, cells in snapshot.scan(table)
    }


def without_clock(rows: dict[tuple[str, str], dict[str, bytes]]) -> dict[tuple[str, str], dict[str, bytes]]:
    """Return rows without the cell that the reporting database's clock decides."""
    version = CATALOG.column("ad.performance_version").cell
    return {key: {cell: data for cell, data in row.items() if cell != version} for key, row in rows.items()}


def generate(root: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Generate a home of two blocks."""
    monkeypatch.setattr(_base_repo, "_BLOCK_ADS", ADS // 2)
    home = Home.open(root)
    with (
        closing(open_embedded_log(home.log, home.wake)) as log,
        closing(open_embedded_repo(home, CATALOG)) as repo,
    ):
        filled = fill(home, CATALOG, repo, log, ADS, 7)
        assert filled.ads == ADS
        assert filled.documents > 0.7 * ADS
    return home


def process(home: Home, catalog: Catalog, repo: Repo) -> None:
    """Send every row of the ads DB and every signal through the cores of Gateway, Updater and Argus."""
    updater, sources = UpdaterCore(repo, catalog), open_sources(home)
    with AdsDb.open(home.ads_db) as ads_db, closing(open_rows(ads_db, catalog)) as rows:
        for table in catalog.entity_tables():
            after, source = None, table.source
            while source and (keys := rows.keys(source.table, source.key, after, 100)):
                changes = [Change(n, source.table, join_key(key), 0) for n, key in enumerate(keys, 1)]
                updater.apply(Materializer(catalog).materialize(changes, rows).updates)
                after = keys[-1]
    registry = load_registry(catalog)
    ads = [row for row, _ in repo.snapshot().scan(catalog.root)]
    known = sources["performance"].lookup_many({int(ad): 0 for ad in ads})
    updater.apply(
        [
            pb.EntityUpdate(
                header=new_header(LaneName.LOW, 1), table="ad", row=str(ad), source="performance", source_version=1,
                columns=[pb.Column(name="performance_version", value=encode(1))],
            )
            for ad, history in known.items()
            if history is not None
        ]
    )  # fmt: skip
    core = ArgusCore(repo, registry, sources)
    for root in registry.plans:
        waiting = (row for row, _ in repo.snapshot().scan(root, columns=[SOURCE_VERSION]))
        while chunk := list(islice(waiting, 100)):
            core.process_hints(Hint(pb.Notification(table=root, row=row, refresh=True)) for row in chunk)
    for opened in sources.values():
        opened.close()


def test_it_holds_what_the_stages_would_have_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cell of every table and index, against a Repo that the stages' cores fill from the same ads DB."""
    generated, processed = generate(tmp_path / "generated", monkeypatch), Home.open(tmp_path / "processed")
    for source in (generated.ads_db, generated.performance_db):
        shutil.copy(source, getattr(processed, "ads_db" if source == generated.ads_db else "performance_db"))
    with (
        closing(open_embedded_repo(generated, CATALOG)) as ours,
        closing(open_embedded_repo(processed, CATALOG)) as theirs,
    ):
        process(processed, CATALOG, theirs)
        found, wanted = rows_of(ours), rows_of(theirs)
    found, wanted = without_clock(found), without_clock(wanted)
    assert found.keys() == wanted.keys()
    assert [key for key in wanted if found[key] != wanted[key]] == []


def test_nothing_is_in_flight_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gateway and WAL proxy count as having taken everything, so that a sync has nothing to wait for."""
    home = generate(tmp_path, monkeypatch)
    with (
        closing(open_embedded_log(home.log, home.wake)) as log,
        closing(open_embedded_repo(home, CATALOG)) as repo,
        AdsDb.open(home.ads_db) as ads_db,
    ):
        assert ads_db.last_change() > ADS
        assert Lag(ads_db, log, StoredFeed(repo, log), lambda _: None, patience_s=0.0).pass_by()


def test_the_seed_decides_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two homes of one seed hold the same cells, whatever process made which block."""
    cells = []
    for name in ("one", "two"):
        home = generate(tmp_path / name, monkeypatch)
        with closing(open_embedded_repo(home, CATALOG)) as repo:
            cells.append(without_clock(rows_of(repo)))
    assert cells[0] == cells[1]
