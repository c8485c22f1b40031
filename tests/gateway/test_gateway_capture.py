"""Change capture: every write is logged once, in commit order, and rows from before capture are enqueued once."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from catalog import DEFAULT_CATALOG, load_catalog
from gateway import AdsDb, AdsDbUnavailable, SchemaMismatch, StatementFailed
from tests.gateway.gateway_support import CATALOG, Captured

ONE_OF_EACH = """
INSERT INTO advertisers (id) VALUES (1);
INSERT INTO campaigns (id, advertiser_id) VALUES (2, 1);
INSERT INTO budgets (campaign_id, daily_micros) VALUES (2, 5000000);
INSERT INTO ad_groups (id, campaign_id) VALUES (3, 2);
INSERT INTO targeting_specs (ad_group_id, spec) VALUES (3, '{}');
INSERT INTO ads (id, ad_group_id, pin_id) VALUES (4, 3, 'p');
INSERT INTO pins (id) VALUES ('p');
INSERT INTO images (id, url) VALUES ('i', 'https://x.example/i.jpg');
"""
KEYS = [
    ("advertisers", 1), ("campaigns", 2), ("budgets", 2), ("ad_groups", 3), ("targeting_specs", 3), ("ads", 4),
    ("pins", "p"), ("images", "i"),
]  # fmt: skip


def edited_catalog(tmp_path: Path, *replacements: tuple[str, str]) -> Path:
    """Write a copy of the built-in catalogue with some text replaced."""
    text = DEFAULT_CATALOG.read_text()
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    file = tmp_path / "edited.yaml"
    file.write_text(text)
    return file


def test_short_inserts_work_and_are_logged(ads: Captured) -> None:
    """A short INSERT into any table works by server defaults and logs its key."""
    ads.db.execute(ONE_OF_EACH)
    assert ads.logged() == KEYS
    assert ads.db.execute("SELECT status, review_status FROM ads")[0].rows == [("ACTIVE", "APPROVED")]
    assert ads.db.execute("SELECT billing_status, currency FROM advertisers")[0].rows == [("OK", "USD")]


def test_updates_and_deletes_are_logged(ads: Captured) -> None:
    """Updates and deletes of every table log the key, numbered without gaps, with a time."""
    ads.db.execute(ONE_OF_EACH)
    before = ads.feed.end()
    keys = {"budgets": "campaign_id", "targeting_specs": "ad_group_id"}
    for table, key in KEYS:
        ads.app.execute(f"UPDATE {table} SET {keys.get(table, 'id')} = {keys.get(table, 'id')}")
        ads.app.execute(f"DELETE FROM {table} WHERE {keys.get(table, 'id')} = ?", (key,))
    changes = ads.changes(before)
    assert [(c.source_table, c.key) for c in changes] == [entry for entry in KEYS for _ in range(2)]
    assert [c.seq for c in changes] == list(range(before + 1, before + 17))
    assert all(c.changed_at_us > 1_700_000_000_000_000 and not c.backfill for c in changes)


def test_key_change_logs_both_keys(ads: Captured) -> None:
    """An update that changes the key logs the old and the new one."""
    ads.db.execute(ONE_OF_EACH)
    before = ads.feed.end()
    ads.app.execute("UPDATE ads SET id = 40 WHERE id = 4")
    ads.app.execute("UPDATE pins SET id = 'q' WHERE id = 'p'")
    assert ads.logged(before) == [("ads", 4), ("ads", 40), ("pins", "p"), ("pins", "q")]


def test_transaction_of_many_rows(ads: Captured) -> None:
    """One transaction of many rows logs each of them, and a rolled back one logs none."""
    ads.app.execute("BEGIN")
    ads.app.executemany("INSERT INTO ads (id, ad_group_id) VALUES (?, 1)", [(i,) for i in range(1, 1001)])
    assert ads.logged() == []
    ads.app.execute("COMMIT")
    assert ads.logged() == [("ads", i) for i in range(1, 1001)]
    ads.app.execute("BEGIN")
    ads.app.execute("UPDATE ads SET status = 'PAUSED'")
    ads.app.execute("ROLLBACK")
    ads.app.execute("UPDATE ads SET status = 'PAUSED' WHERE id <= 100")
    assert [c.seq for c in ads.changes(1000)] == list(range(1001, 1101))


def test_replace_and_upsert(ads: Captured) -> None:
    """REPLACE and ON CONFLICT DO UPDATE are changes of the row."""
    ads.db.execute("INSERT INTO pins (id, title) VALUES ('p', 'a')")
    ads.app.execute("REPLACE INTO pins (id, title) VALUES ('p', 'b')")
    ads.app.execute("INSERT INTO pins (id) VALUES ('p') ON CONFLICT (id) DO UPDATE SET title = 'c'")
    assert ads.logged() == [("pins", "p")] * 3


def test_bootstrap_of_an_existing_database(tmp_path: Path) -> None:
    """Rows from before capture are enqueued once, in key order, parents first, as backfill."""
    path = tmp_path / "old.db"
    with AdsDb.open(path) as db:
        db.execute(ONE_OF_EACH + "INSERT INTO ads (id, ad_group_id) VALUES (9, 3), (7, 3);")
    ads = Captured(path)
    changes = ads.changes()
    assert [(c.source_table, c.key) for c in changes] == [
        ("advertisers", 1), ("campaigns", 2), ("ad_groups", 3), ("ads", 4), ("ads", 7), ("ads", 9), ("pins", "p"),
        ("images", "i"),
    ]  # fmt: skip
    assert all(c.backfill for c in changes)
    assert ads.db.ensure_capture(CATALOG).rows_enqueued == 0
    assert len(ads.changes()) == len(changes)
    ads.close()


def test_failed_installation_changes_nothing(tmp_path: Path) -> None:
    """A catalogue that does not fit leaves neither triggers nor enqueued rows, so that bootstrap comes later, whole."""
    path = tmp_path / "old.db"
    with AdsDb.open(path) as db:
        db.execute(ONE_OF_EACH)
        file = edited_catalog(tmp_path, ("from: ads.name}", "from: ads.nickname}"))
        with pytest.raises(SchemaMismatch):
            db.ensure_capture(load_catalog(file))
        assert db.execute("SELECT name FROM sqlite_master WHERE name LIKE '\\_adsindex%' ESCAPE '\\'")[0].rows == []
        assert db.ensure_capture(CATALOG).rows_enqueued == 6


def test_missing_column_names_file_and_line(tmp_path: Path) -> None:
    """Tables and columns that the ads DB does not have are named with the catalogue's line, all at once."""
    file = edited_catalog(tmp_path, ("from: ads.name}", "from: ads.nickname}"), ("table: pins,", "table: pinz,"))
    text = file.read_text().replace("from: pins.", "from: pinz.")
    file.write_text(text)
    line = next(i for i, row in enumerate(text.splitlines(), 1) if "ads.nickname" in row)
    with AdsDb.open(tmp_path / "ads.db") as db, pytest.raises(SchemaMismatch) as caught:
        db.ensure_capture(load_catalog(file))
    assert f"{file}:{line}: ad.name" in str(caught.value)
    assert "'pinz'" in str(caught.value)
    assert caught.value.source_tables == {"ads", "pinz"}


