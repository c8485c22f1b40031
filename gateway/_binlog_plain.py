"""Plain transactions, as nearly all are, read in one pass over the bytes that a connection received.

A transaction of one row has four or five events of some fifty bytes each. Made into packets, events and pieces one by
one (the general path: `_mysql_packets`, `binlog_events`, `_binlog_transactions`) they cost more than all that is done
with the row afterwards. Here nothing is made but the keys, and what repeats is known again by its bytes: a table's
description, and the head of a row event.

The general path decides what is right, and says what is wrong. This one takes a transaction only when all of it has
come and every byte of it is understood; otherwise it leaves it to the general path, from its first event on.
"""

from __future__ import annotations

import struct
import time
from typing import Final
from zlib import crc32

from gateway import binlog_events as ev
from gateway._binlog_rows import STATEMENT_END, TABLE_MAP, KeyScan, RowsEvent, table_of
from gateway._binlog_transactions import Piece, Transactions
from gateway._exceptions import BinlogFormat
from gateway._mysql_packets import LIMIT, PacketCutter
from gateway.binlog_events import Event, EventReader

TOGETHER: Final = 100
"""Changes of plain transactions handed on as one piece: a fifth of a batch. Positions are stored at a piece's end, so
up to so many are published again after a crash, besides those since the position was last stored."""

WHOLE_BYTES: Final = 64 << 10
"""A transaction that has more is read as it comes, by the general path."""

_TABLES_KEPT = 4096
"""Known descriptions of tables: far more than the tables that a server writes to at a time."""

_head = struct.Struct("<IBIBIIIH").unpack_from
"""A packet's size and number, a zero; the event's timestamp, kind, server id, size, offset after it, and flags."""
_EVENT, _KIND, _BODY = 5, 9, 24
"""Offsets in a packet: of the event, which its checksum is of, of the event's kind and of its body."""
_mariadb_gtid = struct.Struct("<QIB").unpack_from
_STANDALONE = 1
_BEGIN = b"\0BEGIN"
_SUM_OF_CHECKED = 0x2144DF1C
"""CRC-32 of any bytes that are followed by their own CRC-32."""

_GTIDS = frozenset({ev.GTID, ev.ANONYMOUS_GTID, ev.MARIADB_GTID})
_PLAIN_ROWS = frozenset({23, 24, 25, 30, 31, 32})
_SECOND_US = 1_000_000
_GENERAL, _WAIT = 0, -1
"""Instead of an offset: the general path shall read on; more has to be received first."""


class _Table:
    """A table, known by the bytes of its description."""

    __slots__ = ("columns", "entity", "heads", "scan", "source_table")

    def __init__(self, columns: int, source_table: str, entity: str, scan: KeyScan | None) -> None:
        self.columns, self.source_table, self.entity = columns, source_table, entity
        self.scan = scan
        """What finds a row's key; None when the general path shall say why it cannot be found."""
        self.heads: dict[int, bytes] = {}
        """Kind of row event -> what stands between the first byte of its flags and its rows, all columns there."""


