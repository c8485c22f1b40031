"""Real servers: started, found again, stopped, killed; their data, ports and accounts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pymysql
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient, NewTopic
from kafka.errors import KafkaError
from sqlalchemy.engine import make_url

from compose import ServerInfo, Stack, StackError
from compose.process import is_free
from tests.stack_support import temporary_stack, up_or_skip
from tests.support import ROOT

BOTH = ("mysql", "kafka")


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Servers that the tests of this file start, stop and kill."""
    with temporary_stack() as stack:
        yield stack


def connect(url: str, database: str | None = None) -> pymysql.Connection[pymysql.cursors.Cursor]:
    """Connect to a server by its URL."""
    parsed = make_url(url)
    assert parsed.host and parsed.port and parsed.username and parsed.password
    return pymysql.connect(
        host=parsed.host, port=parsed.port, user=parsed.username, password=str(parsed.password),
        database=database or parsed.database, autocommit=True,
    )  # fmt: skip


def rows(server: ServerInfo, statement: str, *, admin: bool = False) -> list[tuple[object, ...]]:
    """Run one statement on a server."""
    with connect(server.admin_url if admin else server.url) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def new_topic(server: ServerInfo) -> str:
    """Create a topic with one partition."""
    topic = f"t-{uuid.uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=f"127.0.0.1:{server.port}")
    try:
        admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        admin.close()
    return topic


def produce(server: ServerInfo, topic: str, *values: bytes) -> None:
    """Append values, acknowledged."""
    producer = KafkaProducer(bootstrap_servers=f"127.0.0.1:{server.port}", acks="all")
    try:
        for value in values:
            producer.send(topic, value).get(timeout=30)
    finally:
        producer.close()


def consume(server: ServerInfo, topic: str, count: int) -> list[bytes]:
    """Read the first values of a topic."""
    consumer = KafkaConsumer(bootstrap_servers=f"127.0.0.1:{server.port}", auto_offset_reset="earliest")
    try:
        consumer.assign([TopicPartition(topic, 0)])
        values: list[bytes] = []
        deadline = time.monotonic() + 120
        while len(values) < count and time.monotonic() < deadline:
            for messages in consumer.poll(500).values():
                values += [message.value for message in messages]
        return values
    finally:
        consumer.close()


