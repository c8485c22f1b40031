"""Binlog events as bytes: their header, their checksum, and binlog files read without a server."""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from gateway._binlog_rows import DELETE, ROWS, TABLE_MAP, UPDATE, RowsEvent, TableMap, table_of
from gateway._exceptions import BinlogFormat

QUERY: Final = 2
STOP: Final = 3
ROTATE: Final = 4
FORMAT_DESCRIPTION: Final = 15
XID: Final = 16
INCIDENT: Final = 26
HEARTBEAT: Final = 27
GTID: Final = 33
ANONYMOUS_GTID: Final = 34
XA_PREPARE: Final = 38
PARTIAL_UPDATE: Final = 39
TRANSACTION_PAYLOAD: Final = 40
TAGGED_GTID: Final = 42
MARIADB_GTID: Final = 162
MARIADB_QUERY_COMPRESSED: Final = 165

HARMLESS: Final = frozenset({3, 5, 13, 14, 15, 27, 28, 29, 35, 36, 37, 41, 160, 161, 163, 164})
"""Events that carry no changes: stops, statements' context, heads of files, heartbeats, annotations, checkpoints."""

IGNORABLE: Final = 0x80
"""Header flag of events that a reader may leave out when it does not know them."""

_HEADER = 19
_HEADER_FIELDS = struct.Struct("<IBIIIH").unpack_from
"""Timestamp, kind, server id, size, position of the next event, flags."""
_MAGIC = b"\xfebin"


class Event(msgspec.Struct, gc=False):
    """One event. `end` is the offset after it in its file; `body` is without header and checksum.

    There are five of a one-row transaction: a Struct is made in a quarter of a dataclass's time.
    """

    kind: int
    timestamp: int
    server_id: int
    end: int
    flags: int
    body: bytes


class EventReader:
    """Cuts events out of bytes; remembers from FORMAT_DESCRIPTION whether they end with a checksum."""

    def __init__(self, checksum: bool) -> None:
        """Begin; `checksum` says what holds until the first FORMAT_DESCRIPTION."""
        self.checksum = checksum
        self.flavour = "mysql"

    def read(self, data: bytes, start: int = 0) -> Event:
        """Return the event that `data` is from an offset on. Raises BinlogFormat when its checksum is wrong."""
        timestamp, kind, server_id, _, position, flags = _HEADER_FIELDS(data, start)
        body, end = start + _HEADER, len(data)
        if kind == FORMAT_DESCRIPTION:
            version = data[body + 2 : body + 52].rstrip(b"\0").decode()
            if "mariadb" in version.lower():
                self.flavour = "mariadb"
            # Servers from 5.6.1 on end it with the algorithm and a checksum, even when the others have none.
            aware = tuple(int(p) for p in version.split("-")[0].split(".")) >= (5, 6, 1)
            self.checksum = aware and data[-5] == 1
            end -= 4 if aware else 0
        elif self.checksum:
            end -= 4
            if zlib.crc32(memoryview(data)[start:end]) != int.from_bytes(data[end:], "little"):
                raise BinlogFormat(
                    f"an event of type {kind} that ends at {position} is damaged: "
                    "its checksum is wrong; check the network and the server's disk"
                )
        return Event(kind, timestamp, server_id, position, flags, data[body:end])


@dataclass(frozen=True, slots=True)
class RowChange:
    """One row of a row event, decoded: `before` is None for an insert, `after` for a delete."""

    schema: str
    table: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class RowDecoder:
    """Turns events into decoded rows; for people, tests and tools. The Gateway itself only takes keys."""

    def __init__(self, flavour: str = "mysql") -> None:
        """Decode events of a server of that flavour."""
        self.flavour = flavour
        self.tables: dict[int, TableMap] = {}

    def rows(self, event: Event) -> Iterator[RowChange]:
        """Yield the rows of an event; nothing for one that has none."""
        if event.kind == TABLE_MAP:
            self.tables[int.from_bytes(event.body[:6], "little")] = table_of(event.body[6:], self.flavour)
        if event.kind not in ROWS:
            return
        rows = RowsEvent(event.kind, event.body)
        table = self.tables[rows.table_id]
        images = rows.images(table)
        for image in images:
            if event.kind in UPDATE:
                yield RowChange(table.schema, table.table, image, next(images))
            elif event.kind in DELETE:
                yield RowChange(table.schema, table.table, image, None)
            else:
                yield RowChange(table.schema, table.table, None, image)


def read_file(path: Path) -> Iterator[tuple[Event, str]]:
    """Yield (event, flavour) of a binlog file, which may be gzipped. Raises BinlogFormat naming the offset."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rb") as file:
        if file.read(4) != _MAGIC:
            raise BinlogFormat(f"{path} is not a binlog: it does not begin with {_MAGIC!r}")
        reader = EventReader(checksum=False)
        at = len(_MAGIC)
        while header := file.read(_HEADER):
            size = int.from_bytes(header[9:13], "little") if len(header) == _HEADER else 0
            rest = file.read(size - _HEADER) if size >= _HEADER else b""
            if size < _HEADER or len(rest) != size - _HEADER:
                raise BinlogFormat(f"{path} is cut off in the event at offset {at}")
            yield reader.read(header + rest), reader.flavour
            at += size


def query_of(event: Event) -> tuple[str, str]:
    """Return (schema, statement) of a QUERY event."""
    body = event.body
    schema_size, status_size = body[8], body[11] | body[12] << 8
    at = 13 + status_size
    schema = body[at : at + schema_size].decode(errors="replace")
    text = body[at + schema_size + 1 :]
    if event.kind == MARIADB_QUERY_COMPRESSED:
        text = zlib.decompress(text[1 + (text[0] & 7) :])
    return schema, text.decode(errors="replace")


def rotate_of(event: Event) -> tuple[str, int]:
    """Return (next file, offset in it) of a ROTATE event."""
    return event.body[8:].decode(), int.from_bytes(event.body[:8], "little")


def mariadb_gtid(event: Event) -> tuple[str, bool]:
    """Return (GTID, whether the group is one statement without a commit event)."""
    sequence, domain = int.from_bytes(event.body[:8], "little"), int.from_bytes(event.body[8:12], "little")
    return f"{domain}-{event.server_id}-{sequence}", bool(event.body[12] & 1)


def mysql_gtid(event: Event) -> tuple[str, int]:
    """Return (GTID, commit time in microseconds, 0 where the server is too old to send it)."""
    body = event.body
    h = body[1:17].hex()
    gtid = f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:]}:{int.from_bytes(body[17:25], 'little')}"
    committed = int.from_bytes(body[42:49], "little") & ((1 << 55) - 1) if len(body) >= 49 else 0
    return ("" if event.kind == ANONYMOUS_GTID else gtid), committed


def xa_of(event: Event) -> str:
    """Return the transaction's name in an XA_PREPARE event, as XA COMMIT statements write it."""
    body = event.body
    form, first, second = (int.from_bytes(body[i : i + 4], "little") for i in (1, 5, 9))
    return f"X'{body[13 : 13 + first].hex()}',X'{body[13 + first : 13 + first + second].hex()}',{form}"
