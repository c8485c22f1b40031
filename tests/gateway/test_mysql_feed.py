"""The binlog as a change feed: transactions, positions, what has no row events, and what the server may not do."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pymysql
import pytest

from batch_workflows.refresh import Resynced, resync
from catalog.model import SOURCE_VERSION
from catalog.values import encode
from compose import ServerInfo
from gateway import PositionLost, request_missing, request_resync
from gateway._binlog_rows import TableMap, table_of
from gateway._mysql_rows import MysqlRowSource
from gateway.binlog import SESSION_BITS
from storage_repo import Origin, RepoSchema
from storage_repo.embedded import EmbeddedRepo
from tests.gateway.gateway_support import values_of
from tests.gateway.mysql_support import Ads, Tail, newest, numbers, on_both_servers, run, seed

pytestmark = on_both_servers


def test_one_message_per_entity_of_a_transaction(mysql: Ads, tail: Tail) -> None:
    """Rows of two tables of one entity, written several times in one transaction, give one change and one message."""
    mysql.transaction(
        "INSERT INTO campaigns (id, advertiser_id, name) VALUES (1, 1, 'a')",
        "INSERT INTO budgets (campaign_id, daily_micros) VALUES (1, 5)",
        "UPDATE campaigns SET name = 'b'",
        "UPDATE budgets SET daily_micros = 6",
    )
    changes, updates, letters = tail.drain()
    assert [(c.source_table, c.key) for c in changes] == [("campaigns", 1)]
    assert [(u.table, u.row) for u in updates] == [("campaign", "1")]
    assert not letters
    values = values_of(updates[0])
    assert (values["name"], values["budget_daily_micros"]) == ("b", 6)


def test_rolled_back_and_foreign_rows_are_absent(mysql: Ads, tail: Tail, server: ServerInfo) -> None:
    """What was rolled back, and what happens in another database, is no change; the position follows all the same."""
    other = Ads(server.url)
    mysql.app.begin()
    run(mysql.app, "INSERT INTO campaigns (id, advertiser_id) VALUES (1, 1)")
    mysql.app.rollback()
    before = tail.stored()["pos"]
    other.run("INSERT INTO campaigns (id, advertiser_id) VALUES (9, 9)")
    changes, _, _ = tail.drain()
    other.close()
    assert changes == []
    assert tail.stored()["pos"] > before


def test_key_change_touches_both_entities(mysql: Ads, tail: Tail) -> None:
    """A row whose key changes deletes the old entity and makes the new one."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)", "UPDATE ads SET id = 2")
    tail.drain()
    assert {k: v is not None for k, v in newest(tail.log).items() if k[0] == "ad"} == {
        ("ad", "1"): False,
        ("ad", "2"): True,
    }


def test_keys_are_compared_byte_by_byte(mysql: Ads, tail: Tail) -> None:
    """Keys that differ in case or by Unicode are different entities, and null columns do not shift the key."""
    keys = ["aB", "Ab", "ß", "ss", "键", "🦊"]
    for key in keys:
        mysql.run(f"INSERT INTO pins (id, title) VALUES ('{key}', NULL)")
    tail.drain()
    assert {row for table, row in newest(tail.log) if table == "pin"} == set(keys)


@pytest.mark.parametrize("by_file", [False, True])
def test_position_is_of_transaction_ends(mysql: Ads, tail: Tail, tmp_path: Path, by_file: bool) -> None:
    """Within a large transaction no position is stored; stopped there, all of it comes again with higher numbers."""
    tail.close()
    tail = Tail(mysql, tmp_path / "other", by_file=by_file)
    tail.drain()
    seed(mysql, 1)
    tail.drain()
    before = tail.stored()
    assert bool(before["gtid"]) is not by_file
    mysql.run(f"INSERT INTO ads (id, ad_group_id) SELECT seq + 10, 1 FROM {numbers(6000)}")
    half: list[object] = []

    def some(batch: list[object], _: object) -> bool:
        half.extend(batch)
        return len(half) > 1000

    tail.until(some)  # type: ignore[arg-type]
    assert {k: tail.stored()[k] for k in ("file", "pos", "gtid")} == {k: before[k] for k in ("file", "pos", "gtid")}
    last = tail.last
    tail.reopen()
    changes, _, _ = tail.drain()
    assert len([c for c in changes if c.source_table == "ads"]) == 6_000
    assert changes[0].seq > last
    assert changes[0].seq >> SESSION_BITS > last >> SESSION_BITS
    tail.close()


