"""The rows of a SELECT as they come, many at a time: what pymysql's unbuffered cursor gives, at a third of its cost.

pymysql reads the head and the payload of each row by themselves and makes an object of each. Here one read brings
hundreds of rows. A result is still never all in memory: a row of many megabytes is given before the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pymysql
from pymysql.constants import CR
from pymysql.cursors import SSCursor
from pymysql.protocol import EOFPacketWrapper, MysqlPacket

from gateway._binlog_rows import lenenc
from gateway._mysql_packets import PacketCutter

_READ_BYTES = 64 << 10
"""Asked for at a time: the rows of some hundred entities."""

_NULL, _EOF, _ERROR = 0xFB, 0xFE, 0xFF
_EOF_BYTES = 9
"""A packet that begins like an EOF and has so many bytes is a row with a long first value."""


def rows_of(cursor: SSCursor) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of what was executed; the connection is of no more use when not all of them are taken.

    Raises what the cursor's own methods raise.
    """
    connection, result = cursor.connection, cursor._result
    if not result.unbuffered_active:  # no result set
        return
    converters = [_converter(encoding, convert) for encoding, convert in result.converters]
    packets = PacketCutter(connection._next_seq_id)
    try:
        while True:
            data = packets.next()
            if data is None:
                packets.add(_received(connection))
            elif data[0] == _ERROR:
                MysqlPacket(data, connection.encoding).raise_for_error()
            elif data[0] == _EOF and len(data) < _EOF_BYTES:
                end = EOFPacketWrapper(MysqlPacket(data, connection.encoding))
                result.warning_count, result.has_next = end.warning_count, end.has_next
                connection._next_seq_id = packets.number
                result.unbuffered_active = False
                return
            else:
                yield _row(data, converters)
    except OSError as error:
        raise pymysql.OperationalError(CR.CR_SERVER_LOST, f"reading rows failed: {error}") from error
    finally:
        result.connection = None
        if result.unbuffered_active:  # what was received of the rest is nowhere else
            result.unbuffered_active = False
            connection._force_close()


def _received(connection: Any) -> bytes:
    try:
        some: bytes = connection._rfile.read1(_READ_BYTES)
    except AttributeError:  # another thread has closed the connection
        some = b""
    if not some:
        raise OSError("the server closed the connection")
    return some


def _row(data: bytes, converters: list[Callable[[bytes], Any]]) -> tuple[Any, ...]:
    values: list[Any] = []
    at = 0
    for convert in converters:
        size = data[at]
        at += 1
        if size >= _NULL:
            if size == _NULL:
                values.append(None)
                continue
            size, at = lenenc(data, at - 1)
        values.append(convert(data[at : at + size]))
        at += size
    return tuple(values)


def _converter(encoding: str | None, convert: Callable[[Any], Any] | None) -> Callable[[bytes], Any]:
    """Return what makes a value of its bytes: pymysql's decoding and conversion in one step, where that is the same."""
    if encoding is None:
        return convert or bytes
    if convert is int:
        return int
    if convert is None:
        return bytes.decode if encoding in ("utf8", "utf-8") else lambda raw: raw.decode(encoding)
    return lambda raw: convert(raw.decode(encoding))
