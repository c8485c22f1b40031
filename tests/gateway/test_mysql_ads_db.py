"""The ads DB on MySQL: its tables, a person's SQL, reads for people, and errors that say what to do."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy.engine import make_url

from catalog import load_catalog
from debug_ui._source import raw_rows, search_names, select_rows
from gateway import AdsDb, AdsDbUnavailable, MysqlAdsDb, SchemaMismatch, StatementFailed, feed_lag
from gateway._mysql import split_statements
from gateway.models import Base
from tests.gateway.mysql_support import Ads, Tail, on_both_servers, run

CATALOG = load_catalog()


@on_both_servers
def test_tables_are_made_and_foreign_ones_left_alone(mysql: Ads) -> None:
    """An empty database gets the domain's tables; one with tables of its own gets none."""
    tables = {name for (name,) in mysql.run("SHOW TABLES")}
    assert tables == set(Base.metadata.tables)
    assert mysql.db.is_empty()
    mysql.run(*(f"DROP TABLE {name}" for name in tables), "CREATE TABLE film (id INT PRIMARY KEY)")
    with MysqlAdsDb.at(mysql.url) as db:
        assert {name for (name,) in mysql.run("SHOW TABLES")} == {"film"}
        with pytest.raises(SchemaMismatch, match=r"ads\.yaml"):
            db.ensure_capture(CATALOG)


@on_both_servers
def test_execute_is_all_or_nothing(mysql: Ads) -> None:
    """Several statements are one transaction; a faulty one is quoted and undoes all; DDL must come alone."""
    before = mysql.db.last_change()
    results = mysql.db.execute(
        "INSERT INTO ads (id, ad_group_id, name) VALUES (1, 1, 'semi;colon -- and ''quote'''); # a comment; here\n"
        "UPDATE ads SET status = 'PAUSED' /* one; two */; SELECT id, name, status FROM ads"
    )
    assert [r.rowcount for r in results] == [1, 1, 1]
    assert results[2].columns == ("id", "name", "status")
    assert results[2].rows == [(1, "semi;colon -- and 'quote'", "PAUSED")]
    assert mysql.db.last_change() > before
    assert not mysql.db.is_empty()
    with pytest.raises(StatementFailed, match="nope"):
        mysql.db.execute("DELETE FROM ads; UPDATE nope SET x = 1")
    assert mysql.run("SELECT COUNT(*) FROM ads") == [(1,)]
    with pytest.raises(StatementFailed, match="give it alone"):
        mysql.db.execute("DELETE FROM ads; ALTER TABLE ads ADD COLUMN x INT")
    with pytest.raises(StatementFailed, match="leave it out"):
        mysql.db.execute("BEGIN; DELETE FROM ads")
    mysql.db.execute("ALTER TABLE ads ADD COLUMN x INT")


def test_statements_are_split_as_the_server_reads_them() -> None:
    """Semicolons in strings, names and comments do not count; version comments are code."""
    script = """-- first; comment
    SELECT ';', "a\\";b", `x;y`; /* two; */ SELECT 'it''s' -- end;
    ; /*!50000 SET @a = 1; */"""
    assert split_statements(script) == [
        'SELECT \';\', "a\\";b", `x;y`',
        "SELECT 'it''s'",
        "/*!50000 SET @a = 1; */",
    ]


@on_both_servers
def test_reads_for_people(mysql: Ads) -> None:
    """The debug UI reads rows, children and names of an ads DB on MySQL as it does on SQLite."""
    mysql.run(
        "INSERT INTO campaigns (id, advertiser_id, name) VALUES (1, 7, '50%_off! now'), (2, 7, 'other')",
        "INSERT INTO budgets (campaign_id, daily_micros) VALUES (1, 5)",
    )
    raw = raw_rows(mysql.db, CATALOG.tables["campaign"], "1")
    assert (raw["campaigns"]["name"], raw["budgets"]["daily_micros"]) == ("50%_off! now", 5)
    rows = select_rows(mysql.db, "campaigns", "advertiser_id", [7], limit=1)
    assert [row["id"] for row in rows] == [1]
    assert [link.id for link in search_names(mysql.db, CATALOG, "0%_off!")] == ["1"]
    assert search_names(mysql.db, CATALOG, "0%off") == []


@on_both_servers
def test_lag_is_seen_from_outside(mysql: Ads, tail: Tail) -> None:
    """What the Gateway has not published is counted by the binlog's bytes; 0 means that nothing waits."""
    tail.once()
    assert feed_lag(mysql.db, tail.log).waiting == 0
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
    assert feed_lag(mysql.db, tail.log).waiting > 0
    tail.drain()
    tail.once()
    assert feed_lag(mysql.db, tail.log).waiting == 0


@pytest.mark.parametrize("kind", ["mysql8"])
@pytest.mark.parametrize("encrypted", [True, False])
def test_logging_in_by_caching_sha2(
    mysql: Ads, mysql_admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    """A password that the server has not cached yet goes over TLS, or without it by an RSA key, for SQL and binlog."""
    if not encrypted:
        connect = pymysql.connections.Connection.__init__
        monkeypatch.setattr(
            pymysql.connections.Connection,
            "__init__",
            lambda self, **settings: connect(self, **settings | {"ssl_disabled": True}),
        )
    statements = [
        f"CREATE USER IF NOT EXISTS {mysql.name}@127.0.0.1 IDENTIFIED WITH caching_sha2_password BY 'p w/:@'",
        f"GRANT SELECT, REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO {mysql.name}@127.0.0.1",
        f"GRANT ALL PRIVILEGES ON {mysql.name}.* TO {mysql.name}@127.0.0.1",
    ]
    run(mysql_admin, *statements)
    try:
        url = make_url(mysql.url).set(username=mysql.name, password="p w/:@").render_as_string(hide_password=False)
        mysql.db.close()
        mysql.db, mysql.url = MysqlAdsDb.at(url), url
        with closing(mysql.db.connect()) as connection:
            used = run(connection, "SHOW SESSION STATUS LIKE 'Ssl_cipher'")
            assert bool(used[0][1]) is encrypted
        run(mysql_admin, "FLUSH PRIVILEGES")  # forgets what it cached: the binlog's connection proves itself anew
        tail = Tail(mysql, tmp_path / "home")
        mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
        changes, _, _ = tail.drain()
        assert (tail.feed._running()._stream._connection._secure) is encrypted
        assert 1 in [change.key for change in changes]
        tail.close()
    finally:
        run(mysql_admin, f"DROP USER {mysql.name}@127.0.0.1")


def test_errors_name_the_server_without_its_password(mysql: Ads, tmp_path: Path) -> None:
    """A server that is away, a wrong password and a wrong URL are errors that say so and never show a password."""
    for url, text in (
        ("mysql+pymysql://u:s3cret@127.0.0.1:1/ads", "check that the server runs"),
        (mysql.url.replace(":adsindex@", ":s3cret@"), "grant the user what it lacks"),
        ("mysql+pymysql://127.0.0.1", "USER:PASSWORD@HOST"),
        ("postgresql://u:s3cret@h/db", "only SQLite and MySQL"),
    ):
        with pytest.raises(AdsDbUnavailable) as caught:
            AdsDb.open(url)
        assert text in str(caught.value)
        assert "s3cret" not in str(caught.value)
