"""A server's binlog as a stream of events, by mysql-replication's dump protocol, with our own reading and reconnects.

The library's reader asks the server for the binlog (file and offset, MariaDB GTIDs, MySQL GTIDs). Its own event loop is
not used: it connects again by itself, in GTID mode from the first position, without back-off and without telling.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from typing import Any

import pymysql
from pymysql.protocol import MysqlPacket
from pymysqlreplication import BinLogStreamReader

from gateway import _mysql
from gateway._exceptions import AdsDbUnavailable, PositionLost
from gateway._mysql import Address
from gateway._mysql_packets import PacketCutter
from gateway._mysql_server import MARIADB, Server
from gateway.binlog_events import Event, EventReader
from gateway.binlog_position import BinlogPosition

HEARTBEAT_SECONDS = 2.0
"""The server says that it is alive when it has had nothing to send for so long."""

SILENT_SECONDS = 3 * HEARTBEAT_SECONDS + 2
"""A connection without even a heartbeat for so long is dead, whatever TCP thinks."""

_READ_BYTES = 64 << 10
"""Asked for at a time: some hundred transactions of one row, which are then handed on together."""

_ERROR = 0xFF

_FATAL = 1236
"""What a server ends a dump with when it cannot go on from the position asked for, in words that differ by release."""
_POSITION_LOST = (_FATAL, 1789, 1790)
_SAME_READER = "server_uuid/server_id"
"""In the one text of 1236 that says nothing of the position: another reader came with the same id."""


class BinlogStream:
    """One connection that receives the binlog after a position. `events` runs in one thread, `close` in any."""

    def __init__(self, address: Address, server: Server, after: BinlogPosition, reader_id: int) -> None:
        """Ask for the binlog after a position, by GTIDs where it has any. Raises AdsDbUnavailable, PositionLost."""
        self._name = address.name
        settings = address.settings() | {"read_timeout": SILENT_SECONDS}
        settings.pop("database")
        by_gtid = bool(after.gtid)
        self._reader = BinLogStreamReader(
            connection_settings=settings,
            server_id=reader_id,
            blocking=True,
            # Without it file and offset are ignored and the whole file comes again.
            resume_stream=True,
            log_file=None if by_gtid else after.file,
            log_pos=None if by_gtid else after.offset,
            auto_position=after.gtid or None,
            # With it and without GTIDs the library would start at the oldest binlog.
            is_mariadb=by_gtid and server.flavour == MARIADB,
            slave_heartbeat=HEARTBEAT_SECONDS,
            enable_logging=False,
        )
        with _mysql.translated(self._name):
            self._reader._BinLogStreamReader__connect_to_stream()
        self._connection: Any = self._reader._stream_connection
        self.decoder = EventReader(checksum=bool(self._reader._BinLogStreamReader__use_checksum))
        self.heard_at = time.monotonic()
        self._closed = False

    def events(self) -> Iterator[Event]:
        """Yield events as they come, for ever. Raises AdsDbUnavailable, PositionLost, BinlogFormat."""
        for packets in self.received():
            while (event := self.next_of(packets)) is not None:
                yield event

    def received(self) -> Iterator[PacketCutter]:
        """Yield the same packets each time that more bytes have come, for ever. Raises AdsDbUnavailable.

        Take what is whole, by `next_of` or in place, before more is asked for.
        """
        self._connection._sock.settimeout(self._connection._read_timeout)
        packets = PacketCutter(self._connection._next_seq_id)
        while True:
            try:
                some = self._connection._rfile.read1(_READ_BYTES)
                if not some:
                    raise OSError("the server closed the connection")
            except (OSError, ValueError, AttributeError) as error:  # closed under the read by `close`
                raise self._broken(error) from error
            packets.add(some)
            self.heard_at = time.monotonic()
            yield packets

    def next_of(self, packets: PacketCutter) -> Event | None:
        """Return the next event; None when none is whole. Raises AdsDbUnavailable, PositionLost, BinlogFormat."""
        try:
            data = packets.next()
        except OSError as error:
            raise self._broken(error) from error
        if data is None:
            return None
        if data[0] == _ERROR:
            try:
                MysqlPacket(data, "utf8mb4").raise_for_error()
            except pymysql.MySQLError as error:
                raise failure_of(self._name, error) from error
        if data[0] == 0xFE and len(data) < 9:
            raise AdsDbUnavailable(f"ads DB {self._name}: the server ended the binlog stream; it is asked again")
        return self.decoder.read(data, 1)

    def _broken(self, error: Exception) -> AdsDbUnavailable:
        if self._closed:
            return AdsDbUnavailable(f"ads DB {self._name}: the binlog reader was closed")
        return AdsDbUnavailable(f"ads DB {self._name}: reading the binlog failed: {error}")

    def close(self) -> None:
        """End the connection, and with it a read that waits in another thread; safe to call twice."""
        self._closed = True
        with contextlib.suppress(OSError, AttributeError, ssl.SSLError):
            self._connection._sock.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError, pymysql.MySQLError):
            self._connection._force_close()


def failure_of(name: str, error: pymysql.MySQLError) -> AdsDbUnavailable | PositionLost:
    """Return what an error that a server sends instead of its binlog means."""
    code = error.args[0] if error.args else 0
    text = _mysql.describe(error)
    if code == _FATAL and _SAME_READER in text.lower():
        return AdsDbUnavailable(f"ads DB {name}: {text}; another reader took over, it is tried again")
    if code in _POSITION_LOST:
        return PositionLost(
            f"ads DB {name}: the server cannot send the binlog after the stored position: {text}. Changes "
            "are missing from the stream. Run the resync workflow: the Gateway then follows the binlog from its "
            "present end and sends every row again; rows deleted meanwhile are found by it as well"
        )
    return AdsDbUnavailable(f"ads DB {name}: {text}; it is tried again")