def test_hundred_thousand_rows_in_bounded_memory(mysql: Ads, tail: Tail) -> None:
    """A transaction of 100,000 rows is read in pieces: every row comes once, and memory hardly grows."""
    mysql.run(f"INSERT INTO ads (id, ad_group_id, name) SELECT seq, 1, REPEAT('x', 200) FROM {numbers(100_000)}")
    deadline = time.monotonic() + 120
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    keys: Counter[object] = Counter()
    most = 0
    while len(keys) < 100_000:
        changes = tail.feed.read(tail.last, 2000)
        keys.update(c.key for c in changes)
        most = max(most, len(tail.feed._live) + tail.feed._running().waiting)
        tail.last = changes[-1].seq if changes else tail.last
        assert tail.feed.stored(tail.last) is None or len(keys) == 100_000
        assert time.monotonic() < deadline
        tail.feed.wait(tail.last, 0.1)
    assert set(keys.values()) == {1}
    assert most <= 35_000
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 120_000, f"{grown_kib} KiB"


def test_rows_read_are_never_older_than_their_event(mysql: Ads, tail: Tail) -> None:
    """A server may send a commit before it is visible: no insert is ever taken for a deletion, by snapshot or lock."""
    locking = MysqlRowSource(mysql.db, tail.catalog, locking=True)
    stop = threading.Event()

    def write() -> None:
        app = Ads(mysql.url, name=mysql.name)
        number = 0
        while not stop.is_set():
            number += 1
            app.run(f"INSERT INTO ads (id, ad_group_id) VALUES ({number}, 1)")
        app.close(drop=False)

    writer = threading.Thread(target=write)
    writer.start()
    inserted = deleted = 0
    end = time.monotonic() + 4
    plain, turn = tail.rows, 0
    while time.monotonic() < end:
        turn += 1
        tail.rows = locking if turn % 2 else plain
        _, result = tail.once(5)
        inserted += sum(u.table == "ad" and not u.deleted for u in result.updates)
        deleted += sum(u.deleted for u in result.updates)
        tail.feed.wait(tail.last, 0.05)
    stop.set()
    writer.join()
    tail.rows = plain
    locking.close()
    assert inserted > 200
    assert deleted == 0


def test_schema_change_in_mid_stream(mysql: Ads, tail: Tail) -> None:
    """Rows before, between and after ALTER TABLEs are read rightly even when all are read after the last of them."""
    mysql.run(
        "INSERT INTO ads (id, ad_group_id) VALUES (1, 1)",
        "ALTER TABLE ads ADD COLUMN first_one VARCHAR(300) DEFAULT 'x' FIRST, ADD COLUMN last_one BIGINT",
        "INSERT INTO ads (first_one, id, ad_group_id, last_one) VALUES (REPEAT('y', 299), 2, 1, 3)",
        "ALTER TABLE ads DROP COLUMN first_one, MODIFY COLUMN name VARCHAR(500) NOT NULL DEFAULT ''",
        "INSERT INTO ads (id, ad_group_id, name) VALUES (3, 1, 'three')",
    )
    tail.drain()
    assert {row: v["name"] for (t, row), v in newest(tail.log).items() if t == "ad" and v} == {
        "1": "",
        "2": "",
        "3": "three",
    }