def mentions(directory: Path) -> list[int]:
    """Return the processes with this directory in their arguments."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(f"{directory}/" in word for word in process.info["cmdline"] or ()):
            found.append(process.pid)
    return found


def directory_of(server: ServerInfo) -> Path:
    """Return the directory of the stack that a server belongs to."""
    return server.log_file.parent.parent


def test_up_and_down_twice_change_nothing_the_second_time(stack: Stack) -> None:
    """Started servers keep process and port, stopped ones stay stopped, and nothing of them is left behind."""
    assert {server.state for server in stack.status().values()} == {"absent"}
    first = up_or_skip(stack, BOTH)
    assert first == stack.up(BOTH) == stack.status(BOTH)
    assert {server.state for name, server in stack.status().items() if name not in BOTH} == {"absent"}
    assert {server.state for server in first.values()} == {"ready"}
    stack.down()
    stack.down()
    stopped = stack.status(BOTH)
    assert {server.state for server in stopped.values()} == {"stopped"}
    assert {name: server.port for name, server in stopped.items()} == {n: s.port for n, s in first.items()}
    assert mentions(directory_of(first["mysql"])) == []
    assert all(is_free(server.port) for server in first.values())


def test_another_object_on_the_same_directory_finds_the_servers(stack: Stack) -> None:
    """What one process started another can see, and start and stop."""
    server = up_or_skip(stack, ["mysql"])["mysql"]
    other = Stack(directory_of(server))
    assert other.status()["mysql"] == server
    other.down(["mysql"])
    assert stack.status()["mysql"].state == "stopped"
    assert not psutil.pid_exists(server.pid)


def test_killed_servers_come_back_with_their_data(stack: Stack) -> None:
    """Rows and messages that were acknowledged outlive SIGKILL of both servers; ports stay the same."""
    before = up_or_skip(stack, BOTH)
    rows(before["mysql"], "CREATE TABLE kept (id INT PRIMARY KEY, what VARCHAR(40))")
    rows(before["mysql"], "INSERT INTO kept VALUES (1, 'ünï😀')")
    topic = new_topic(before["kafka"])
    produce(before["kafka"], topic, b"one", b"two")
    for name in BOTH:
        stack.kill(name)
    assert {server.state for server in stack.status(BOTH).values()} == {"dead"}
    with pytest.raises(StackError, match=r"mysql of .* does not run"):
        stack.kill("mysql")
    after = stack.up(BOTH)
    assert {n: s.url for n, s in after.items()} == {n: s.url for n, s in before.items()}
    assert rows(after["mysql"], "SELECT * FROM kept") == [(1, "ünï😀")]
    assert consume(after["kafka"], topic, 2) == [b"one", b"two"]


def test_restart_keeps_port_and_data(stack: Stack) -> None:
    """A restart is a new process with the same address and the same log of changes."""
    before = up_or_skip(stack, ["mysql"])["mysql"]
    rows(before, "CREATE TABLE restarted AS SELECT 7 AS n")
    after = stack.restart("mysql")
    assert after.pid != before.pid
    assert after.url == before.url
    assert rows(after, "SELECT n FROM restarted") == [(7,)]


def test_a_second_directory_is_another_world(stack: Stack, own_stack: Stack) -> None:
    """Two homes run side by side on other ports, with other server ids and other data."""
    first = up_or_skip(stack, ["mysql"])["mysql"]
    second = own_stack.up(["mysql"])["mysql"]
    assert first.port != second.port
    assert rows(first, "SELECT @@server_id") != rows(second, "SELECT @@server_id")
    rows(second, "CREATE TABLE only_here (id INT PRIMARY KEY)")
    assert rows(first, "SHOW TABLES LIKE 'only_here'") == []
    own_stack.down()
    assert rows(first, "SELECT 1") == [(1,)]


def test_mysql_is_set_up_for_the_gateway(stack: Stack) -> None:
    """Row binlog with full images, full metadata and checksums, UTC, four-byte Unicode."""
    server = up_or_skip(stack, ["mysql"])["mysql"]
    wanted = {
        "log_bin": "ON", "binlog_format": "ROW", "binlog_row_image": "FULL", "binlog_row_metadata": "FULL",
        "binlog_checksum": "CRC32", "gtid_strict_mode": "ON", "time_zone": "+00:00",
        "character_set_server": "utf8mb4", "bind_address": "127.0.0.1",
    }  # fmt: skip
    names = ", ".join(f"'{name}'" for name in wanted)
    assert dict(rows(server, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")) == wanted


def test_mysql8_is_oracles_and_set_up_for_the_gateway(own_stack: Stack) -> None:
    """Beside MariaDB's settings GTIDs are on; accounts use caching_sha2_password; a kill loses no row."""
    server = up_or_skip(own_stack, ["mysql8"])["mysql8"]
    wanted = {
        "log_bin": "ON", "binlog_format": "ROW", "binlog_row_image": "FULL", "binlog_row_metadata": "FULL",
        "binlog_checksum": "CRC32", "gtid_mode": "ON", "enforce_gtid_consistency": "ON", "time_zone": "+00:00",
        "character_set_server": "utf8mb4", "bind_address": "127.0.0.1",
    }  # fmt: skip
    names = ", ".join(f"'{name}'" for name in wanted)
    assert dict(rows(server, f"SHOW GLOBAL VARIABLES WHERE Variable_name IN ({names})")) == wanted
    [(version, comment)] = rows(server, "SELECT @@version, @@version_comment")
    assert str(version).startswith("8.0.") and "MySQL" in str(comment)
    accounts = rows(server, "SELECT user, host, plugin FROM mysql.user WHERE user NOT LIKE 'mysql.%'", admin=True)
    made = {("root", "localhost"), ("root", "127.0.0.1"), ("adsindex", "127.0.0.1")}
    assert set(accounts) == {(*account, "caching_sha2_password") for account in made}
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        connect(f"mysql+pymysql://root:wrong@127.0.0.1:{server.port}/mysql")
    rows(server, "CREATE TABLE kept (id INT PRIMARY KEY, what VARCHAR(40))")
    rows(server, "INSERT INTO kept VALUES (1, 'ünï😀')")
    own_stack.kill("mysql8")
    again = own_stack.up(["mysql8"])["mysql8"]
    assert (again.url, again.pid == server.pid) == (server.url, False)
    assert rows(again, "SELECT * FROM kept") == [(1, "ünï😀")]


