"""The stack of one home: which servers there are, and starting and stopping them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from compose._errors import ServerMissing, StackError
from compose.hbase import HBaseServer, RegionServer, SecondRegionServer, Thrift2Server, ThriftServer
from compose.install import install, may_install
from compose.kafka import KafkaServer
from compose.mysql import MySqlServer
from compose.mysql8 import OracleMySqlServer
from compose.omid import OmidServer, SecondOmidServer
from compose.s3 import S3Server
from compose.server import STOP_SECONDS, Server, ServerInfo

T = TypeVar("T")
SERVERS: Mapping[str, type[Server]] = {
    server.name: server
    for server in (
        MySqlServer, KafkaServer, HBaseServer, ThriftServer, Thrift2Server, OmidServer, SecondOmidServer,
        RegionServer, SecondRegionServer, OracleMySqlServer, S3Server,
    )
}  # fmt: skip
_ASKED_FOR = tuple(
    server.name for server in (SecondOmidServer, RegionServer, SecondRegionServer, OracleMySqlServer, S3Server)
)
MAIN_SERVERS = tuple(name for name in SERVERS if name not in _ASKED_FOR)
"""What starts when nothing is named: everything that the service needs on a real stack. A second TSO and more region
servers are for trying fail-over, one ads DB is enough, and base indexes go to a directory unless told otherwise."""


class Stack:
    """Servers below one directory, each in a folder of its own name. Two directories share nothing but programs."""

    def __init__(self, directory: Path, *, overrides: Mapping[str, Mapping[str, str]] | None = None) -> None:
        """Take the directory that holds, or will hold, the servers' folders.

        `overrides` adds lines to the configuration of a server by name, for example
        {"mysql": {"skip-log-bin": ""}}; they are not remembered.
        """
        given = overrides or {}
        _known(tuple(given))
        root = directory.expanduser().resolve()
        self._servers = {name: kind(root / name, given.get(name)) for name, kind in SERVERS.items()}

    def prepare(self, names: Sequence[str] = MAIN_SERVERS, *, may_apt: bool | None = None) -> None:
        """Find or fetch the programs of servers without starting them; installs packages only when allowed."""
        allowed = may_install() if may_apt is None else may_apt
        for name in _with_needed(names):
            tried: set[tuple[str, ...]] = set()
            while True:
                try:
                    self._servers[name].prepare()
                    break
                except ServerMissing as missing:
                    if not allowed or missing.packages in tried:
                        raise
                    tried.add(missing.packages)
                    install(missing)

    def up(self, names: Sequence[str] = MAIN_SERVERS) -> dict[str, ServerInfo]:
        """Start servers that do not run, and those that they need, and return when all of them answer.

        What does not depend on each other starts at the same time. Twice changes nothing. Answers with all of them,
        the needed ones too.
        """
        wanted = _with_needed(names)
        self.prepare([name for name in wanted if not self._servers[name].pid])
        for level in _levels(wanted):
            self._together(level, lambda server: server.up())
        return self.status(wanted)

    def down(self, names: Sequence[str] | None = None, *, gracefully_within: float = STOP_SECONDS) -> None:
        """Stop servers (default: all), those first that need others, and return when their processes are gone.

        Data and ports stay. Who needs a stopped server and is not named goes on running and waits for it.
        """
        for level in reversed(_levels(_known(tuple(SERVERS) if names is None else names))):
            self._together(level, lambda server: server.down(gracefully_within=gracefully_within))

    def status(self, names: Sequence[str] | None = None) -> dict[str, ServerInfo]:
        """Return servers (default: all) as they are now."""
        return {name: self._servers[name].status() for name in _known(tuple(SERVERS) if names is None else names)}

    def kill(self, name: str) -> None:
        """End a server by SIGKILL, as an accident would."""
        _known((name,))
        self._servers[name].kill()

    def restart(self, name: str) -> ServerInfo:
        """Stop a server if it runs and start it again on the same port and data."""
        self.down((name,))
        return self.up((name,))[name]

    def _together(self, names: Sequence[str], act: Callable[[Server], T]) -> dict[str, T]:
        """Act on several servers at the same time; the first error is raised after all have finished."""
        wanted = _known(names)
        with ThreadPoolExecutor(max_workers=max(1, len(wanted))) as pool:
            futures = {name: pool.submit(act, self._servers[name]) for name in wanted}
        return {name: future.result() for name, future in futures.items()}


def _with_needed(names: Sequence[str]) -> tuple[str, ...]:
    """Put before each server those that it needs."""
    found: dict[str, None] = {}
    for name in _known(names):
        found.update(dict.fromkeys((*_with_needed(SERVERS[name].needs), name)))
    return tuple(found)


def _levels(names: Sequence[str]) -> list[list[str]]:
    """Part servers into groups, so that each needs only servers of groups before its own."""
    levels: list[list[str]] = []
    for name in _with_needed(names):
        needed = SERVERS[name].needs
        depth = 1 + max((at for at, level in enumerate(levels) if not set(level).isdisjoint(needed)), default=-1)
        levels += [[] for _ in range(depth + 1 - len(levels))]
        levels[depth].append(name)
    return [[name for name in level if name in names] for level in levels]


def _known(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in SERVERS:
            raise StackError(f"no server {name!r}; there are {', '.join(SERVERS)}")
    return tuple(dict.fromkeys(names))
