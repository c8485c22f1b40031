"""Which TSO is in charge: a fixed one, or the one that ZooKeeper names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from kazoo.client import KazooClient
from kazoo.exceptions import KazooException
from kazoo.handlers.threading import KazooTimeoutError

from storage_repo.omid._errors import TsoUnavailable

NO_EPOCH = -1
"""What a direct connection knows of the epoch: nothing, so that readers never invalidate."""
DEFAULT_ROOT = "/omid"
_CURRENT = "current-tso"
_VALUE = re.compile(r"(.+):(\d{1,5})#(\d+)")
_RETRY = {"max_tries": -1, "delay": 0.1, "max_delay": 2.0, "ignore_expire": True}


@dataclass(frozen=True, slots=True)
class Address:
    """A TSO, and since which timestamp it is in charge."""

    host: str
    port: int
    epoch: int = NO_EPOCH

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Locator(Protocol):
    """Knows the TSO in charge."""

    def start(self, on_change: Callable[[Address], None], timeout_s: float) -> None:
        """Begin to watch. Raises TsoUnavailable."""

    def current(self) -> Address:
        """Return the TSO in charge as far as is known. Raises TsoUnavailable if none is."""

    def close(self) -> None:
        """Stop watching."""


class FixedLocator:
    """One address and no other."""

    def __init__(self, address: Address) -> None:
        self._address = address

    def start(self, on_change: Callable[[Address], None], timeout_s: float) -> None:
        """Do nothing: it never changes."""

    def current(self) -> Address:
        """Return the address."""
        return self._address

    def close(self) -> None:
        """Do nothing."""


class ZooKeeperLocator:
    """The TSO that holds the lease, as it writes itself into ZooKeeper."""

    def __init__(self, hosts: str, root: str = DEFAULT_ROOT) -> None:
        self._hosts = hosts
        self._path = f"{root.rstrip('/')}/{_CURRENT}"
        self._client = KazooClient(hosts=hosts, connection_retry=_RETRY, command_retry=_RETRY)
        self._known: Address | None = None
        self._on_change: Callable[[Address], None] = _ignore

    def start(self, on_change: Callable[[Address], None], timeout_s: float) -> None:
        """Connect, and tell `on_change` about every TSO that takes charge, on a thread of ZooKeeper's client."""
        self._on_change = on_change
        try:
            self._client.start(timeout=timeout_s)
            self._client.DataWatch(self._path, self._changed)
        except (KazooTimeoutError, KazooException) as error:
            self.close()
            raise TsoUnavailable(f"ZooKeeper at {self._hosts}, which knows the TSO, does not answer") from error

    def current(self) -> Address:
        """Return what ZooKeeper said last; while it is away, that stays."""
        if self._known is None:
            raise TsoUnavailable(f"no TSO is in charge: {self._path} in ZooKeeper at {self._hosts} names none")
        return self._known

    def close(self) -> None:
        """End the session. Safe to call twice."""
        self._client.stop()
        self._client.close()

    def _changed(self, data: bytes | None, _: object) -> None:
        """Take what the node holds; it is empty, or missing, while no TSO has ever been in charge."""
        if found := _VALUE.fullmatch((data or b"").decode(errors="replace")):
            self._known = Address(found[1], int(found[2]), int(found[3]))
            self._on_change(self._known)


def locator_of(url: str) -> Locator:
    """Return what finds the TSO of omid://host:port or zookeeper://host:port[,host:port][/root].

    Raises ValueError for other URLs.
    """
    parts = urlsplit(url)
    hosts = parts.netloc.split(",")
    if parts.scheme in ("omid", "zookeeper") and all(re.fullmatch(r"[^:@]+:\d{1,5}", host) for host in hosts):
        if parts.scheme == "zookeeper":
            return ZooKeeperLocator(parts.netloc, parts.path.rstrip("/") or DEFAULT_ROOT)
        host, _, port = hosts[0].partition(":")
        if len(hosts) == 1 and parts.path in ("", "/"):
            return FixedLocator(Address(host, int(port)))
    raise ValueError(f"{url!r} names no TSO; write omid://host:port, or zookeeper://host:port for the one in charge")


def _ignore(_: Address) -> None:
    """Nobody listens yet."""
