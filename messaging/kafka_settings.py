"""Where a Kafka cluster is and how to talk to it: everything a log URL can say."""

from __future__ import annotations

import selectors
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from messaging._exceptions import LogError
from messaging._limits import check_name

_TEXT = ("security_protocol", "sasl_mechanism", "ssl_cafile", "ssl_certfile", "ssl_keyfile")
_NUMBERS = ("session_timeout_ms", "publish_timeout_ms", "replication")


class QuietSelector(selectors.DefaultSelector):
    """Says that a socket is not registered without writing out the socket.

    kafka-python asks for the key of a socket before each wait, mostly in vain. The standard library then names the
    socket in its KeyError, twice, and asks the kernel for both of its addresses for that: 7 % of what a stage uses at
    100 updates a second.
    """

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return the key of a registered file. Raises KeyError."""
        registered: dict[int, selectors.SelectorKey] = self._fd_to_key  # type: ignore[attr-defined]
        return registered[fileobj if isinstance(fileobj, int) else fileobj.fileno()]


@dataclass(frozen=True, slots=True)
class KafkaSettings:
    """A parsed `kafka://[user:password@]host:port[,host:port][/prefix][?name=value&…]`.

    The prefix goes before the name of every topic and group, so that several installations can share a cluster.

    Names: security_protocol, sasl_mechanism, ssl_cafile, ssl_certfile, ssl_keyfile (as Kafka's clients call them),
    session_timeout_ms, publish_timeout_ms, replication.
    """

    servers: tuple[str, ...]
    prefix: str = ""
    security: tuple[tuple[str, str], ...] = ()
    session_timeout_ms: int = 6_000
    """A dead member's partitions are taken over after this; 6 s is the least that brokers allow by default
    (group.min.session.timeout.ms)."""
    publish_timeout_ms: int = 30_000
    """Publishing and questions to the broker are tried again for this long before LogUnavailable: a broker's restart
    takes less; a stage that waits longer is better restarted by its supervisor, which says so."""
    replication: int = -1
    """Replicas of topics made by ensure_topic; -1 = the broker's default."""

    @classmethod
    def parse(cls, url: str) -> KafkaSettings:
        """Read a URL. Raises LogError saying what is wrong with it, never showing the password."""
        parts = urlsplit(url)
        userinfo, _, hosts = parts.netloc.rpartition("@")
        servers = tuple(host for host in hosts.split(",") if host)
        if parts.scheme != "kafka" or not servers or parts.fragment:
            raise LogError("a Kafka log is given as kafka://host:port[,host:port][/prefix][?session_timeout_ms=…]")
        prefix = parts.path.strip("/")
        if prefix:
            check_name("prefix", prefix)
        for server in servers:
            if not server.rpartition(":")[2].isdigit():
                raise LogError(f"{server!r} in the Kafka log's URL has no port; write host:9092")
        security: dict[str, str] = {}
        numbers: dict[str, int] = {}
        for name, value in parse_qsl(parts.query, keep_blank_values=True):
            if name in _TEXT:
                security[name] = value
            elif name in _NUMBERS and value.isdigit() and int(value) > 0:
                numbers[name] = int(value)
            else:
                raise LogError(
                    f"{name}={value!r} in the Kafka log's URL is not understood; text: {', '.join(_TEXT)}; "
                    f"positive numbers: {', '.join(_NUMBERS)}"
                )
        for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
            if name in security and not Path(security[name]).is_file():
                raise LogError(f"{name} of the Kafka log's URL names no file: {security[name]}")
        if userinfo:
            user, _, password = userinfo.partition(":")
            security |= {"sasl_plain_username": unquote(user), "sasl_plain_password": unquote(password)}
        if ("sasl_plain_username" in security) != ("sasl_mechanism" in security):
            raise LogError(
                "the Kafka log's URL needs both a user and sasl_mechanism (PLAIN, SCRAM-SHA-512), or neither"
            )
        return cls(servers, prefix, tuple(sorted(security.items())), **numbers)

    def client(self, name: str) -> dict[str, Any]:
        """Return what every kafka-python client is opened with."""
        return {
            "bootstrap_servers": list(self.servers),
            "client_id": name,
            "bootstrap_timeout_ms": self.publish_timeout_ms,
            "request_timeout_ms": 10_000,  # of one attempt; the attempts together have publish_timeout_ms
            "receive_message_max_bytes": 100 << 20,  # a full answer and a record of the largest size
            "selector": QuietSelector,
            "reconnect_backoff_max_ms": 500,  # one broker of few: trying twice a second costs nothing
            **dict(self.security),
        }

    @property
    def place(self) -> str:
        """For people: where the log is."""
        return ",".join(self.servers)
