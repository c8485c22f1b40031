"""Errors of the Gateway.

GatewayError              catch this to treat every failure of the ads DB and its capture alike
├── AdsDbUnavailable      the ads DB is away, locked or unreadable: back off and try again, nothing is lost
├── StatementFailed       a person's SQL is at fault; nothing of it was done
├── SchemaMismatch        the catalogue names tables or columns that the ads DB does not have; each with file and line
├── MissingTopic          a stream of the catalogue has no topic in Kafka; with the command that creates it
├── ServerUnsuitable      a MySQL server's settings or rights would lose changes; each fault with the SQL that mends it
├── PositionLost          the server's binlog no longer reaches back to the stored position; a resync goes on from now
└── BinlogFormat          bytes in a binlog that cannot be read rightly; with file, offset and what to do
"""

from __future__ import annotations

from collections.abc import Iterable

from catalog import Fault
from catalog.portable import Portable


class GatewayError(Portable):
    """Base of all errors of the Gateway."""


class AdsDbUnavailable(GatewayError):
    """Raised when the ads DB cannot be opened, read or written now."""


class StatementFailed(GatewayError):
    """Raised when SQL that a person gave fails; the message quotes the statement."""


class SchemaMismatch(GatewayError):
    """Raised when the ads DB lacks what the catalogue reads; `source_tables` are the ads DB tables at fault."""

    def __init__(self, faults: Iterable[Fault], source_tables: Iterable[str]) -> None:
        self.faults, self.source_tables = tuple(faults), frozenset(source_tables)
        super().__init__("\n".join(map(str, self.faults)))


class MissingTopic(GatewayError):
    """Raised when a stream's topic is not in a log that makes none by itself."""


class ServerUnsuitable(GatewayError):
    """Raised when a server's settings or rights would make the Gateway miss changes."""


class PositionLost(GatewayError):
    """Raised when the changes after the stored position cannot be had from the server any more."""


class BinlogFormat(GatewayError):
    """Raised for binlog events that the Gateway does not read: going on would skip changes."""
