"""Errors of the TSO client.

StoreUnavailable              (storage_repo) catch this where it does not matter which part is away
└── TsoError                  catch this to treat every failure of the TSO client alike
    ├── TsoUnavailable        no TSO answered in time, and what was asked has not happened: ask again later
    ├── CommitUnknown         the commit may have happened or not: look into the commit table, or invalidate it there
    ├── TsoIncompatible       what answers is no TSO that this client can work with: configuration is at fault
    └── TsoClosed             the client has been closed: a bug of the caller
"""

from __future__ import annotations

from storage_repo._exceptions import StoreUnavailable


class TsoError(StoreUnavailable):
    """Base of all errors of the TSO client."""


class TsoUnavailable(TsoError):
    """Raised when no TSO answered in time and nothing happened: no timestamp was given, no commit was ever sent."""


class CommitUnknown(TsoError):
    """Raised when a commit was sent and no answer came in time, over all new connections and retries.

    The transaction may be committed, may still become so, or not. Only the commit table can tell: an entry is the
    answer; without one, invalidate the transaction there, and what then stands in the table is the answer.
    """

    def __init__(self, start_ts: int, why: str) -> None:
        self.start_ts = start_ts
        super().__init__(f"whether transaction {start_ts} is committed is unknown: {why}; look into the commit table")


class TsoIncompatible(TsoError):
    """Raised when what answers does not speak the TSO's protocol, or runs in a mode that this client does not take."""


class TsoClosed(TsoError):
    """Raised when a client is used after close; commits that were open then are CommitUnknown."""
