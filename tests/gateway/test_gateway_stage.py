"""The Gateway at work: wake-ups, resuming after kill -9, gaps, an ads DB that is away, and the RPC mirror."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import grpc
import pytest

from gateway import AdsDbUnavailable, SqliteAdsDb
from messaging import Position, open_embedded_log
from messaging.home import Home
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, ensure_topics
from tests.gateway.gateway_support import (
    CATALOG,
    Captured,
    eventually,
    letters,
    published,
    running,
    values_of,
    wait_published,
)
from tests.gateway.test_gateway_capture import ONE_OF_EACH

ROOT = Path(__file__).resolve().parents[2]


def test_wait_is_woken_by_another_process(ads: Captured) -> None:
    """A commit of another process ends the wait, long before its time is over."""
    assert not ads.feed.wait(0, 0.05)
    code = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()"
    child = subprocess.Popen([sys.executable, "-c", code, str(ads.db.path), "INSERT INTO pins (id) VALUES ('p')"])
    assert ads.feed.wait(0, 120)
    assert child.wait(120) == 0
    assert ads.logged() == [("pins", "p")]


def test_wait_polls_where_the_kernel_reports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without inotify the files' state is looked at, and the wait ends as well."""
    monkeypatch.setattr("gateway._wal_watch.sys.platform", "darwin")
    ads = Captured(tmp_path / "ads.db")
    ads.app.execute("INSERT INTO pins (id) VALUES ('p')")
    assert ads.feed.wait(0, 5)
    assert not ads.feed.wait(1, 0.1)
    ads.close()


def test_trim_keeps_numbering(ads: Captured) -> None:
    """Trimmed changes are gone, and the next one is numbered after them even when none is left."""
    ads.app.executemany("INSERT INTO pins (id) VALUES (?)", [(f"p{i}",) for i in range(10)])
    assert ads.feed.trim(4) == 4
    assert (ads.feed.start(), ads.feed.end()) == (5, 10)
    assert ads.feed.trim(10) == 6
    assert ads.feed.start() == 11
    ads.app.execute("DELETE FROM pins WHERE id = 'p1'")
    assert [c.seq for c in ads.changes()] == [11]


def test_replaced_file_is_noticed(ads: Captured, tmp_path: Path) -> None:
    """A database file that was replaced is an error, not a feed that is silent for ever."""
    ads.db.path.rename(tmp_path / "moved.db")
    with pytest.raises(AdsDbUnavailable, match="gone"):
        ads.feed.wait(0, 5)


def test_stage_publishes_whole_path(home: Home) -> None:
    """What is committed to the ads DB is published with the Gateway's hop, and counted."""
    with running(home) as (context, log, _):
        SqliteAdsDb(home.ads_db).execute(ONE_OF_EACH + "UPDATE ads SET status = 'WHAT';")
        wait_published(home, log)
        updates = {(u.table, u.row): u for u in published(log)}
        assert len(updates) == 6
        (hop,) = updates["ad", "4"].header.hops
        assert hop.stage == "gateway"
        assert updates["ad", "4"].header.origin_us <= hop.entered_us <= hop.left_us
        assert [letter.reason for letter in letters(log)] == ["value_not_allowed"]
        assert context.metrics.counters["changes"] == 9
        assert context.metrics.counters["dead_letters:value_not_allowed"] == 1


def test_rpc_mirror(home: Home) -> None:
    """The mirror materializes what it is given; a dry run publishes nothing; bad keys come back as dead letters."""
    with running(home) as (_, log, port), grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        SqliteAdsDb(home.ads_db).execute(ONE_OF_EACH)
        wait_published(home, log)
        stub = rpc.GatewayStub(channel)
        changes = [pb.Change(source_table="ads", key="4"), pb.Change(source_table="ads", key="x")]
        before = len(published(log))
        reply = stub.Materialize(pb.ChangeBatch(changes=changes, dry_run=True), timeout=20)
        assert values_of(reply.updates[0])["pin_id"] == "p"
        assert reply.updates[0].source_version == 8
        assert [letter.reason for letter in reply.dead_letters] == ["bad_key"]
        assert len(published(log)) == before
        stub.Materialize(pb.ChangeBatch(changes=changes), timeout=20)
        assert len(published(log)) == before + 1
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            stub.Materialize(pb.ChangeBatch(changes=[pb.Change()] * 10_001), timeout=20)
        ahead = pb.Change(source_table="ads", key="4", position=10**15)
        with pytest.raises(grpc.RpcError, match="beyond the change feed's end"):
            stub.Materialize(pb.ChangeBatch(changes=[ahead]), timeout=20)
        assert len(published(log)) == before + 1


def test_log_that_lost_its_position_resyncs(home: Home) -> None:
    """When the change table does not reach back to the position, every row is enqueued again under newer versions."""
    ads = Captured(home.ads_db)
    ads.db.execute(ONE_OF_EACH)
    ads.feed.trim(5)
    with running(home) as (context, log, _):
        wait_published(home, log)
        versions = {(u.table, u.row): u.source_version for u in published(log)}
        assert len(versions) == 6
        assert min(versions.values()) > 5
        assert context.metrics.counters["resyncs"] == 1
    ads.close()


