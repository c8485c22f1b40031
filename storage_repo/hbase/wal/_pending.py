"""Edits of transactions of which nobody has seen the end: records in the topic `walproxy.pending`.

A transaction's data cells come before its commit. When a batch ends in between, what is known so far is a record in
the topic before the batch is acknowledged, so that it outlives this process; another record takes it back when the
shadow cell has come. The records that are left are looked up in HBase by whoever holds their partition.
"""

from __future__ import annotations

import msgspec

from messaging.api import OutRecord
from messaging.topics import PENDING
from storage_repo.hbase.wal._cells import RowKey


class Pending(msgspec.Struct, array_like=True, frozen=True):
    """What one transaction did in one row, as far as it was seen. `settled` takes it back."""

    table: bytes
    row: bytes
    start: int
    settled: bool = False
    first_us: int = 0
    """When the first edit came (microseconds since the epoch)."""
    looks: int = 0
    """How often it was looked up, and neither committed nor over."""

    @property
    def key(self) -> RowKey:
        """HBase table, row and start timestamp."""
        return self.table, self.row, self.start


_decode = msgspec.msgpack.Decoder(Pending).decode


def pending_record(pending: Pending, place: str) -> OutRecord:
    """Return the record; `place` ("table/row") keeps the records of a row in order."""
    return OutRecord(PENDING, place, msgspec.msgpack.encode(pending))


def decode_pending(value: bytes) -> Pending:
    """Read a record's value. Raises msgspec.DecodeError."""
    return _decode(value)
