"""Errors of the Gateway.

GatewayError              catch this to treat every failure of the ads DB and its capture alike
├── AdsDbUnavailable      the ads DB is away, locked or unreadable: back off and try again, nothing is lost
├── StatementFailed       a person's SQL is at fault; nothing of it was done
└── SchemaMismatch        the catalogue names tables or columns that the ads DB does not have; each with file and line
"""

from __future__ import annotations

from collections.abc import Iterable

from catalog import Fault


class GatewayError(Exception):
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