def test_adsindex_may_tail_and_own_its_databases_and_no_more(stack: Stack) -> None:
    """The account reads everything and the binlog, writes only `ads` and `ads_…`, and cannot make accounts."""
    server = up_or_skip(stack, ["mysql"])["mysql"]
    [(general,), *_] = rows(server, "SHOW GRANTS")
    granted = str(general).split(" ON ")[0].removeprefix("GRANT ")
    assert set(granted.split(", ")) == {
        "SELECT", "RELOAD", "SHOW DATABASES", "REPLICATION SLAVE", "BINLOG MONITOR",
    }  # fmt: skip
    assert rows(server, "SHOW MASTER STATUS")
    rows(server, "CREATE DATABASE ads_other")
    rows(server, "DROP DATABASE ads_other")
    for forbidden in ("CREATE DATABASE theirs", "CREATE USER x@localhost", "SELECT 1 INTO OUTFILE '/tmp/x'"):
        with pytest.raises(pymysql.err.OperationalError, match="denied"):
            rows(server, forbidden)


def test_root_needs_its_password_and_nobody_is_shown_it(stack: Stack) -> None:
    """The administrator's password is in a file of the owner only, in no output, and there is no other account."""
    server = up_or_skip(stack, ["mysql"])["mysql"]
    password = (server.log_file.parent / "root.password").read_text()
    assert len(password) > 16
    for name in ("root.password", "init.sql"):
        assert (server.log_file.parent / name).stat().st_mode & 0o077 == 0
    shown = repr(server) + repr(server.to_json()) + server.log_file.read_text()
    assert password not in shown
    assert rows(server, "SELECT COUNT(*) FROM mysql.user WHERE User = ''", admin=True) == [(0,)]
    accounts = rows(server, "SELECT User, Host FROM mysql.user WHERE User NOT LIKE 'mariadb%'", admin=True)
    assert set(accounts) == {("root", "localhost"), ("root", "127.0.0.1"), ("adsindex", "127.0.0.1")}
    with pytest.raises(pymysql.err.OperationalError, match="denied"):
        connect(f"mysql+pymysql://root:wrong@127.0.0.1:{server.port}/mysql")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes accounts")
def test_mysql_gives_up_root_where_it_can(stack: Stack, tmp_path: Path) -> None:
    """The server runs as mysql in a directory that mysql can enter, else as root, which the command line shows."""
    server = up_or_skip(stack, ["mysql"])["mysql"]
    assert psutil.Process(server.pid).username() == "mysql"
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    other = Stack(closed)
    try:
        assert psutil.Process(other.up(["mysql"])["mysql"].pid).username() == "root"
    finally:
        other.down()


def test_the_broker_makes_no_topic_by_accident(stack: Stack) -> None:
    """Producing to a topic that nobody created fails."""
    server = up_or_skip(stack, ["kafka"])["kafka"]
    producer = KafkaProducer(bootstrap_servers=f"127.0.0.1:{server.port}", max_block_ms=1000)
    try:
        with pytest.raises(KafkaError):
            producer.send("never-created", b"x").get(timeout=10)
    finally:
        producer.close()


def test_servers_end_when_a_killed_test_process_leaves_them(tmp_path: Path) -> None:
    """SIGKILL of the process that uses the fixtures stops its servers and removes their directory."""
    code = (
        "import sys, time\n"
        "from tests.stack_support import temporary_stack\n"
        "with temporary_stack() as stack:\n"
        "    server = stack.up(['mysql'])['mysql']\n"
        "    print(server.pid, server.log_file, flush=True)\n"
        "    time.sleep(600)\n"
    )
    user = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert user.stdout is not None
    pid, log_file = user.stdout.readline().split()
    user.send_signal(signal.SIGKILL)
    user.wait()
    user.stdout.close()
    directory = Path(log_file).parent.parent
    deadline = time.monotonic() + 120
    while psutil.pid_exists(int(pid)) or directory.exists():
        assert time.monotonic() < deadline, "the server outlived the test process"
        time.sleep(0.05)
