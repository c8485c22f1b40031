"""Omid's commit table: which transactions are committed whose shadow cells may not all be there yet."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.thrift2 import TColumnValue, TPut
from storage_repo.omid.layout import (
    COMMIT_COLUMN,
    COMMIT_FAMILY,
    COMMIT_TABLE,
    INVALID_COLUMN,
    INVALID_VALUE,
    LOW_WATERMARK_COLUMN,
    LOW_WATERMARK_ROW,
    CommitEntry,
    commit_entry,
    commit_key,
    decode_timestamp,
    start_of_commit_key,
)

_NEWEST = (1 << 63) - 1
_COMMIT_QUALIFIER = COMMIT_COLUMN.partition(b":")[2]
_INVALID_QUALIFIER = INVALID_COLUMN.partition(b":")[2]


class CommitTable:
    """Reads and changes OMID_COMMIT_TABLE; batches are one round trip."""

    def __init__(self, connections: HbaseConnections) -> None:
        self._connections = connections

    def lookup(self, starts: Collection[int]) -> dict[int, CommitEntry]:
        """Return the entries of those transactions, by start timestamp, that have one."""
        if not starts:
            return {}
        keys = [commit_key(start) for start in starts]
        found: dict[int, CommitEntry] = {}
        for row in self._connections.rows(COMMIT_TABLE, keys, [COMMIT_COLUMN, INVALID_COLUMN], _NEWEST):
            start = start_of_commit_key(row.row)
            committed, invalid = row.columns.get(COMMIT_COLUMN), row.columns.get(INVALID_COLUMN)
            entry = commit_entry(start, committed and committed.value, invalid and invalid.value)
            if entry is not None:
                found[start] = entry
        return found

    def invalidate(self, start: int) -> bool:
        """Forbid a transaction to commit, unless it has an entry already; False if it has (look again).

        A False may also be our own invalidation, when the answer to it was lost.
        """
        # Over Thrift1 the mark would get the server's clock as its version; Java clients give it the start timestamp.
        put = TPut(
            row=commit_key(start),
            columnValues=[TColumnValue(COMMIT_FAMILY, _INVALID_QUALIFIER, INVALID_VALUE, start)],
        )
        return self._connections.check_and_put(COMMIT_TABLE, commit_key(start), (COMMIT_FAMILY, _COMMIT_QUALIFIER), put)

    def remove(self, starts: Sequence[int]) -> None:
        """Remove the entries of transactions all of whose shadow cells are written."""
        # One Thrift1 call takes one timestamp: the largest start covers the older entries too, each in its own row.
        self._connections.remove(COMMIT_TABLE, [commit_key(start) for start in starts], COMMIT_COLUMN, max(starts))

    def low_watermark(self) -> int:
        """Return Omid's low watermark: at or below it nothing commits any more, and compaction may collect."""
        for row in self._connections.rows(COMMIT_TABLE, [LOW_WATERMARK_ROW], [LOW_WATERMARK_COLUMN], _NEWEST):
            cell = row.columns.get(LOW_WATERMARK_COLUMN)
            if cell is not None:
                return decode_timestamp(cell.value)
        return 0