def test_altered_mapped_column_sends_its_rows_again(mysql: Ads, tail: Tail) -> None:
    """An ALTER TABLE converts values without row events: the table is sent again; one of other columns is not."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
    tail.drain()
    mysql.run("ALTER TABLE ads ADD COLUMN note TEXT")
    changes, _, _ = tail.drain()
    assert changes == []
    mysql.run("ALTER TABLE ads MODIFY COLUMN name VARCHAR(100) NOT NULL DEFAULT 'unnamed'")
    changes, _, _ = tail.drain()
    assert [(c.source_table, c.key, c.backfill) for c in changes] == [("ads", 1, True)]


def test_dropped_mapped_column(mysql: Ads, tail: Tail) -> None:
    """Without a mapped column an entity keeps its state and its changes are dead letters; mended, all rows come."""
    mysql.run("INSERT INTO pins (id, title) VALUES ('p', 'old')", "INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
    tail.drain()
    mysql.run("ALTER TABLE pins DROP COLUMN brand", "UPDATE pins SET title = 'new'", "UPDATE ads SET name = 'n'")
    _, updates, letters = tail.drain()
    assert [(u.table, u.row) for u in updates] == [("ad", "1")]
    assert [(x.reason, x.row) for x in letters] == [("schema_mismatch", "p")]
    assert "pins.brand" in letters[0].error
    state = newest(tail.log)[("pin", "p")]
    assert state is not None and state["title"] == "old"
    mysql.run("ALTER TABLE pins ADD COLUMN brand VARCHAR(255) DEFAULT 'b'")
    tail.drain()
    state = newest(tail.log)[("pin", "p")]
    assert state is not None and (state["title"], state["brand"]) == ("new", "b")


@pytest.mark.parametrize(
    ("session", "statement"),
    [
        ("binlog_row_image = 'MINIMAL'", "UPDATE ads SET name = 'changed'"),
        ("binlog_row_image = 'NOBLOB'", "UPDATE pins SET brand = 'changed'"),
        ("binlog_format = 'STATEMENT'", "UPDATE ads SET name = 'changed' WHERE id = 1"),
    ],
)
def test_session_that_logs_otherwise(mysql: Ads, tail: Tail, mysql_admin: Any, session: str, statement: str) -> None:
    """A session may log partial rows, or statements: whatever it logs, the rows it changed are sent."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)", "INSERT INTO pins (id) VALUES ('p')")
    tail.drain()
    run(mysql_admin, f"USE {mysql.name}", f"SET SESSION {session}", statement)
    tail.drain()
    states = newest(tail.log)
    found = run(mysql.app, "SELECT a.name, p.brand FROM ads a, pins p")[0]
    assert "changed" in found
    assert ((states["ad", "1"] or {})["name"], (states["pin", "p"] or {})["brand"]) == found


def test_session_that_logs_json_in_pieces(mysql: Ads, tail: Tail, kind: str, mysql_admin: Any) -> None:
    """MySQL's partial JSON updates have no whole rows: their table is sent again, and the stream goes on."""
    if kind == "mysql":  # MariaDB has nothing like it: its JSON is text
        with pytest.raises(pymysql.err.OperationalError, match="Unknown system variable"):
            run(mysql_admin, "SET SESSION binlog_row_value_options = 'PARTIAL_JSON'")
        return
    mysql.run("ALTER TABLE pins ADD COLUMN js JSON", "INSERT INTO pins (id, js) VALUES ('p', '{\"a\": [1, 2, 3]}')")
    tail.drain()
    run(mysql_admin, f"USE {mysql.name}", "SET SESSION binlog_row_value_options = 'PARTIAL_JSON'")
    run(mysql_admin, "UPDATE pins SET js = JSON_SET(js, '$.a[1]', 7), brand = 'changed'")
    changes, _, _ = tail.drain()
    assert [(c.source_table, c.key, c.backfill) for c in changes] == [("pins", "p", True)]
    assert (newest(tail.log)["pin", "p"] or {})["brand"] == "changed"


