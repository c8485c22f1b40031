"""Where the Gateway goes on: beside a resync, on another database or server, and when its position has expired."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from batch_workflows.refresh import resync
from catalog.model import SOURCE_VERSION
from catalog.values import encode
from compose import ServerInfo
from gateway import AdsDbUnavailable, PositionLost, _binlog_resume, binlog, feed_lag, request_resync
from gateway.binlog_position import FeedState
from messaging import Position
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP
from storage_repo import Origin, RepoSchema
from storage_repo.embedded import EmbeddedRepo
from tests.gateway.mysql_support import CATALOG, Ads, Tail, client, newest, on_both_servers, run
from tests.stack_support import QUICK, temporary_stack, up_or_skip


def ask(tail: Tail, *ads: str) -> None:
    """Run the resync workflow with a Repo that has those ads."""
    schema = RepoSchema.of(CATALOG.repo_tables())
    with closing(EmbeddedRepo.open(tail.home.store, schema, wake_dir=tail.home.wake)) as repo:
        transaction = repo.begin(Origin("test", "", origin_us=1))
        for row in ads:
            transaction.put("ad", row, SOURCE_VERSION, encode(1))
        transaction.commit()
        resync(tail.ads.db, CATALOG, tail.log, repo)


def served(tail: Tail) -> set[str]:
    """Return the ads whose newest published state is no delete."""
    return {row for (table, row), state in newest(tail.log).items() if table == "ad" and state is not None}


def purge(tail: Tail, admin: Any) -> None:
    """Begin a new binlog file and have the server forget those before it."""
    run(admin, "FLUSH BINARY LOGS")
    status = "SHOW MASTER STATUS"
    newest_file = run(admin, status)[0][0]
    deadline = time.monotonic() + 120
    while run(admin, f"PURGE BINARY LOGS TO '{newest_file}'", "SHOW BINARY LOGS")[0][0] != newest_file:
        assert time.monotonic() < deadline


@on_both_servers
@pytest.mark.parametrize("lost", [False, True], ids=["kept", "purged"])
def test_deletes_after_a_resync_was_asked_for(mysql: Ads, tail: Tail, mysql_admin: Any, lost: bool) -> None:
    """Rows deleted between the resync workflow and the Gateway's start go, also when its position is lost."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1), (2, 1), (3, 1)")
    tail.drain()
    tail.feed.close()
    mysql.run("DELETE FROM ads WHERE id = 2")
    if lost:
        purge(tail, mysql_admin)
    ask(tail, "1", "2", "3")
    mysql.run("DELETE FROM ads WHERE id = 3")
    tail.reopen()
    tail.drain()
    assert served(tail) == {"1"}
    tail.reopen()
    assert not tail.feed.snapshot_pending
    assert feed_lag(mysql.db, tail.log).waiting < 10_000


@on_both_servers
def test_rows_in_flight_when_a_resync_is_asked_for(mysql: Ads, tail: Tail) -> None:
    """A row that is published and not yet in the Repo cannot be found missing: its delete is read from the binlog."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1), (2, 1)")
    tail.drain()
    tail.feed.close()
    mysql.run("DELETE FROM ads WHERE id = 2")
    ask(tail)
    tail.reopen()
    tail.drain()
    assert served(tail) == {"1"}


@on_both_servers
def test_a_crash_before_the_lost_position_is_left(mysql: Ads, tail: Tail, mysql_admin: Any) -> None:
    """A Gateway that took a request up and died before it could read goes on from the request at its next start."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1), (2, 1)")
    tail.drain()
    tail.feed.close()
    mysql.run("DELETE FROM ads WHERE id = 1")
    purge(tail, mysql_admin)
    ask(tail, "1", "2")
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (3, 1)", "DELETE FROM ads WHERE id = 2")
    tail.reopen()
    tail.reopen()
    assert tail.stored()["resync"] == 1
    tail.drain()
    assert served(tail) == {"3"}
    purge(tail, mysql_admin)  # the request was for once only
    tail.feed.close()
    mysql.run("DELETE FROM ads WHERE id = 3")
    purge(tail, mysql_admin)
    with pytest.raises(PositionLost):
        tail.reopen()
        tail.until(lambda *_: False, 10)


