"""Real HBase, Thrift servers and Omid: started in order, killed, taken over; what they may do and who reaches them."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import happybase
import psutil
import pytest
from kazoo.client import KazooClient

from compose import ServerFailed, ServerInfo, Stack, StackError
from compose.process import is_free
from compose.stack import _levels, _with_needed
from tests.stack.test_stack_servers import mentions
from tests.stack_support import temporary_stack, up_or_skip

ALL = ("hbase", "thrift", "thrift2", "omid")
QUICK = {"leasePeriodInMs": "5000"}
"""Starts and fail-overs of the TSO take a lease period. One that is held up for three quarters of it ends itself: 3 s
were too short on a loaded machine."""
SECRET = "do-not-print-me"
"""In the environment of every server of this file."""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Servers that the tests of this file stop and kill; the next test starts what it needs."""
    with temporary_stack({"omid": QUICK, "omid2": QUICK}) as stack, pytest.MonkeyPatch.context() as patch:
        patch.setenv("A_SECRET_OF_THE_USER", SECRET)
        yield stack


def begin(server: ServerInfo) -> int:
    """Take a start timestamp from a TSO, in Omid's own protocol."""

    def frame() -> bytes:
        (length,) = struct.unpack(">I", stream.read(4))
        return stream.read(length)

    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection,
        connection.makefile("rb") as stream,
    ):
        connection.sendall(struct.pack(">I", 4) + b"\x1a\x02\x0a\x00")
        assert frame()[:1] == b"\x1a"
        connection.sendall(struct.pack(">I", 2) + b"\x0a\x00")
        answer = frame()
    assert answer[:1] + answer[2:3] == b"\x0a\x08"
    return sum((byte & 127) << (7 * at) for at, byte in enumerate(answer[3:]))


def current_tso(repo: ServerInfo) -> str:
    """Return the address that ZooKeeper has for the TSO."""
    client = KazooClient(parse_qs(urlsplit(repo.url).query)["zookeeper"][0])
    client.start()
    try:
        address: str = client.get("/omid/current-tso")[0].decode().partition("#")[0]
        return address
    finally:
        client.stop()
        client.close()


def test_what_is_needed_starts_first_and_stops_last() -> None:
    """An order without gaps from any names in any order; servers of one level start together."""
    assert _with_needed(["omid", "kafka"]) == ("hbase", "omid", "kafka")
    assert _levels(["omid2", "thrift", "mysql", "hbase"]) == [["hbase", "mysql"], ["omid2", "thrift"]]
    assert _levels(["thrift2"]) == [[], ["thrift2"]]


def test_one_name_starts_what_it_needs_and_the_repo_url_names_them_all(stack: Stack) -> None:
    """HBase has ZooKeeper's address until its Thrift servers have run, then the address of the Storage Repo."""
    started = up_or_skip(stack, ["omid"])
    assert {name: server.state for name, server in started.items()} == {"hbase": "ready", "omid": "ready"}
    assert urlsplit(started["hbase"].url).scheme == "zookeeper"
    both = stack.up(ALL)
    url = urlsplit(both["hbase"].url)
    options = parse_qs(url.query)
    assert (url.scheme, url.port) == ("hbase", both["thrift"].port)
    assert options["thrift2"] == [str(both["thrift2"].port)]
    assert options["zookeeper"] == [urlsplit(started["hbase"].url).netloc]
    assert current_tso(both["hbase"]) == urlsplit(both["omid"].url).netloc
    assert both == stack.up(ALL)
    assert {"OMID_COMMIT_TABLE", "OMID_TIMESTAMP_TABLE"} <= {
        name.decode() for name in happybase.Connection("127.0.0.1", both["thrift"].port).tables()
    }


def test_the_servers_share_the_archive_of_classes(stack: Stack) -> None:
    """Each has the same file mapped: without it they would start all the same, at half the speed."""
    servers = up_or_skip(stack, ALL)
    archives = {
        mapped.path
        for server in servers.values()
        for mapped in psutil.Process(server.pid).memory_maps()
        if mapped.path.endswith(".jsa") and "adsindex" in mapped.path
    }
    assert len(archives) == 1
    for server in servers.values():
        assert archives <= {mapped.path for mapped in psutil.Process(server.pid).memory_maps()}


def test_only_omid_listens_beyond_loopback(stack: Stack) -> None:
    """Omid has no option for the address it listens on (OPERATIONS.md says so); all others listen on loopback."""
    for name, server in up_or_skip(stack, ALL).items():
        listening = {
            entry.laddr.ip.removeprefix("::ffff:")
            for entry in psutil.Process(server.pid).net_connections("tcp")
            if entry.status == psutil.CONN_LISTEN
        }
        assert listening == ({"::"} if name == "omid" else {"127.0.0.1"})


