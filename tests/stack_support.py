"""Real servers for tests: one of each kind per test process, started on first use, gone at the end.

Every test uses its own database, topic prefix or table prefix on them. A test that kills or reconfigures a server
starts its own: `own_stack`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from compose import ServerInfo, ServerMissing, Stack
from compose.process import is_free
from tests.support import IN_CI, ROOT, in_memory

_UNDERTAKER = """
import shutil, sys
from pathlib import Path
from compose import Stack
sys.stdin.read()
Stack(Path(sys.argv[1])).down(gracefully_within=0)
shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
"""Waits until the test process has ended, however it ended, and then kills its servers: nobody needs their data."""
HBASE = ("hbase", "thrift", "thrift2", "omid")
_with_hbase: list[tuple[Stack, list[int]]] = []
"""The shared stack and its servers' ports, once HBase has been asked for in it."""
QUICK = {
    "mysql": {"debug-no-sync": "", "innodb_flush_method": "nosync"},
    "mysql8": {"innodb_flush_method": "nosync"},
}
"""Settings of servers that outlive no power cut: making the ads DB's tables, with dozens of syncs, is most of a test's
time otherwise. What a kill -9 of the server leaves is the same, for the kernel has it."""


@contextmanager
def temporary_stack(overrides: Mapping[str, Mapping[str, str]] | None = None) -> Iterator[Stack]:
    """Yield a stack in a new directory; afterwards its servers are stopped, also when this process is killed."""
    directory = Path(tempfile.mkdtemp(prefix="adsindex-stack-", dir=in_memory()))
    directory.chmod(0o711)  # the account mysql must get through
    undertaker = subprocess.Popen(
        [sys.executable, "-c", _UNDERTAKER, str(directory)], stdin=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    try:
        yield Stack(directory, overrides=overrides)
    finally:
        assert undertaker.stdin is not None
        undertaker.stdin.close()
        undertaker.wait(timeout=180)
        shutil.rmtree(directory, ignore_errors=True)


def up_or_skip(stack: Stack, names: Sequence[str]) -> dict[str, ServerInfo]:
    """Start servers; skip loudly where their programs are missing (in CI: fail). Every other failure is a failure."""
    try:
        return stack.up(names)
    except ServerMissing as missing:
        text = f"no real {' and '.join(names)}: {missing}"
        if IN_CI:
            pytest.fail(text)
        warnings.warn(text, stacklevel=2)
        pytest.skip(text)


@pytest.fixture(scope="session")
def shared_stack() -> Iterator[Stack]:
    """The stack of this test process; nothing runs in it before a test asks for it."""
    with temporary_stack(QUICK) as stack:
        yield stack


@pytest.fixture(scope="session")
def kafka_server(shared_stack: Stack) -> ServerInfo:
    """The broker that all tests of this process share; use a topic prefix of your own."""
    return up_or_skip(shared_stack, ["kafka"])["kafka"]


@pytest.fixture(scope="session")
def mysql_server(shared_stack: Stack) -> ServerInfo:
    """The MariaDB server that all tests of this process share; use a database `ads_…` of your own."""
    return up_or_skip(shared_stack, ["mysql"])["mysql"]


@pytest.fixture(scope="session")
def oracle_mysql_server(shared_stack: Stack) -> ServerInfo:
    """The server of Oracle's make that all tests of this process share; use a database `ads_…` of your own."""
    return up_or_skip(shared_stack, ["mysql8"])["mysql8"]


@pytest.fixture(scope="session")
def hbase_server(shared_stack: Stack) -> ServerInfo:
    """The HBase that all tests of this process share, with its Thrift servers and Omid's TSO; `url` is the Repo's.

    Use tables with a prefix of your own. `hbase_runs` sees to it that all of them run when a test begins.
    """
    started = up_or_skip(shared_stack, HBASE)
    _with_hbase.append((shared_stack, [server.port for server in started.values()]))
    return started["hbase"]


@pytest.fixture(autouse=True)
def hbase_runs(request: pytest.FixtureRequest) -> None:
    """Start what has ended since another test: a TSO that is held up for most of its lease ends itself, by design.

    A second start is on the same ports, so what was handed out holds.
    """
    asked = "hbase_server" in request.fixturenames
    chosen = getattr(request.node, "callspec", None)
    if asked or (chosen is not None and chosen.params.get("backend") == "hbase"):
        keep_hbase_up()


def keep_hbase_up() -> None:
    """Start those of the shared HBase's servers that have ended: all of them listen as long as they serve."""
    for stack, ports in _with_hbase:
        if any(is_free(port) for port in ports):  # a millisecond; to ask each server takes a tenth of a second
            stack.up(HBASE)


@pytest.fixture(scope="session")
def s3_server(shared_stack: Stack) -> ServerInfo:
    """The S3 server that all tests of this process share; use a bucket of your own."""
    return up_or_skip(shared_stack, ["s3"])["s3"]


@pytest.fixture
def own_stack() -> Iterator[Stack]:
    """A stack for one test that kills or stops servers; start them with `up_or_skip(own_stack, [...])`."""
    with temporary_stack(QUICK) as stack:
        yield stack
