"""The stack of one home: which servers there are, and starting and stopping them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from compose._errors import ServerMissing, StackError
from compose.install import install, may_install
from compose.kafka import KafkaServer
from compose.mysql import MySqlServer
from compose.mysql8 import OracleMySqlServer
from compose.s3 import S3Server
from compose.server import Server, ServerInfo

T = TypeVar("T")
SERVERS: Mapping[str, type[Server]] = {
    server.name: server for server in (MySqlServer, KafkaServer, OracleMySqlServer, S3Server)
}
DEFAULT = (MySqlServer.name, KafkaServer.name)
"""What a home starts when nobody says what: one ads DB and one log."""


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

    def prepare(self, names: Sequence[str] = DEFAULT, *, may_apt: bool | None = None) -> None:
        """Find or fetch the programs of servers without starting them; installs packages only when allowed."""
        allowed = may_install() if may_apt is None else may_apt
        for name in _known(names):
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

    def up(self, names: Sequence[str] = DEFAULT) -> dict[str, ServerInfo]:
        """Start servers that do not run, together, and return when all of them answer. Twice changes nothing."""
        self.prepare([name for name in _known(names) if not self._servers[name].pid])
        return self._together(names, lambda server: server.up())

    def down(self, names: Sequence[str] | None = None) -> None:
        """Stop servers (default: all) and return when their processes are gone. Data and ports stay."""
        self._together(tuple(SERVERS) if names is None else names, lambda server: server.down())

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


def _known(names: Sequence[str]) -> tuple[str, ...]:
    for name in names:
        if name not in SERVERS:
            raise StackError(f"no server {name!r}; there are {', '.join(SERVERS)}")
    return tuple(dict.fromkeys(names))