def test_the_environment_is_not_in_the_logs(stack: Stack) -> None:
    """HBase would write every variable to its log; a password may be among them."""
    for name, server in up_or_skip(stack, ALL).items():
        assert psutil.Process(server.pid).environ()["A_SECRET_OF_THE_USER"] == SECRET
        text = server.log_file.read_text()
        assert "INFO" in text, f"no log of {name}"
        assert SECRET not in text


def test_killed_servers_come_back_on_their_ports_with_rows_and_later_timestamps(stack: Stack) -> None:
    """An acknowledged row outlives SIGKILL, and a start timestamp after it is later than every one before.

    A Thrift server that lives on counts as unresponsive while HBase is away, and answers again without a restart.
    """
    before = up_or_skip(stack, ALL)
    connection = happybase.Connection("127.0.0.1", before["thrift"].port)
    connection.create_table("kept", {"f": {}})
    connection.table("kept").put(b"row", {b"f:q": "ünï😀".encode()})
    connection.close()
    first = begin(before["omid"])
    for name in ("omid", "thrift2", "hbase"):
        stack.kill(name)
    states = {name: server.state for name, server in stack.status(ALL).items()}
    assert states == {"hbase": "dead", "thrift": "unresponsive", "thrift2": "dead", "omid": "dead"}
    after = stack.up(ALL)
    assert {n: s.url for n, s in after.items()} == {n: s.url for n, s in before.items()}
    assert after["thrift"].pid == before["thrift"].pid
    connection = happybase.Connection("127.0.0.1", after["thrift"].port)
    assert connection.table("kept").row(b"row") == {b"f:q": "ünï😀".encode()}
    connection.close()
    assert begin(after["omid"]) > first


def both_tsos(stack: Stack) -> tuple[str, str, dict[str, ServerInfo]]:
    """Start both and return who serves and who stands by, once one does each; one that lost its lease starts again."""
    deadline = time.monotonic() + 120
    while True:
        servers = up_or_skip(stack, [*ALL, "omid2"])
        first, second = sorted(("omid", "omid2"), key=lambda name: servers[name].state)
        if (servers[first].state, servers[second].state) == ("ready", "standby"):
            return first, second, servers
        assert time.monotonic() < deadline, {name: server.state for name, server in servers.items()}


def test_a_second_tso_stands_by_and_takes_over(stack: Stack) -> None:
    """Killed, the serving one is replaced within a few lease periods; ZooKeeper names the other; back, it stands by."""
    serving, waiting, servers = both_tsos(stack)
    assert current_tso(servers["hbase"]) == f"127.0.0.1:{servers[serving].port}"
    last = begin(servers[serving])
    stack.kill(serving)
    deadline = time.monotonic() + 120
    while stack.status([waiting])[waiting].state != "ready":
        assert time.monotonic() < deadline, "nobody took over"
        time.sleep(0.1)
    assert current_tso(servers["hbase"]) == f"127.0.0.1:{servers[waiting].port}"
    assert begin(servers[waiting]) > last
    stack.up([serving])
    now_serving, now_waiting, now = both_tsos(stack)
    if now[waiting].pid == servers[waiting].pid:  # else it lost its lease meanwhile, and ended as it should
        assert (now_serving, now_waiting) == (waiting, serving)


def test_down_leaves_nothing(stack: Stack) -> None:
    """Stopping all in one call takes clients before HBase; nothing of them runs or listens afterwards."""
    before = up_or_skip(stack, ALL)
    stack.down()
    assert mentions(before["hbase"].log_file.parent.parent) == []
    assert all(is_free(server.port) for server in before.values())
    assert {server.state for server in stack.status(ALL).values()} == {"stopped"}


def test_a_wrong_setting_of_hbase_is_in_the_error() -> None:
    """The master's complaint is in the error, no process is left, and what needs HBase was not started."""
    with temporary_stack({"hbase": {"hbase.rootdir": "nofs://x/"}}) as stack:
        with pytest.raises(ServerFailed, match=r"(?s)hbase ended while starting.*No FileSystem for scheme \"nofs\""):
            up_or_skip(stack, ["thrift"])
        assert {server.pid for server in stack.status().values()} == {0}


def test_thrift_alone_says_what_it_needs(tmp_path: Path) -> None:
    """A server that is asked for its configuration without HBase beside it names HBase."""
    from compose.hbase import ThriftServer

    with pytest.raises(StackError, match="thrift needs hbase, which never ran in"):
        ThriftServer(tmp_path / "thrift").hbase_ports()
