"""The Gateway on MySQL through accidents: kills, a cut or silent network, failover, and a snapshot under writers."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy.engine import make_url

from catalog import LaneName
from compose import ServerInfo, Stack
from gateway import AdsDbUnavailable, MysqlAdsDb, ServerUnsuitable, _binlog_reader
from gateway._binlog_stream import BinlogStream
from gateway._mysql_packets import PacketCutter
from gateway.snapshot_proof import Published, prove, published_state
from messaging import open_embedded_log
from messaging.home import Home
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, UPDATES, ensure_topics
from tests.gateway.gateway_support import eventually
from tests.gateway.mysql_support import (
    CATALOG,
    Ads,
    Tail,
    client,
    newest,
    on_both_servers,
    recount,
    run,
    seed,
    stage_on,
    wait_idle,
)
from tests.stack_support import QUICK, temporary_stack, up_or_skip

ROOT = Path(__file__).resolve().parents[2]


class Writer(threading.Thread):
    """Commits small transactions on campaigns, budgets and ads until told to stop; survives a server that restarts."""

    def __init__(self, url: str, campaigns: int, seed_: int) -> None:
        super().__init__(daemon=True)
        self._url, self._campaigns, self._random = url, campaigns, random.Random(seed_)
        self._done = threading.Event()
        self.commits = 0
        self.start()

    def run(self) -> None:
        """Write."""
        connection: Any = None
        while not self._done.is_set():
            try:
                connection = connection or client(self._url)
                self._transaction(connection)
                self.commits += 1
            except pymysql.MySQLError:
                if connection is not None:
                    with suppress(pymysql.MySQLError):
                        connection.close()
                connection = None
                time.sleep(0.05)

    def _transaction(self, connection: Any) -> None:
        number = self._random.randrange(1, self._campaigns + 1)
        connection.begin()
        match self._random.randrange(5):
            case 0:
                run(connection, f"UPDATE campaigns SET name = 'n{self.commits}' WHERE id = {number}")
                run(connection, f"UPDATE budgets SET daily_micros = {self.commits} WHERE campaign_id = {number}")
            case 1:
                run(connection, f"DELETE FROM ads WHERE id = {number}")
            case 2:
                run(connection, f"REPLACE INTO ads (id, ad_group_id, name) VALUES ({number}, 1, 'r{self.commits}')")
            case 3:
                run(connection, f"DELETE FROM campaigns WHERE id = {number}")
            case 4:
                run(connection, f"REPLACE INTO campaigns (id, advertiser_id, name) VALUES ({number}, 1, 'back')")
        connection.commit()

    def stop(self) -> None:
        """Stop after the running transaction."""
        self._done.set()
        self.join(120)


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """A TCP proxy before a port."""
    made = Proxy(target)
    try:
        yield made
    finally:
        made.close()


class Proxy:
    """Passes bytes on to a port; can cut all connections, refuse new ones, or fall silent without closing any."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._flowing = threading.Event()
        self._flowing.set()
        self.refuse = False
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """Hold back everything that was sent from now on."""
        self._flowing.clear()

    def cut(self) -> None:
        """Close all connections."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()
        self._flowing.set()

    def close(self) -> None:
        """Stop."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                if self.refuse:
                    near.close()
                    continue
                self.accepted += 1
                far = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._flowing.wait()
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


