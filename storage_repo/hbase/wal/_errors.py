"""Errors of the WAL proxy.

StoreUnavailable              (storage_repo) catch this where it does not matter which part is away
└── WalProxyError             catch this to treat every failure of the WAL proxy alike
    ├── HBaseAway             ZooKeeper or HBase's master cannot be reached in time: try again later
    ├── HBaseRefused          HBase's master answered with an exception: its class says whose fault it is
    ├── PeerConflict          a replication peer of our id exists and belongs to somebody else: choose another id
    ├── ForeignEdits          a region server sent edits that are meant for another installation's proxies: refused
    └── WireError             bytes that cannot be what HBase says: a version that is not supported, or no HBase at all
"""

from __future__ import annotations

from storage_repo._exceptions import StoreUnavailable


class WalProxyError(StoreUnavailable):
    """Base of all errors of the WAL proxy."""


class HBaseAway(WalProxyError):
    """Raised when ZooKeeper or HBase's master does not answer in time."""


class HBaseRefused(WalProxyError):
    """Raised when HBase's master answered with an exception."""

    def __init__(self, method: str, exception: str, text: str) -> None:
        self.method, self.exception = method, exception
        super().__init__(f"HBase's master refuses {method}: {exception}: {text}")


class PeerConflict(WalProxyError):
    """Raised when a replication peer of the same id exists that is not a WAL proxy's."""


class WireError(WalProxyError):
    """Raised for bytes that are not HBase's RPC as of version 2.6."""


class ForeignEdits(WalProxyError):
    """Raised for edits of a table that is none of this installation's.

    A peer sends the edits of its own tables only, so they are another peer's, whose proxy listened at our address until
    lately. Its own proxies must have them: an acknowledgement from us would lose them.
    """

    def __init__(self, table: bytes) -> None:
        self.table = table
        super().__init__(f"edits of table {table.decode(errors='backslashreplace')} are not for this WAL proxy")
