"""Which columns may be of a key on MySQL: what a snapshot goes by, page after page, and what row keys are made of."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from catalog import Catalog, load_catalog
from gateway import SchemaMismatch
from gateway.binlog import CHUNK
from tests.gateway.gateway_support import eventually
from tests.gateway.mysql_support import Ads, Tail, newest, numbers, on_both_servers, run

CATALOG = """
version: 1
name: stock
tables:
  item:
    owner: stock
    key: string
    source: {table: items, key: %s}
    columns:
      label: {type: string, from: items.label}
  item_document: {owner: stock, key: string, root: item}
fields:
  label: {from: item.label}
"""


def stock(root: Path, key: str) -> Catalog:
    """Return a catalogue whose items have that key."""
    file = root / "stock.yaml"
    file.write_text(CATALOG % key)
    return load_catalog(file)


@on_both_servers
def test_key_that_cannot_be_kept_is_refused_at_start(mysql: Ads, tmp_path: Path) -> None:
    """The fault names the table, the column and its type, also for one part of several; nothing dies under way."""
    for column, named in [
        ("DATE", "date"),
        ("DECIMAL(10,2)", "decimal"),
        ("BINARY(16)", "binary"),
        ("DATETIME(3)", "datetime"),
        ("ENUM('b','a')", "enum"),
        ("VARCHAR(9) CHARACTER SET hp8", "hp8"),
    ]:
        mysql.run(
            "DROP TABLE IF EXISTS items",
            f"CREATE TABLE items (day {column}, number INT, label VARCHAR(9), PRIMARY KEY (day, number))",
        )
        for key in ("day", "[number, day]"):
            with pytest.raises(SchemaMismatch, match=f"'day' of the ads DB table 'items' is of type .*{named}"):
                mysql.db.ensure_capture(stock(tmp_path, key))
        mysql.db.ensure_capture(stock(tmp_path, "number"))


@on_both_servers
@pytest.mark.parametrize("column", ["BIGINT UNSIGNED", "VARCHAR(20) CHARACTER SET latin1", "CHAR(20)", "MEDIUMINT"])
def test_whole_numbers_and_text_are_paged_through(mysql: Ads, tmp_path: Path, column: str) -> None:
    """A table of more than one page has every row sent, its position stored after each page."""
    catalog = stock(tmp_path, "id")
    rows = 2 * CHUNK + 10
    mysql.run(
        f"CREATE TABLE items (id {column} PRIMARY KEY, label VARCHAR(9))",
        f"INSERT INTO items SELECT seq, 'x' FROM {numbers(rows)}",
    )
    mysql.db.ensure_capture(catalog)
    tail = Tail(mysql, tmp_path / "home", catalog=catalog)
    try:
        tail.until(lambda *_: not tail.feed.snapshot_pending)
        assert len(newest(tail.log)) == rows
    finally:
        tail.close()


def test_key_altered_under_way_is_not_paged_through(mysql: Ads, tmp_path: Path) -> None:
    """An ALTER that makes a key unfit is said by `ensure_capture`; its rows are due again when it is mended."""
    catalog = stock(tmp_path, "id")
    mysql.run(
        "CREATE TABLE items (id INT PRIMARY KEY, label VARCHAR(9))",
        f"INSERT INTO items SELECT seq, 'x' FROM {numbers(CHUNK + 10)}",
    )
    tail = Tail(mysql, tmp_path / "home", catalog=catalog)
    try:
        tail.until(lambda *_: not tail.feed.snapshot_pending)
        seen = tail.feed.schema_version()
        mysql.run("ALTER TABLE items MODIFY id DECIMAL(10,2)")
        tail.until(lambda *_: tail.feed.schema_version() > seen)
        assert not tail.feed.snapshot_pending
        with pytest.raises(SchemaMismatch, match="decimal"):
            mysql.db.ensure_capture(catalog)
        mysql.run("ALTER TABLE items MODIFY id BIGINT")
        tail.until(lambda *_: tail.feed.schema_version() > seen + 1)
        assert tail.feed.snapshot_pending
    finally:
        tail.close()


@pytest.mark.parametrize("kind", ["mysql8"])
def test_first_page_by_file_waits_for_commits_under_way(mysql: Ads, tmp_path: Path, mysql_admin: Any) -> None:
    """By file a MySQL cannot say what a snapshot has: keys whose commit is not over yet are waited for, not missed."""

    def waiting() -> bool:
        sessions = run(mysql_admin, "SHOW PROCESSLIST")
        return any(seconds >= 1 and "LOCK IN SHARE MODE" in (text or "") for *_, seconds, _, text in sessions)

    mysql.app.begin()
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (7, 1)")
    by_gtid, by_file = Tail(mysql, tmp_path / "gtid"), Tail(mysql, tmp_path / "file", by_file=True)
    try:
        assert by_gtid.feed._keys.keys("ads", "id", None, 10) == []  # it comes in the binlog, by its GTID
        with ThreadPoolExecutor(1) as pool:
            page = pool.submit(by_file.feed._keys.keys, "ads", "id", None, 10)
            try:
                eventually(lambda: page.done() or waiting())
                assert not page.done()
            finally:
                mysql.app.commit()
            assert page.result(20) == [(7,)]
    finally:
        by_gtid.close()
        by_file.close()