@on_both_servers
def test_snapshot_under_writers_is_exact(mysql: Ads, tmp_path: Path) -> None:
    """While writers change the same rows, the snapshot loses nothing, overwrites nothing newer, and is proved."""
    seed(mysql, 1500)
    writers = [Writer(mysql.url, 1500, number) for number in range(2)]
    with stage_on(Home.open(tmp_path / "home"), mysql.url) as (_, log, raised):
        eventually(lambda: writers[0].commits > 200, 60)
        for writer in writers:
            writer.stop()
        wait_idle(mysql.url, log)
        assert not raised
        assert recount(mysql.url, newest(log)) == []
        proof = prove(mysql.db, CATALOG, published_state(log), range_rows=200)
        assert proof.ok, str(proof)
        counts = [rows for table in ("campaigns", "ads") for (rows,) in mysql.run(f"SELECT COUNT(*) FROM {table}")]
        assert len(proof.ranges) == sum(-(-rows // 200) for rows in counts) > 10
        versions = published_state(log)
        rows = dict(versions.rows)
        gone = next(iter(rows))
        lacking = {key: checksum for key, checksum in rows.items() if key != gone}
        for wrong in (lacking, rows | {gone: rows[gone] ^ 1}, rows | {("ad", "77777777"): 1}):
            assert prove(mysql.db, CATALOG, Published(wrong)).differs


def test_live_changes_pass_a_snapshot(mysql: Ads, tmp_path: Path) -> None:
    """A live change is published at once while the snapshot is far from done, and the snapshot goes on under load."""
    seed(mysql, 4000)
    tail = Tail(mysql, tmp_path / "home")
    mysql.run("UPDATE ads SET name = 'live' WHERE id = 7777")
    assert tail.feed._running().wait(120)
    batches = 0

    def live(changes: list[Any], _: Any) -> bool:
        nonlocal batches
        batches += 1
        return any(c.key == 7777 and not c.backfill for c in changes)

    tail.until(live)
    assert batches <= 2, "the change waited for the snapshot"
    assert tail.feed.snapshot_pending
    enqueued = tail.feed.rows_enqueued
    for number in range(100):
        mysql.run(f"UPDATE ads SET name = 'n{number}' WHERE id = 7777")
        tail.once()
    assert tail.feed.rows_enqueued >= enqueued + 2_000, "the snapshot starved"
    tail.close()


def test_snapshot_resumes_after_a_kill(mysql: Ads, tmp_path: Path) -> None:
    """Killed in the middle of the snapshot, a Gateway process goes on where it was: few rows twice, none lost."""
    seed(mysql, 2000)
    home = Home.open(tmp_path / "home")
    writer = Writer(mysql.url, 2000, 5)
    with open_embedded_log(home.log, home.wake) as log:
        ensure_topics(log)
        for turn in (1, 2):
            gateway = _process(home, mysql.url)
            eventually(lambda sent=turn * 500: _sent(log) > sent, 30)  # type: ignore[misc]
            gateway.send_signal(signal.SIGKILL)
            gateway.wait()
            state = json.loads(log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED)[0])
            assert state["todo"], "it was killed too late to show anything"
    writer.stop()
    with stage_on(home, mysql.url) as (_, log, raised):
        wait_idle(mysql.url, log)
        assert not raised
        assert recount(mysql.url, newest(log)) == []
        assert prove(mysql.db, CATALOG, published_state(log)).ok
        assert _sent(log) < 6000 + 3 * 500


@on_both_servers
def test_server_and_gateway_killed_in_mid_load(kind: str, own_stack: Stack, tmp_path: Path) -> None:
    """With the server killed and started again, and the Gateway killed, everything committed is published exactly."""
    server = up_or_skip(own_stack, [kind])[kind]
    ads = Ads(server.url)
    seed(ads, 500)
    writer = Writer(ads.url, 500, 3)
    home = Home.open(tmp_path / "home")
    gateway = _process(home, ads.url)
    with open_embedded_log(home.log, home.wake) as log:
        eventually(lambda: _sent(log) > 0, 30)
        own_stack.kill(kind)
        own_stack.up([kind])
        commits = writer.commits
        eventually(lambda: writer.commits > commits, 30)
    gateway.send_signal(signal.SIGKILL)
    gateway.wait()
    with stage_on(home, ads.url) as (_, log, raised):
        own_stack.kill(kind)
        own_stack.up([kind])
        commits = writer.commits
        eventually(lambda: writer.commits > commits + 20, 30)
        writer.stop()
        wait_idle(ads.url, log)
        assert not raised
        assert recount(ads.url, newest(log)) == []
    ads.db.close()


def test_network_cut_and_silence(mysql: Ads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut connection, a refused one and one that falls silent are noticed, and all that was missed is published."""
    monkeypatch.setattr(_binlog_reader, "SILENT_SECONDS", 3.5)
    url = make_url(mysql.url)
    with proxy(url.port or 0) as between:
        through = url.set(port=between.port).render_as_string(hide_password=False)
        with stage_on(Home.open(tmp_path / "home"), through) as (_, log, raised):
            for turn, act in enumerate((between.cut, between.silence)):
                mysql.run(f"INSERT INTO ads (id, ad_group_id) VALUES ({turn + 1}, 1)")
                wait_idle(mysql.url, log)
                between.refuse = True
                act()
                mysql.run(f"UPDATE ads SET name = 'missed{turn}'")
                connected = between.accepted
                time.sleep(0.3)
                between.refuse = False
                eventually(lambda before=connected: between.accepted > before, 30)  # type: ignore[misc]
                between.cut()
                wait_idle(mysql.url, log)
                assert recount(mysql.url, newest(log)) == []
            assert not raised


def test_silent_reader_is_noticed(mysql: Ads, tail: Tail, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that hears nothing, not even heartbeats, is an error; with heartbeats an idle one is none."""
    monkeypatch.setattr(_binlog_reader, "SILENT_SECONDS", 3.5)
    end = time.monotonic() + 4.5
    while time.monotonic() < end:
        tail.feed.wait(tail.last, 0.5)
    over = threading.Event()

    def hears_nothing(_: BinlogStream) -> Iterator[PacketCutter]:
        over.wait(20)
        yield from ()

    monkeypatch.setattr(BinlogStream, "received", hears_nothing)
    tail.reopen()
    with pytest.raises(AdsDbUnavailable, match="not even a heartbeat"):
        tail.until(lambda *_: False, 8)
    over.set()


@on_both_servers
def test_failover_to_a_replica(kind: str, own_stack: Stack, tmp_path: Path) -> None:
    """On another server with the same GTIDs the Gateway goes on exactly: nothing is lost, numbers still grow."""
    first = up_or_skip(own_stack, [kind])[kind]
    with temporary_stack(QUICK) as other, proxy(first.port) as between:
        second = up_or_skip(other, [kind])[kind]
        ads = Ads(first.url, name="ads_failover")
        seed(ads, 50)
        _replicate(first, second)
        through = make_url(ads.url).set(port=between.port).render_as_string(hide_password=False)
        home = Home.open(tmp_path / "home")
        with stage_on(home, through) as (_, log, raised):
            wait_idle(ads.url, log)
            before = max(_versions(log))
            ads.run("UPDATE ads SET name = 'last words' WHERE id = 3")
            with closing(client(second.admin_url)) as admin:
                eventually(lambda: _name_of(admin, 3) == "last words", 20)
                run(admin, "STOP SLAVE")
            own_stack.kill(kind)
            between._target = second.port
            between.cut()
            moved = make_url(ads.url).set(port=second.port).render_as_string(hide_password=False)
            with closing(client(moved)) as app:
                run(app, "UPDATE campaigns SET name = 'after' WHERE id = 2", "DELETE FROM ads WHERE id = 5")
            wait_idle(moved, log)
            assert not raised
            assert recount(moved, newest(log)) == []
            assert max(_versions(log)) > before
        ads.db.close()


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("mysql", {"binlog_format": "MIXED", "binlog_row_image": "MINIMAL", "binlog_row_metadata": "NO_LOG"}),
        (
            "mysql8",
            {
                "binlog_format": "MIXED",
                "binlog_row_image": "MINIMAL",
                "binlog_row_metadata": "MINIMAL",
                "binlog_row_value_options": "PARTIAL_JSON",
            },
        ),
    ],
    ids=["mariadb", "mysql8"],
)
def test_unsuitable_server_says_what_mends_it(kind: str, wrong: dict[str, str]) -> None:
    """A server whose binlog loses changes is refused with the statements that mend it; run, they do."""
    with temporary_stack({kind: QUICK[kind] | wrong}) as stack:
        server = up_or_skip(stack, [kind])[kind]
        with closing(client(server.admin_url)) as admin:
            run(admin, "REVOKE REPLICATION SLAVE ON *.* FROM adsindex@127.0.0.1")
            with MysqlAdsDb.at(server.url) as db:
                with pytest.raises(ServerUnsuitable) as caught:
                    db.ensure_capture(CATALOG)
                statements = [line.rpartition(": ")[2] for line in str(caught.value).splitlines() if line[0] == "-"]
                assert len(statements) == len(wrong) + 1
                run(admin, *statements)
                db.ensure_capture(CATALOG)
                if kind == "mysql8":  # SET PERSIST is stronger than the configuration file
                    stack.restart(kind)
                    db.ensure_capture(CATALOG)