def test_replaced_ads_db_keeps_versions_growing(home: Home) -> None:
    """An ads DB that starts counting anew behind a published position is numbered on from there."""
    with open_embedded_log(home.log, home.wake) as log:
        ensure_topics(log)
        log.set_committed([Position(GATEWAY_GROUP, CHANGE_FEED, 0, 1_001)])
    with SqliteAdsDb.open(home.ads_db) as db:
        db.execute(ONE_OF_EACH)
    with running(home) as (context, log, _):
        eventually(lambda: len(published(log)) == 6)
        assert min(u.source_version for u in published(log)) == 1_001
        db.execute("UPDATE pins SET title = 'x'")
        eventually(lambda: len(published(log)) == 7)
        assert max(u.source_version for u in published(log)) == 1_007
        assert context.metrics.counters["resyncs"] == 1


def test_lost_changes_in_the_middle_resync(home: Home) -> None:
    """Changes that somebody deleted from the change table are noticed, and every row is sent again."""
    ads = Captured(home.ads_db)
    ads.db.execute(ONE_OF_EACH)
    ads.app.execute("DELETE FROM _adsindex_changes WHERE seq IN (3, 7)")
    with running(home) as (context, log, _):
        wait_published(home, log)
        assert {(u.table, u.row) for u in published(log)} >= {("pin", "p"), ("campaign", "2")}
        assert context.metrics.counters["resyncs"] == 1
    ads.close()


def test_ads_db_away_and_back(home: Home, tmp_path: Path) -> None:
    """While the ads DB is away the stage waits, makes no empty one, and goes on when it is back."""
    with running(home) as (context, log, _):
        db = SqliteAdsDb(home.ads_db)
        db.execute(ONE_OF_EACH)
        wait_published(home, log)
        db.close()
        away = tmp_path / "away"
        away.mkdir()
        for file in home.root.glob("ads.db*"):
            file.rename(away / file.name)
        eventually(lambda: context.metrics.gauges["ads_db_available"] == 0)
        assert not home.ads_db.exists()
        for file in away.iterdir():
            file.rename(home.root / file.name)
        eventually(lambda: context.metrics.gauges["ads_db_available"] == 1)
        SqliteAdsDb(home.ads_db).execute("UPDATE pins SET title = 'back'")
        eventually(lambda: any(values_of(u).get("title") == "back" for u in published(log)))
        assert context.metrics.counters["resyncs"] == 0


def test_huge_batch_is_published_in_parts(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch over the size limit goes out in halves, each with its position."""
    monkeypatch.setattr("gateway.stage.MAX_PUBLISH_BYTES", 50_000)
    with running(home) as (context, log, _):
        SqliteAdsDb(home.ads_db).execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40) "
            "INSERT INTO pins (id, description) SELECT 'p' || i, hex(zeroblob(10000)) FROM n"
        )
        wait_published(home, log)
        assert len(published(log)) == 40
        assert context.metrics.histograms["publish_us"].count >= 16


@pytest.mark.stress
def test_killed_in_mid_load(home: Home) -> None:
    """kill -9 again and again under load: no change is missed, none is published twice, versions only grow."""
    rng = random.Random(7)
    SqliteAdsDb.open(home.ads_db).ensure_capture(CATALOG)
    app = sqlite3.connect(home.ads_db, isolation_level=None, timeout=20)
    worker = Path(__file__).with_name("gateway_worker.py")
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    log = open_embedded_log(home.log, home.wake)
    ensure_topics(log)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, str(worker), str(home.root)], env=environment, stdout=subprocess.DEVNULL
        )

    def write(count: int) -> None:
        app.execute("BEGIN")
        for _ in range(count):
            key = rng.randrange(1, 400)
            if rng.random() < 0.1:
                app.execute("DELETE FROM pins WHERE id = ?", (f"p{key}",))
            else:
                row = (f"p{key}", f"title {rng.random()}", rng.randrange(10**9))
                app.execute("REPLACE INTO pins (id, title, price_micros) VALUES (?, ?, ?)", row)
        app.execute("COMMIT")

    behind = 0
    for _ in range(4):
        process = start()
        position = log.committed(GATEWAY_GROUP, CHANGE_FEED)[0]
        for _ in range(rng.randrange(3, 9)):
            write(rng.randrange(1, 300))
        # Killed while it works: it has published something of this round, and is behind the writer.
        eventually(lambda position=position: log.committed(GATEWAY_GROUP, CHANGE_FEED)[0] > position)  # type: ignore[misc]
        write(rng.randrange(100, 1500))
        process.kill()
        process.wait(20)
        end = app.execute("SELECT max(seq) FROM _adsindex_changes").fetchone()[0]
        behind += log.committed(GATEWAY_GROUP, CHANGE_FEED)[0] <= end
    assert behind, "no kill came while it had work to do"
    process = start()
    write(50)
    wait_published(home, log)
    process.kill()
    process.wait(20)

    versions: dict[str, list[int]] = defaultdict(list)
    last: dict[str, pb.EntityUpdate] = {}
    for update in published(log):
        versions[update.row].append(update.source_version)
        last[update.row] = update
    for row, sent in versions.items():
        assert sent == sorted(set(sent)), row
    newest = dict(app.execute("SELECT key, max(seq) FROM _adsindex_changes GROUP BY key"))
    assert {row: sent[-1] for row, sent in versions.items()} == newest
    source = {row: (title, price) for row, title, price in app.execute("SELECT id, title, price_micros FROM pins")}
    served = {
        row: (values_of(update)["title"], values_of(update)["price_micros"])
        for row, update in last.items()
        if not update.deleted
    }
    assert served == source
    assert len(newest) > 300
    log.close()
    app.close()
