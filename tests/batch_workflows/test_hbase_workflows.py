"""Every workflow on HBase, killed -9 in the midst of its commits, comes to what it comes to on the embedded Repo."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from batch_workflows import gc
from batch_workflows.objects import Objects
from batch_workflows.parquet_snapshot import read_day
from batch_workflows.runs import RunStore
from catalog.model import COLLECTED
from catalog.values import decode
from cli.runtime import hbase_schema, open_repo, peer_id
from cli.settings import choose
from compose import ServerInfo
from manas import current_base
from messaging.headers import now_us
from messaging.home import Home
from messaging.topics import DELTAS
from storage_repo.hbase import apply_schema
from storage_repo.hbase.wal import remove_peer
from tests.batch_workflows.base_support import documents_of
from tests.batch_workflows.hbase_support import (
    Site,
    copied_home,
    damage,
    deltas_since,
    first_lines,
    loaded_home,
    site,
    tables_of,
)
from tests.batch_workflows.kill_support import Worker
from tests.batch_workflows.sync_support import state_of
from tests.end_to_end.oracle import RealAds

pytestmark = pytest.mark.timeout(900)
ADS = 200
# Moments at which runs are killed (see killed_worker): up to the ninth they take the lease, so 5 and 7 are amid that
# commit; each checkpoint afterwards has about nine.
LATER_S = 40 * 24 * 3600.0
"""After the change, at which the collector looks: beyond its limit of 30 days."""


@pytest.fixture(scope="module")
def loaded(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with the first of the real products and ads."""
    real, folder = RealAds(data), tmp_path_factory.mktemp("loaded")
    exports = {
        "flipkart_products": first_lines(real.products_csv, folder / "products.csv", ADS),
        "kag_facebook_ads": first_lines(real.ads_csv, folder / "ads.csv", ADS),
    }
    return loaded_home(folder / "home", exports)