def _process(home: Home, url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.gateway.gateway_worker", str(home.root), url]
    started = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    while not started.stdout.readline().startswith("ready"):
        assert started.poll() is None, "the Gateway died"
    return started


def _sent(log: Any) -> int:
    """Return how many updates the snapshot has sent."""
    return sum(log.end_offsets(UPDATES[LaneName.LOW]).values())


def _versions(log: Any) -> list[int]:
    from tests.gateway.gateway_support import published

    return [update.source_version for update in published(log)]


def _name_of(connection: Any, ad: int) -> str:
    found = run(connection, f"SELECT name FROM ads_failover.ads WHERE id = {ad}")
    return str(found[0][0]) if found else ""


def _replicate(source: ServerInfo, replica: ServerInfo) -> None:
    """Let a fresh server follow another from its first transaction on."""
    password = make_url(source.admin_url).password
    mariadb = replica.name == "mysql"
    with closing(client(replica.admin_url)) as admin:
        run(
            admin,
            "RESET MASTER",
            *(["SET GLOBAL gtid_slave_pos = ''"] if mariadb else []),
            f"CHANGE MASTER TO MASTER_HOST = '127.0.0.1', MASTER_PORT = {source.port}, MASTER_USER = 'root', "
            f"MASTER_PASSWORD = '{password}', MASTER_CONNECT_RETRY = 1, "
            + ("MASTER_USE_GTID = slave_pos" if mariadb else "MASTER_AUTO_POSITION = 1, GET_MASTER_PUBLIC_KEY = 1"),
            "START SLAVE",
        )
        eventually(lambda: _name_of_table(admin), 30)


def _name_of_table(connection: Any) -> bool:
    found = run(connection, "SELECT COUNT(*) FROM information_schema.tables WHERE table_schema = 'ads_failover'")
    return bool(found[0][0] >= 8 and run(connection, "SELECT COUNT(*) FROM ads_failover.ads")[0][0] >= 100)
