"""Capture that was lost or bypassed: no catalogue, no rebuilt table and no DDL makes the Gateway miss rows silently."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from catalog import load_catalog
from gateway import SchemaMismatch, SqliteAdsDb, SqliteChangeFeed
from messaging.home import Home
from tests.gateway.gateway_support import CATALOG, Captured, eventually, letters, published, running, values_of
from tests.gateway.test_gateway_capture import ONE_OF_EACH, edited_catalog

MORE_PINS = "INSERT INTO pins (id, title) VALUES ('q', 'old'), ('r', 'old')"
REBUILD = """
CREATE TABLE _alembic_tmp_pins AS SELECT * FROM pins;
DROP TABLE pins;
ALTER TABLE _alembic_tmp_pins RENAME TO pins;
"""


def with_material(ads: Captured, folder: Path) -> Path:
    """Add a column to pins and write a catalogue that declares it."""
    ads.db.execute("ALTER TABLE pins ADD COLUMN material TEXT DEFAULT 'wool'")
    line = "material: {type: string, from: pins.material}\n      brand: {type:"
    return edited_catalog(folder, ("brand: {type:", line))


def test_rows_published_by_a_gateway_with_another_catalogue_come_again(ads: Captured, tmp_path: Path) -> None:
    """Enqueued for a new catalogue, but published by a Gateway with the old one: the next Gateway enqueues them."""
    ads.db.execute(ONE_OF_EACH + MORE_PINS)
    assert ads.db.ensure_capture(CATALOG, 0).rows_enqueued == 0
    edited = load_catalog(with_material(ads, tmp_path))
    before = ads.feed.end()
    assert ads.db.ensure_capture(edited).rows_enqueued == 3  # a command, while a Gateway runs with CATALOG
    taken = ads.feed.end()  # and that Gateway publishes all of it
    assert ads.db.ensure_capture(edited, taken).rows_enqueued == 3
    assert ads.db.ensure_capture(edited, ads.feed.end()).rows_enqueued == 0
    assert ads.logged(before) == [("pins", "p"), ("pins", "q"), ("pins", "r")] * 2


def test_rows_enqueued_at_rest_come_once(ads: Captured, tmp_path: Path) -> None:
    """What was enqueued while no Gateway ran is published by the next one, and not enqueued a second time."""
    ads.db.execute(ONE_OF_EACH)
    ads.db.ensure_capture(CATALOG, 0)
    position = ads.feed.end()
    edited = load_catalog(with_material(ads, tmp_path))
    assert ads.db.ensure_capture(edited).rows_enqueued == 1
    assert ads.db.ensure_capture(edited, position).rows_enqueued == 0
    assert ads.db.ensure_capture(CATALOG, position).rows_enqueued == 1, "and back again"


def test_lost_triggers_are_put_back_and_said(ads: Captured) -> None:
    """Triggers that were dropped or replaced come back, the rows of their tables are read again, and it is an error."""
    ads.db.execute(ONE_OF_EACH)
    ads.app.execute("DROP TRIGGER _adsindex_pins_update")
    ads.app.execute("DROP TRIGGER _adsindex_budgets_delete")
    ads.app.execute("CREATE TRIGGER _adsindex_budgets_delete AFTER DELETE ON budgets BEGIN SELECT 1; END")
    ads.app.execute("UPDATE pins SET title = 'unseen'")
    before = ads.feed.end()
    with capture_logs() as events:
        report = ads.db.ensure_capture(CATALOG)
    assert (report.triggers_created, report.lost) == (2, ("campaign", "pin"))
    assert ads.logged(before) == [("campaigns", 2), ("pins", "p")]
    assert [(e["event"], e["log_level"], e["tables"]) for e in events] == [
        ("capture_lost", "error", ("campaign", "pin"))
    ]
    assert ads.db.ensure_capture(CATALOG).rows_enqueued == 0


def test_a_rebuilt_table_is_read_again(ads: Captured) -> None:
    """The standard SQLite table rebuild drops the triggers with the table; its rows are enqueued, no others."""
    ads.db.execute(ONE_OF_EACH)
    ads.db.execute(REBUILD)
    ads.db.execute("UPDATE pins SET title = 'unseen'")
    before = ads.feed.end()
    report = ads.db.ensure_capture(CATALOG)
    assert report.lost == ("pin",)
    assert ads.logged(before) == [("pins", "p")]
    ads.db.execute("UPDATE pins SET title = 'seen'")
    assert ads.logged(before) == [("pins", "p")] * 2


def test_ddl_without_row_triggers_is_read_again(ads: Captured) -> None:
    """Dropping a column and adding it empties it without a trigger; other DDL costs nothing."""
    ads.db.execute(ONE_OF_EACH)
    ads.db.execute("ALTER TABLE pins DROP COLUMN brand; ALTER TABLE pins ADD COLUMN brand VARCHAR(255)")
    before = ads.feed.end()
    report = ads.db.ensure_capture(CATALOG)
    assert (report.redefined, report.lost) == (("pin",), ())
    assert ads.logged(before) == [("pins", "p")]
    ads.db.execute("CREATE TABLE notes (id INTEGER PRIMARY KEY); CREATE INDEX by_title ON pins (title)")
    assert ads.db.ensure_capture(CATALOG).rows_enqueued == 0


def test_ddl_that_left_no_trace_is_read_again(ads: Captured) -> None:
    """A last column that was dropped and added back leaves the same schema; then nobody knows what was changed."""
    ads.db.execute(ONE_OF_EACH)
    ads.db.execute("ALTER TABLE images ADD COLUMN alt TEXT; UPDATE images SET alt = 'x'")
    ads.db.ensure_capture(CATALOG)
    ads.db.execute("ALTER TABLE images DROP COLUMN alt; ALTER TABLE images ADD COLUMN alt TEXT")
    report = ads.db.ensure_capture(CATALOG)
    assert (report.rows_enqueued, len(report.redefined)) == (6, 6)
    assert ads.db.ensure_capture(CATALOG).rows_enqueued == 0


def test_capture_of_an_earlier_version_is_made_anew(ads: Captured) -> None:
    """A database whose capture remembers less than needed gets every row enqueued once more."""
    ads.db.execute(ONE_OF_EACH)
    ads.app.execute("DROP TABLE _adsindex_capture")
    ads.app.execute("CREATE TABLE _adsindex_capture (repo_table TEXT PRIMARY KEY, declaration TEXT NOT NULL)")
    assert ads.db.ensure_capture(CATALOG).rows_enqueued == 6
    assert ads.db.ensure_capture(CATALOG).rows_enqueued == 0


def test_a_running_gateway_notices_lost_triggers_and_ddl(home: Home) -> None:
    """While the stage runs: a rebuilt table and a dropped column are read again without any restart."""
    with running(home) as (context, log, _), SqliteAdsDb(home.ads_db) as db:
        db.execute(ONE_OF_EACH + MORE_PINS)
        eventually(lambda: len(published(log)) == 8)
        db.execute(REBUILD + "UPDATE pins SET title = 'rebuilt'")

        def title(row: str) -> object:
            sent = [u for u in published(log) if (u.table, u.row) == ("pin", row)]
            return values_of(max(sent, key=lambda u: u.source_version))["title"]

        eventually(lambda: {title(row) for row in "pqr"} == {"rebuilt"})
        db.execute("UPDATE pins SET title = 'later' WHERE id = 'q'")
        eventually(lambda: title("q") == "later")
        assert context.metrics.counters["capture_repairs"] >= 1


def test_a_running_gateway_survives_a_schema_fault(home: Home) -> None:
    """A column that goes makes dead letters, not a crash; when it is back, what was left out is read by itself."""
    with running(home) as (context, log, _), SqliteAdsDb(home.ads_db) as db:
        db.execute(ONE_OF_EACH)
        eventually(lambda: len(published(log)) == 6)
        db.execute("ALTER TABLE pins RENAME COLUMN brand TO make")
        db.execute("UPDATE pins SET title = 'while it was away'")
        eventually(lambda: [letter.reason for letter in letters(log)] == ["schema_mismatch"])
        assert context.metrics.counters["schema_mismatches"] >= 1
        db.execute("ALTER TABLE pins RENAME COLUMN make TO brand")
        eventually(lambda: any(values_of(u).get("title") == "while it was away" for u in published(log)))


def test_keys_that_the_ads_db_lacks_are_enqueued(ads: Captured) -> None:
    """Of the keys that somebody else has, those without a row are enqueued, and become deletes."""
    ads.db.execute(ONE_OF_EACH)
    before = ads.feed.end()
    assert ads.feed.enqueue_missing(CATALOG.tables["ad"], [4, *range(5, 2000)]) == 1995
    assert ads.feed.enqueue_missing(CATALOG.tables["pin"], ["p", "it's gone"]) == 1
    assert ads.logged(before)[-1] == ("pins", "it's gone")
    result = ads.materialize(before)
    assert all(u.deleted for u in result.updates)
    assert len(result.updates) == 1996


def test_a_database_without_capture_has_no_changes(tmp_path: Path) -> None:
    """Looking at an ads DB that nobody captures yet is no error, and installs nothing."""
    with SqliteAdsDb.at(tmp_path / "ads.db") as db:
        feed = SqliteChangeFeed(db, CATALOG)
        assert (db.last_change(), feed.end()) == (0, 0)
        feed.close()
        assert db.execute("SELECT 1 FROM sqlite_master WHERE name LIKE '\\_adsindex%' ESCAPE '\\'")[0].rows == []
        db.check_schema(CATALOG)
        wrong = load_catalog(edited_catalog(tmp_path, ("from: ads.name}", "from: ads.nickname}")))
        with pytest.raises(SchemaMismatch, match=r"ads\.nickname"):
            db.check_schema(wrong)
