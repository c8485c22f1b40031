"""Fixtures of the Gateway's tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from compose import ServerInfo
from messaging.home import Home
from tests.gateway.gateway_support import Captured
from tests.gateway.mysql_support import Ads, Tail, client
from tests.stack_support import mysql_server, oracle_mysql_server, own_stack, shared_stack

__all__ = ["mysql_server", "oracle_mysql_server", "own_stack", "shared_stack"]


@pytest.fixture
def ads(tmp_path: Path) -> Iterator[Captured]:
    """An empty ads DB with capture installed."""
    captured = Captured(tmp_path / "ads.db")
    yield captured
    captured.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of its own."""
    return Home.open(tmp_path / "home")


@pytest.fixture
def kind() -> str:
    """The name in the stack of the server that a test runs on: MariaDB, unless `on_both_servers` says otherwise."""
    return "mysql"


@pytest.fixture
def server(kind: str, request: pytest.FixtureRequest) -> ServerInfo:
    """The shared server of the kind that the test runs on."""
    found: ServerInfo = request.getfixturevalue("mysql_server" if kind == "mysql" else "oracle_mysql_server")
    return found


@pytest.fixture
def mysql(server: ServerInfo) -> Iterator[Ads]:
    """An empty ads DB on the shared server."""
    ads = Ads(server.url)
    yield ads
    ads.close()


@pytest.fixture
def tail(mysql: Ads, tmp_path: Path) -> Iterator[Tail]:
    """A change feed on `mysql`, driven by hand, its first snapshot (of nothing) done."""
    tail = Tail(mysql, tmp_path / "home")
    tail.drain()
    yield tail
    tail.close()


@pytest.fixture
def mysql_admin(server: ServerInfo) -> Iterator[Any]:
    """A connection of the shared server's administrator."""
    with closing(client(server.admin_url)) as connection:
        yield connection
