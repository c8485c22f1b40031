"""Where the servers of an HBase Repo are: one URL names all of them."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

HostPort = tuple[str, int]

_FORM = "hbase://HOST:THRIFT_PORT?thrift2=[HOST:]PORT&zookeeper=HOST:PORT[,HOST:PORT][&tso=HOST:PORT][&prefix=TEXT]"
_OPTIONS = frozenset({"thrift2", "zookeeper", "tso", "prefix"})


@dataclass(frozen=True, slots=True)
class HbaseAddress:
    """The parts of a Repo URL."""

    thrift1: HostPort
    thrift2: HostPort
    zookeeper: str
    """host:port[,host:port]; where the TSO's and HBase's addresses are."""
    tso: str
    """URL for TsoClient: zookeeper://… (fail-over) or omid://host:port (one TSO, no epoch)."""
    prefix: str = ""
    """Put before every table's name; "ns:" puts them into a namespace."""

    @classmethod
    def parse(cls, url: str) -> HbaseAddress:
        """Read hbase://HOST:PORT?thrift2=PORT&zookeeper=HOST:PORT. Raises ValueError that says what is wrong."""
        parts = urlsplit(url)
        if parts.scheme != "hbase" or not parts.hostname or parts.path not in ("", "/"):
            raise ValueError(f"{url!r} is no HBase Repo; write {_FORM}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        if unknown := sorted(options.keys() - _OPTIONS):
            raise ValueError(f"{url!r} has unknown options {', '.join(unknown)}; write {_FORM}")
        zookeeper, tso = options.get("zookeeper", ""), options.get("tso", "")
        if "thrift2" not in options or not (zookeeper or tso):
            raise ValueError(f"{url!r} does not say where Thrift2 and ZooKeeper are; write {_FORM}")
        host = parts.hostname
        return cls(
            (host, _port(url, parts.netloc.rpartition(":")[2])),
            _host_port(url, options["thrift2"], host),
            zookeeper,
            f"omid://{tso}" if tso else f"zookeeper://{zookeeper}",
            options.get("prefix", ""),
        )


def _host_port(url: str, text: str, default_host: str) -> HostPort:
    host, _, port = text.rpartition(":")
    return host or default_host, _port(url, port)


def _port(url: str, text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 16:
        raise ValueError(f"{url!r}: {text!r} is no port; write {_FORM}")
    return int(text)