def test_new_column_enqueues_its_table_again(ads: Captured, tmp_path: Path) -> None:
    """Declaring one more column enqueues the rows of that table, and of no other, once."""
    ads.db.execute(ONE_OF_EACH)
    before = ads.feed.end()
    ads.app.execute("ALTER TABLE pins ADD COLUMN material TEXT DEFAULT 'wool'")
    file = edited_catalog(
        tmp_path, ("brand: {type:", "material: {type: string, from: pins.material}\n      brand: {type:")
    )
    report = ads.db.ensure_capture(load_catalog(file))
    assert (report.triggers_created, report.rows_enqueued) == (0, 1)
    assert ads.logged(before) == [("pins", "p")]
    assert ads.db.ensure_capture(load_catalog(file)).rows_enqueued == 0


def test_triggers_follow_the_catalogue(ads: Captured, tmp_path: Path) -> None:
    """Triggers of what the catalogue no longer names go, and come back with it."""
    text = DEFAULT_CATALOG.read_text()
    first, last = text.index("  image:\n"), text.index("  ad_document:\n")
    file = tmp_path / "smaller.yaml"
    file.write_text((text[:first] + text[last:]).replace("    references: {image: image_id}\n", ""))
    assert ads.db.ensure_capture(load_catalog(file)).triggers_dropped == 3
    ads.app.execute("INSERT INTO images (id, url) VALUES ('i', 'u')")
    assert ads.logged() == []
    report = ads.db.ensure_capture(CATALOG)
    assert (report.triggers_created, report.rows_enqueued) == (3, 1)
    assert ads.logged() == [("images", "i")]


def test_execute_is_one_transaction(ads: Captured) -> None:
    """Several statements are done together or not at all, and the error quotes the statement."""
    with pytest.raises(StatementFailed, match="no such column: colour in: UPDATE pins"):
        ads.db.execute("INSERT INTO pins (id) VALUES ('p'); UPDATE pins SET colour = 1;")
    results = ads.db.execute(
        "INSERT INTO pins (id, title) VALUES ('p', 'a;b'); -- why; not\nSELECT id, title FROM pins"
    )
    assert (results[0].rowcount, results[1].columns, results[1].rows) == (1, ("id", "title"), [("p", "a;b")])
    assert ads.logged() == [("pins", "p")]


@pytest.mark.parametrize("sql", ["", " -- nothing\n", "BEGIN", "INSERT INTO pins (id) VALUES ('p'); COMMIT"])
def test_execute_refuses(ads: Captured, sql: str) -> None:
    """No statement, and statements about transactions, are refused with a sentence."""
    with pytest.raises(StatementFailed):
        ads.db.execute(sql)
    assert ads.logged() == []


def test_open_refuses_what_is_not_sqlite(tmp_path: Path) -> None:
    """Other URLs and other files are refused, and a foreign SQLite database gets no tables of ours."""
    with pytest.raises(AdsDbUnavailable, match="only SQLite"):
        AdsDb.open("mysql://host/ads")
    (tmp_path / "text.db").write_text("this is not a database, whatever its name says" * 100)
    with pytest.raises(AdsDbUnavailable, match="not a database"):
        AdsDb.open(tmp_path / "text.db")
    foreign = tmp_path / "foreign.db"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    connection.close()
    with AdsDb.open(f"sqlite:///{foreign}") as db:
        assert db.execute("SELECT name FROM sqlite_master")[0].rows == [("orders",)]