def test_a_part_of_the_position_is_lost(mysql: Ads, tail: Tail) -> None:
    """A position of which a part kept in another topic is lost is refused; a resync is the way out of that as well."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1), (2, 1)")
    tail.drain()
    tail.feed.close()
    stored = {name: value for name, value in tail.stored().items() if name not in ("todo", "declared")}
    offset = tail.log.committed(GATEWAY_GROUP, CHANGE_FEED)[0]
    text = json.dumps(stored | {"kept": "0" * 16})
    tail.log.set_committed([Position(GATEWAY_GROUP, CHANGE_FEED, 0, offset, text)])
    mysql.run("DELETE FROM ads WHERE id = 1")
    with pytest.raises(PositionLost, match="Run the resync workflow"):
        tail.reopen()
    ask(tail, "1", "2")
    tail.reopen()
    tail.drain()
    assert served(tail) == {"2"}


def test_a_request_after_the_broker_forgot_the_one_before(mysql: Ads, tail: Tail) -> None:
    """Requests are counted on from the one that was taken up, also when the broker has forgotten their count."""
    for _ in range(2):
        request_resync(mysql.db, CATALOG, tail.log)
    tail.reopen()
    tail.drain()
    assert tail.stored()["resync"] == 2
    tail.log.set_committed([Position(_binlog_resume.RESYNC_GROUP, CHANGE_FEED, 0, 0, "")])
    request_resync(mysql.db, CATALOG, tail.log)
    tail.reopen()
    assert tail.feed.snapshot_pending
    tail.drain()
    assert tail.stored()["resync"] == 3


@on_both_servers
def test_another_database_of_the_server(mysql: Ads, tail: Tail, server: ServerInfo, tmp_path: Path) -> None:
    """A position in one database is none in another one on the same server; a resync moves there, deletes and all."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1), (2, 1)")
    tail.drain()
    assert tail.stored()["db"] == mysql.name
    other = Ads(server.url)
    other.run("INSERT INTO ads (id, ad_group_id) VALUES (2, 1), (3, 1)")
    tail.feed.close()
    tail.rows.close()
    tail.ads = other
    with pytest.raises(PositionLost, match=f"of the database {mysql.name}.*Run the resync workflow"):
        tail.open()
    ask(tail, "1", "2")
    tail.open()
    tail.drain()
    assert served(tail) == {"2", "3"}
    tail.feed.close()
    other.close()


def test_a_replica_that_lacks_what_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A MySQL that takes over without the last transactions is waited for, then refused; a resync makes it right."""
    monkeypatch.setattr(_binlog_resume, "LAG_SECONDS", 0.5)
    with temporary_stack(QUICK) as one, temporary_stack(QUICK) as two:
        first, second = (up_or_skip(stack, ["mysql8"])["mysql8"] for stack in (one, two))
        ads = Ads(first.url, name="ads_lagging")
        ads.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1)")
        tail = Tail(ads, tmp_path / "home")
        tail.drain()
        _copy(first, second)
        ads.run("INSERT INTO ads (id, ad_group_id) VALUES (2, 1)")
        last = ads.run("SELECT @@GLOBAL.gtid_executed")[0][0]
        tail.drain()
        tail.feed.close()
        tail.rows.close()
        tail.ads = moved = Ads(second.url, name="ads_lagging")
        moved.run("INSERT INTO ads (id, ad_group_id) VALUES (3, 1)")
        with pytest.raises(AdsDbUnavailable, match=f"lags: it lacks {last[:36]}"):
            tail.open()
        time.sleep(0.6)
        with pytest.raises(PositionLost, match=r"and published.*Run the resync workflow"):
            tail.open()
        ask(tail, "1", "2")
        tail.open()
        tail.drain()
        assert served(tail) == {"1", "3"}
        tail.close()
        for each in (ads, moved):
            each.close(drop=False)


def _copy(source: ServerInfo, target: ServerInfo) -> None:
    """Let a fresh server follow another until it has what that one has now, and stop."""
    with closing(client(source.admin_url)) as admin, closing(client(target.admin_url)) as other:
        run(
            other,
            "RESET MASTER",
            f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {source.port}, "
            f"MASTER_USER = 'root', MASTER_PASSWORD = '{make_url(source.admin_url).password}', "
            "MASTER_AUTO_POSITION = 1, GET_MASTER_PUBLIC_KEY = 1",
            "START SLAVE",
        )
        executed = run(admin, "SELECT @@GLOBAL.gtid_executed")[0][0]
        assert run(other, f"SELECT WAIT_FOR_EXECUTED_GTID_SET('{executed}', 60)")[0][0] == 0
        run(other, "STOP SLAVE", "RESET SLAVE ALL")


@on_both_servers
def test_an_idle_position_is_stored_again(mysql: Ads, tail: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker forgets what is not stored anew: without any change the position is stored once a day."""
    while tail.feed.wait(tail.last, 0.5) or tail.feed.stored(tail.last) is not None:
        tail.once()
    assert tail.feed.stored(tail.last) is None
    monkeypatch.setattr(binlog, "STORE_AGAIN_SECONDS", 0.2)
    time.sleep(0.25)
    again = tail.feed.stored(tail.last)
    assert again is not None
    assert (again.offset, FeedState.from_json(again.metadata).position.offset) == (tail.last + 1, tail.stored()["pos"])
    assert tail.feed.stored(tail.last) is None


@on_both_servers
def test_an_expired_position_is_said_aloud(mysql: Ads, tail: Tail, capsys: pytest.CaptureFixture[str]) -> None:
    """Begun anew over what was published, the feed says that deletes were missed; a first start says nothing."""
    mysql.run("INSERT INTO ads (id, ad_group_id) VALUES (1, 1), (2, 1)")
    tail.drain()
    assert "binlog_position_missing" not in capsys.readouterr().out
    tail.feed.close()
    mysql.run("DELETE FROM ads WHERE id = 1")
    tail.log.set_committed([Position(GATEWAY_GROUP, CHANGE_FEED, 0, 0, "")])
    while int(time.time()) - binlog._SESSIONS_SINCE <= tail.last >> binlog.SESSION_BITS:
        time.sleep(0.05)  # sessions are seconds; what has expired is older
    tail.reopen()
    said = capsys.readouterr().out
    assert "binlog_position_missing" in said and "workflow run resync" in said
    tail.drain()
    ask(tail, "1", "2")
    tail.reopen()
    tail.drain()
    assert served(tail) == {"2"}