def test_truncate_is_never_silent(mysql: Ads, tail: Tail, capsys: pytest.CaptureFixture[str]) -> None:
    """TRUNCATE has no row events: it is said aloud and the table is sent again."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
    tail.drain()
    mysql.run("TRUNCATE TABLE ads", "INSERT INTO ads (id, ad_group_id) VALUES (2, 1)")
    changes, _, _ = tail.drain()
    assert ("ads", 2, True) in [(c.source_table, c.key, c.backfill) for c in changes]
    assert "binlog_rows_missing" in capsys.readouterr().out


def test_xa_rows_come_when_they_are_committed(mysql: Ads, tail: Tail) -> None:
    """A prepared XA transaction is invisible; its rows come with XA COMMIT, also when the reader started in between."""
    mysql.run("XA START 'a'", "INSERT INTO ads (id, ad_group_id) VALUES (1, 1)", "XA END 'a'", "XA PREPARE 'a'")
    other = Ads(mysql.url, name=mysql.name)
    other.run("INSERT INTO ads (id, ad_group_id) VALUES (2, 1)")
    tail.until(lambda changes, _: any(c.key == 2 for c in changes))
    tail.reopen()
    mysql.run("XA COMMIT 'a'")
    tail.until(lambda changes, _: any(c.key == 1 for c in changes))
    other.close(drop=False)
    assert newest(tail.log)["ad", "1"] is not None


def test_purged_binlog_is_an_error_and_a_resync_mends_it(mysql: Ads, tail: Tail, mysql_admin: Any) -> None:
    """With the position purged the feed stops and says what to do; a resync sends everything and goes on."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
    tail.drain()
    tail.feed.close()
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (2, 1)")
    run(mysql_admin, "FLUSH BINARY LOGS")
    newest_file = run(mysql_admin, "SHOW MASTER STATUS")[0][0]
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (3, 1)")
    deadline = time.monotonic() + 120
    while run(mysql_admin, f"PURGE BINARY LOGS TO '{newest_file}'", "SHOW BINARY LOGS")[0][0] != newest_file:
        assert time.monotonic() < deadline
    with pytest.raises(PositionLost, match="Run the resync workflow"):
        tail.reopen()
        tail.until(lambda *_: False, 5)
    assert request_resync(mysql.db, tail.catalog, tail.log) == 3
    tail.reopen()
    tail.drain()
    assert {row for table, row in newest(tail.log) if table == "ad"} == {"1", "2", "3"}


def test_resync_of_a_running_feed(mysql: Ads, tail: Tail) -> None:
    """Asked while the feed runs, every row is sent again once, in the low lane."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
    tail.drain()
    request_resync(mysql.db, tail.catalog, tail.log)
    tail.feed._looked = 0.0
    changes, _, _ = tail.drain()
    assert [(c.key, c.backfill) for c in changes if c.source_table == "ads"] == [(1, True)]
    assert tail.stored()["resync"] == 1
    tail.reopen()
    assert not tail.feed.snapshot_pending


def test_keys_that_the_ads_db_lacks_are_sent_as_deleted(mysql: Ads, tail: Tail, mysql_admin: Any) -> None:
    """Rows that went without a row event are deleted on request; what is there, and comes back, is not."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1), (2, 1), (3, 1)")
    tail.drain()
    run(mysql_admin, "SET SESSION sql_log_bin = 0", f"DELETE FROM {mysql.name}.ads WHERE id > 1")
    table = tail.catalog.tables["ad"]
    assert request_missing(mysql.db, tail.catalog, tail.log, table, [1, 2, 3]) == 2
    assert {row: state is not None for (name, row), state in newest(tail.log).items() if name == "ad"} == {
        "1": True,
        "2": False,
        "3": False,
    }
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (2, 1)")
    tail.drain()
    assert newest(tail.log)["ad", "2"] is not None