class PlainTransactions:
    """Takes plain transactions out of a connection's bytes before `transactions` is given their events."""

    def __init__(self, transactions: Transactions, events: EventReader) -> None:
        """Share the position of `transactions`, and what `events` knows of checksums. For the thread of both."""
        self._transactions, self._events = transactions, events
        self._tables: dict[bytes, _Table | None] = {}
        """Description -> its table, None for one whose rows are nobody's."""
        self._gtids: dict[object, str | tuple[int, int, int]] = {}
        """GTIDs since the last piece; of MariaDB the newest of each domain, in numbers."""
        self._next = (0, 0)
        """After the transaction read last: number of the packet, offset in the binlog."""
        self.taken = 0
        """Transactions that were read here."""

    def read(self, packets: PacketCutter, pieces: list[Piece]) -> bool:
        """Take the plain transactions that come next; add what they make to `pieces`.

        Return whether the next transaction has not come as a whole: more has to be received. Otherwise the next packet,
        if there is one, is for the general path.
        """
        if self._transactions.prepared:  # positions are held back meanwhile
            return False
        data, at, number, taken = packets.data, packets.at, packets.number, 0
        now_us = time.time_ns() // 1000
        changes: list[tuple[str, object, int]] = []
        while True:
            try:
                found = self._transaction(data, at, number, now_us, changes)
            except (LookupError, ValueError, struct.error, BinlogFormat):
                found = _GENERAL  # there it is found again, and it is said what is wrong and where
            if found > 0:
                at, taken, (number, end) = found, taken + 1, self._next
            if taken and (found <= 0 or len(changes) >= TOGETHER):
                packets.at, packets.number = at, number
                pieces.append(self._transactions.passed(changes, end, self._named()))
                self.taken += taken
                changes, taken = [], 0
            if found <= 0:
                return found == _WAIT

    def _transaction(
        self, data: bytes, at: int, number: int, now_us: int, changes: list[tuple[str, object, int]]
    ) -> int:
        """Read one transaction; return the offset after it, with what it changed added to `changes`."""
        total, begin, checked, known = len(data), at, self._events.checksum, self._tables
        if at + _BODY > total or data[at + _KIND] not in _GTIDS:
            return _GENERAL
        gtid: str | tuple[int, int, int] = ""
        committed_us = 0
        maps: dict[bytes, _Table | None] = {}
        seen: set[tuple[str, str]] = set()
        keys: list[tuple[str, object]] = []
        while at + _BODY <= total:
            head, zero, timestamp, kind, server_id, _, position, flags = _head(data, at)
            end = at + 4 + (head & LIMIT)
            if zero or head >> 24 != number:
                return _GENERAL
            if end > total:
                return _WAIT if total - begin < WHOLE_BYTES else _GENERAL
            if checked and crc32(data[at + _EVENT : end]) != _SUM_OF_CHECKED:
                return _GENERAL
            number = (number + 1) & 0xFF
            body, at = at + _BODY, end
            if checked:
                end -= 4
            if kind == TABLE_MAP:
                description = data[body + 6 : end]
                if description not in known:
                    self._learn(description)
                maps[data[body : body + 6]] = known[description]
            elif kind in _PLAIN_ROWS:
                table = maps[data[body : body + 6]]
                if data[body + 6] & STATEMENT_END:
                    maps.clear()
                if table is None:
                    continue
                if table.scan is None:
                    return _GENERAL
                row_head = table.heads.get(kind)
                if row_head is None or not data.startswith(row_head, body + 7):
                    row_head = self._learn_head(table, kind, data[body:end])
                    if row_head is None:
                        return _GENERAL
                found = table.scan.keys(data, body + 7 + len(row_head), end)
                if len(found) == 2 and found[0] == found[1]:
                    del found[1]  # an update of one row: before and after
                for key in found:
                    mark = (table.entity, str(key))
                    if mark not in seen:
                        seen.add(mark)
                        keys.append((table.source_table, key))
            elif kind == ev.XID:
                at_us = committed_us
                if not at_us:  # compare Transactions
                    at_us = min(now_us, (timestamp + 1) * _SECOND_US)
                for source_table, key in keys:
                    changes.append((source_table, key, at_us))
                self._gtids[gtid if isinstance(gtid, str) else gtid[0]] = gtid
                self._next = number, position
                return at
            elif kind == ev.QUERY:
                if not _is_begin(data, body, end):
                    return _GENERAL
            elif body - _BODY != begin:
                return _GENERAL
            elif kind == ev.MARIADB_GTID:
                sequence, domain, what = _mariadb_gtid(data, body)
                if what & _STANDALONE:
                    return _GENERAL
                gtid = (domain, server_id, sequence)
            else:
                gtid, committed_us = ev.mysql_gtid(Event(kind, timestamp, server_id, position, flags, data[body:end]))
        return _GENERAL

    def _learn(self, description: bytes) -> None:
        if len(self._tables) >= _TABLES_KEPT:
            self._tables.clear()
        table = table_of(description, self._transactions.flavour)
        target = self._transactions.target(table)
        if target is None:
            self._tables[description] = None
            return
        source_table, entity, key = target
        scan = table.key_scan(key) if table.named else None
        self._tables[description] = _Table(len(table.columns), source_table, entity, scan)

    @staticmethod
    def _learn_head(table: _Table, kind: int, body: bytes) -> bytes | None:
        """Return the head of a row event with all of its table's columns, None for any other one."""
        rows = RowsEvent(kind, body)
        if not rows.full or rows.count != table.columns:
            return None
        table.heads[kind] = body[7 : rows.start]
        return table.heads[kind]

    def _named(self) -> list[str]:
        """Return the GTIDs since the last time as text."""
        gtids = [gtid if isinstance(gtid, str) else "{}-{}-{}".format(*gtid) for gtid in self._gtids.values()]
        self._gtids.clear()
        return gtids


def _is_begin(data: bytes, body: int, end: int) -> bool:
    """Say whether the body of a QUERY event is the statement BEGIN (compare `binlog_events.query_of`)."""
    start = body + 13 + data[body + 8] + (data[body + 11] | data[body + 12] << 8)
    return end - start == len(_BEGIN) and data.startswith(_BEGIN, start)