@pytest.fixture(scope="module")
def embedded(loaded: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The ads on the embedded Repo: its workflows run whole."""
    with site(copied_home(loaded, tmp_path_factory.mktemp("embedded") / "home")) as opened:
        opened.settle()
        yield opened


@pytest.fixture(scope="module")
def hbase(hbase_server: ServerInfo, loaded: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The ads on HBase: its workflows are killed."""
    url = f"{hbase_server.url}&prefix=wf{os.urandom(3).hex()}_"
    with site(copied_home(loaded, tmp_path_factory.mktemp("hbase") / "home", url), killing=True) as opened:
        opened.settle()
        yield opened
    remove_peer(url, peer_id(url))


def assert_same(hbase: Site, embedded: Site) -> None:
    """Rows, documents and what is served are those of the embedded Repo, byte for byte."""
    (rows, served), (wanted, wanted_served) = state_of(hbase), state_of(embedded)
    for table in wanted:
        assert rows[table] == wanted[table], table
    assert served == wanted_served


def test_base_index(hbase: Site, embedded: Site) -> None:
    """A base built on HBase has the documents of one that was built on the embedded Repo, whatever was killed."""
    bases = []
    for one in (embedded, hbase):
        built = one.run("base-index", kills=[5, 14], engine="inline", range_rows=100, shards=2)
        assert built["counts"]["differing"] == 0
        home = one.pipeline.home
        bases.append(documents_of(home.base / str(current_base(home.base))))
        one.settle()
    assert bases[0] == bases[1] and len(bases[0]) == ADS
    assert_same(hbase, embedded)


def test_sync(hbase: Site, embedded: Site) -> None:
    """Rows that were lost, spoiled, invented and aged, in entities, indexes and documents, are found and put right."""
    healthy = state_of(hbase)
    for one in (embedded, hbase):
        damage(one)
    assert state_of(hbase) != healthy
    found = [one.run("sync", kills=[12, 40, 6], patience_s=30)["counts"]["unsynced"] for one in (embedded, hbase)]
    assert {"ad_group:missing_in_repo", "ad:different", "pin:extra_in_repo"} <= found[0].keys()
    hbase.settle()
    embedded.settle()
    assert state_of(hbase) == healthy
    assert_same(hbase, embedded)
    again = hbase.run("sync", patience_s=30)["counts"]
    assert again["unsynced"] == {} and again["ranges_differing"] == 0


def test_refresh(hbase: Site, embedded: Site) -> None:
    """Every document of the selection is made and published again, and is what it was."""
    for one in (embedded, hbase):
        ends = one.pipeline.backends.log.end_offsets(DELTAS)
        done = one.run("refresh", kills=[14, 27], table="ad")
        assert done["counts"]["rows"] == ADS
        one.settle()
        assert deltas_since(one.pipeline, ends) >= {row for row, _ in one.repo.snapshot().scan("ad")}
    assert_same(hbase, embedded)


def test_backfill(hbase: Site, embedded: Site, tmp_path: Path) -> None:
    """A signal of every ad comes from a file; the line of an ad that there is not is refused."""
    ads = [row for row, _ in embedded.repo.snapshot().scan("ad")]
    file = tmp_path / "signal.csv"
    with file.open("w", newline="") as handle:
        rows = [[ad, 100 + number] for number, ad in enumerate(ads)]
        csv.writer(handle).writerows([["id", "performance_version"], *rows, ["5", "1"]])
    for one in (embedded, hbase):
        done = one.run("backfill", kills=[14, 45], file=str(file), table="ad", signal="performance", version=1 << 55)
        assert done["counts"]["rows"] == ADS + 1 and done["counts"]["rejected"] == 1
        one.settle()
        cell = one.catalog.tables["ad"].columns["performance_version"].cell
        stored = {row: decode(cells[cell]) for row, cells in one.repo.snapshot().scan("ad", columns=[cell])}
        assert stored == {ad: 100 + number for number, ad in enumerate(ads)}
    assert_same(hbase, embedded)


def test_garbage_collection(hbase: Site, embedded: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Archived ads and what is left of deleted ones go, their index rows too; a dry run says so before."""
    ads = sorted(row for row, _ in embedded.repo.snapshot().scan("ad"))
    archived, deleted = ", ".join(ads[:60]), ", ".join(ads[60:65])
    wanted = {"retired:ad": 60, "deleted:ad": 5, "documents": 5}
    for one in (embedded, hbase):
        one.sql(f"UPDATE ads SET status = 'ARCHIVED' WHERE id IN ({archived}); DELETE FROM ads WHERE id IN ({deleted})")
        if one is embedded:
            monkeypatch.setattr(gc, "now_us", lambda: now_us() + round(LATER_S * 1e6))
        dry = one.run("gc", later_s=LATER_S)["counts"]["rows"]
        assert {kind: dry.get(kind) for kind in wanted} == wanted
        last = one.run("gc", kills=[7, 24], later_s=LATER_S, dry_run=False)
        # Handlers may run just then on the documents of what goes: such a one is left, and told, or written again.
        left = last["counts"]["changed_meanwhile"]
        if one is embedded:
            rows = last["counts"]["rows"]
            assert {**rows, "documents": rows.get("documents", 0) + left} == dry
            assert last["counts"]["index_rows"] == 2 * 60
        one.settle()
        [(kind, number)] = one.run("gc", later_s=LATER_S, dry_run=False)["counts"]["rows"].items()
        assert kind == "documents" and 60 <= number <= 65, "of the archived ads, and of some deleted ones"
        one.settle()
        assert one.run("gc", later_s=LATER_S)["counts"]["rows"] == {}
        gone = {row: cells for row, cells in one.repo.snapshot().scan("ad") if row in ads[:65]}
        assert gone.keys() == set(ads[:60]) and all(COLLECTED in cells for cells in gone.values())
    assert_same(hbase, embedded)
    assert hbase.run("sync", patience_s=30)["counts"]["unsynced"] == {}, "what was collected is known for the same"
    hbase.sql(f"UPDATE ads SET status = 'ACTIVE' WHERE id = {ads[0]}")
    embedded.sql(f"UPDATE ads SET status = 'ACTIVE' WHERE id = {ads[0]}")
    assert COLLECTED not in hbase.repo.snapshot().get("ad", ads[0])
    assert_same(hbase, embedded)


def test_snapshots_and_import(
    hbase: Site, hbase_server: ServerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot is of one moment, though killed and written under; as of its day it comes back, on either Repo."""
    there = str(tmp_path / "snapshots")
    before = tables_of(hbase.repo, hbase.catalog)

    def raise_bids() -> None:
        hbase.sql("UPDATE ad_groups SET bid_micros = bid_micros + 10000")

    hbase.run("snapshot", kills=[60, 250], between=raise_bids, to=there, day="2026-03-01", processes=1)
    after = tables_of(hbase.repo, hbase.catalog)
    hbase.run("snapshot", to=there, day="2026-03-02", processes=1)
    assert before["ad_group"] != after["ad_group"]
    assert tables_of(hbase.repo, hbase.catalog, read_day(Objects(there), "2026-03-01").snapshot_ts) == before
    for name, url in (("embedded", ""), ("hbase", f"{hbase_server.url}&prefix=im{os.urandom(3).hex()}_")):
        home = Home.open(tmp_path / name)
        if url:
            choose(home, repo=url)
            apply_schema(url, hbase_schema(hbase.catalog))
        with closing(Worker(home)) as worker, closing(open_repo(home, hbase.catalog)) as repo:
            imported = worker.run(
                RunStore(repo), "snapshot-import", [14, 20, 9], {"source": there, "as_of": "2026-03-01"}
            )
            assert imported["counts"]["verified"] is True and len(imported["attempts"]) == 4
            assert tables_of(repo, hbase.catalog) == before


def collect(site: Site) -> None:
    """Collect all that is old enough: rows first, then what handlers say of documents without them."""
    for _ in range(2):
        site.run("gc", later_s=LATER_S, dry_run=False)
        site.settle()


def test_retention_and_repair(hbase: Site) -> None:
    """Retention takes nothing that lives; a resync reads every row again and changes none, but that it brings back
    what was collected until it is collected again; a repair after a restore says that it is not for HBase."""
    collect(hbase)
    before = state_of(hbase)
    kept = hbase.run("collect-garbage", kills=[10])["counts"]
    assert {"versions_collected", "records_trimmed"} <= kept.keys()
    assert state_of(hbase) == before
    assert hbase.run("resync", kills=[10])["counts"]["rows"] > ADS
    hbase.settle()
    collect(hbase)
    assert state_of(hbase) == before
    with pytest.raises(AssertionError, match=r"a Repo on HBase gives no timestamp twice\. After a restore"):
        hbase.run("repair-after-restore")