def test_resync_finds_what_only_the_repo_has(mysql: Ads, tail: Tail, tmp_path: Path) -> None:
    """Rows of the Repo that the database lacks become deletes, keys of several types; the others are counted."""
    catalog = tail.catalog
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)", "INSERT INTO pins (id) VALUES ('p')")
    tail.drain()
    schema = RepoSchema.of(catalog.repo_tables())
    with contextlib.closing(EmbeddedRepo.open(tail.home.store, schema, wake_dir=tail.home.wake)) as repo:
        transaction = repo.begin(Origin("test", "", origin_us=1))
        for table, row in (("ad", "1"), ("ad", "2"), ("pin", "p"), ("pin", "it's gone")):
            transaction.put(table, row, SOURCE_VERSION, encode(1))
        transaction.commit()
        assert resync(mysql.db, catalog, tail.log, repo) == Resynced(rows=2, gone=2)
    states = newest(tail.log)
    assert (states["ad", "2"], states["pin", "it's gone"]) == (None, None)
    assert states["ad", "1"] is not None


def test_schema_version_follows_ddl(mysql: Ads, tail: Tail) -> None:
    """The Gateway looks at the schema again after DDL, and not after rows."""
    before = tail.feed.schema_version()
    tail.drain()
    assert tail.feed.schema_version() == before
    mysql.run("ALTER TABLE ads ADD COLUMN more INT")
    tail.drain()
    assert tail.feed.schema_version() > before


def test_table_maps_are_parsed_once(mysql: Ads, tail: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal TABLE_MAP events are parsed once however many there are, and a changed table is parsed anew."""
    parsed: list[str] = []
    original = TableMap.__init__

    def counting(self: TableMap, raw: bytes, flavour: str) -> None:
        original(self, raw, flavour)
        parsed.append(f"{self.schema}.{self.table}:{len(self.columns)}")

    monkeypatch.setattr(TableMap, "__init__", counting)
    table_of.cache_clear()
    for i in range(50):
        mysql.run(f"INSERT INTO ads (id, ad_group_id) VALUES ({i + 1}, 1)")
    mysql.run("ALTER TABLE ads ADD COLUMN more INT FIRST", "INSERT INTO ads (id, ad_group_id) VALUES (99, 1)")
    changes, _, _ = tail.drain()
    assert [c.key for c in changes if c.source_table == "ads"] == [*range(1, 51), 99]
    own = Counter(name for name in parsed if name.startswith(f"{mysql.name}.ads:"))
    assert own == {f"{mysql.name}.ads:6": 1, f"{mysql.name}.ads:7": 1}


def test_cascades_are_said_aloud(mysql: Ads, tail: Tail, capsys: pytest.CaptureFixture[str]) -> None:
    """A foreign key that changes rows without logging them is reported at start; RESTRICT is none."""
    mysql.run("ALTER TABLE ads ADD CONSTRAINT quiet FOREIGN KEY (ad_group_id) REFERENCES ad_groups (id)")
    tail.reopen()
    assert "binlog_cascades" not in capsys.readouterr().out
    mysql.run(
        "ALTER TABLE ads DROP FOREIGN KEY quiet",
        "ALTER TABLE ads ADD CONSTRAINT loud FOREIGN KEY (ad_group_id) REFERENCES ad_groups (id) ON DELETE CASCADE",
    )
    tail.reopen()
    said = capsys.readouterr().out
    assert "binlog_cascades" in said and "ads.loud (ON DELETE CASCADE" in said


def test_dropped_and_added_again_column(mysql: Ads, tail: Tail) -> None:
    """A mapped column that is dropped and added again before it is looked at has other values: its rows are sent."""
    mysql.run("INSERT INTO pins (id, brand) VALUES ('p', 'old')")
    tail.drain()
    mysql.run("ALTER TABLE pins DROP COLUMN brand", "ALTER TABLE pins ADD COLUMN brand VARCHAR(255) DEFAULT 'new'")
    tail.drain()
    assert (newest(tail.log)["pin", "p"] or {})["brand"] == "new"
