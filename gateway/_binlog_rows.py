"""TABLE_MAP and row events: the rows' values, or only the keys that the Gateway needs, at a fraction of the cost.

A TABLE_MAP event precedes the row events of every statement and repeats the table's whole description. Equal bytes
describe equal tables, so its parsed form is kept by them: any change of the schema has other bytes and is parsed anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from pymysqlreplication.constants import FIELD_TYPE

from catalog.keys import join_key
from gateway._binlog_values import (
    BLOB_COMPRESSED,
    VARCHAR_COMPRESSED,
    VECTOR,
    ColumnType,
    Reader,
    charset_name,
    uncompress_rows,
)
from gateway._exceptions import BinlogFormat

TABLE_MAP: Final = 19
WRITE: Final = frozenset({23, 30, 166, 169})
UPDATE: Final = frozenset({24, 31, 167, 170})
DELETE: Final = frozenset({25, 32, 168, 171})
ROWS: Final = WRITE | UPDATE | DELETE
_V2: Final = frozenset({30, 31, 32, 169, 170, 171})
_COMPRESSED: Final = frozenset(range(166, 172))
STATEMENT_END: Final = 1
"""Flag of the last row event of a statement: table numbers mean nothing after it."""

_TABLES_KEPT = 4096
"""Parsed table maps kept: far more than the tables that a server writes to at a time."""

_ONE_BYTE = frozenset(
    {FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE, FIELD_TYPE.TIMESTAMP2, FIELD_TYPE.DATETIME2, FIELD_TYPE.TIME2}
    | {FIELD_TYPE.BLOB, FIELD_TYPE.GEOMETRY, FIELD_TYPE.JSON, BLOB_COMPRESSED, VECTOR}
)
_TWO_BYTES = frozenset(
    {FIELD_TYPE.VARCHAR, FIELD_TYPE.BIT, FIELD_TYPE.NEWDECIMAL, FIELD_TYPE.STRING, FIELD_TYPE.VAR_STRING}
    | {FIELD_TYPE.ENUM, FIELD_TYPE.SET, VARCHAR_COMPRESSED}
)
_TEXT = frozenset({FIELD_TYPE.STRING, FIELD_TYPE.VARCHAR, FIELD_TYPE.BLOB, VARCHAR_COMPRESSED, BLOB_COMPRESSED})
_NUMERIC = frozenset(
    {FIELD_TYPE.TINY, FIELD_TYPE.SHORT, FIELD_TYPE.INT24, FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG}
    | {FIELD_TYPE.NEWDECIMAL, FIELD_TYPE.FLOAT, FIELD_TYPE.DOUBLE, FIELD_TYPE.YEAR}
)


class TableMap:
    """A table as it was when rows were logged. `columns` have no names unless the server logged full metadata."""

    def __init__(self, raw: bytes, flavour: str) -> None:
        """Parse a TABLE_MAP event's bytes after the table number. Raises BinlogFormat."""
        at = 2  # flags
        size = raw[at]
        self.schema = raw[at + 1 : at + 1 + size].decode()
        at += size + 2
        size = raw[at]
        self.table = raw[at + 1 : at + 1 + size].decode()
        at += size + 2
        count, at = lenenc(raw, at)
        types = raw[at : at + count]
        size, at = lenenc(raw, at + count)
        self.columns: list[ColumnType] = []
        for kind in types:
            width = 1 if kind in _ONE_BYTE else 2 if kind in _TWO_BYTES else 0
            self.columns.append(ColumnType(kind, raw[at : at + width]))
            at += width
        self._metadata(raw, at + (count + 7) // 8, flavour)
        self.named = all(column.name for column in self.columns)
        """Whether the column names were logged."""
        self._readers = [column.reader() for column in self.columns]
        self._scans: dict[tuple[str, ...], KeyScan | None] = {}

    def key_scan(self, names: Sequence[str]) -> KeyScan | None:
        """Return what finds the values of the columns of those names (any case); None when one is not there."""
        asked = tuple(names)
        if asked not in self._scans:
            wanted = [name.lower() for name in names]
            where = {column.name.lower(): i for i, column in enumerate(self.columns)}
            fits = all(name in where for name in wanted)
            self._scans[asked] = KeyScan(self.columns, [where[name] for name in wanted]) if fits else None
        return self._scans[asked]

    def read_row(self, data: bytes, at: int, present: bytes) -> tuple[dict[str, Any], int]:
        """Return one row's values by column name (or @1, @2, … without names), and the offset after it."""
        there = [i for i in range(len(self.columns)) if present[i >> 3] >> (i & 7) & 1]
        nulls = data[at : at + (len(there) + 7) // 8]
        at += len(nulls)
        values: dict[str, Any] = {}
        for bit, i in enumerate(there):
            name = self.columns[i].name or f"@{i + 1}"
            if nulls[bit >> 3] >> (bit & 7) & 1:
                values[name] = None
            else:
                values[name], at = self._readers[i](data, at)
        return values, at

    def _metadata(self, raw: bytes, at: int, flavour: str) -> None:
        text = [c for c in self.columns if c.type in _TEXT or (flavour == "mariadb" and c.type == FIELD_TYPE.GEOMETRY)]
        choice = [c for c in self.columns if c.type in (FIELD_TYPE.ENUM, FIELD_TYPE.SET)]
        while at < len(raw):
            kind = raw[at]
            size, at = lenenc(raw, at + 1)
            value = raw[at : at + size]
            at += size
            if kind == 1:
                numbers = [c for c in self.columns if c.type in _NUMERIC]
                for i, column in enumerate(numbers):
                    column.unsigned = bool(value[i >> 3] & (0x80 >> (i & 7)))
            elif kind in (2, 10):
                _charsets_by_default(value, text if kind == 2 else choice, flavour)
            elif kind in (3, 11):
                for column, number in zip(text if kind == 3 else choice, _numbers(value), strict=True):
                    column.charset = charset_name(number, flavour)
            elif kind == 4:
                for column, (name, _) in zip(self.columns, _strings(value), strict=True):
                    column.name = name.decode()
            elif kind in (5, 6):
                wanted = FIELD_TYPE.SET if kind == 5 else FIELD_TYPE.ENUM
                self._choices(value, [c for c in self.columns if c.type == wanted])

    def _choices(self, value: bytes, columns: Sequence[ColumnType]) -> None:
        at = 0
        for column in columns:
            count, at = lenenc(value, at)
            found = []
            for _ in range(count):
                size, at = lenenc(value, at)
                found.append(value[at : at + size].decode(errors="backslashreplace"))
                at += size
            column.choices = tuple(found)


class KeyScan:
    """Finds the keys that some columns make in rows, and steps over all the others without decoding them."""

    def __init__(self, columns: Sequence[ColumnType], wanted: Sequence[int]) -> None:
        """Find the columns at the positions `wanted`, in that order."""
        self._columns, self._wanted = columns, list(wanted)
        self._null_bytes = (len(columns) + 7) // 8
        unused = (1 << 8 * self._null_bytes) - (1 << len(columns))
        self._none_null = frozenset(bits.to_bytes(self._null_bytes, "little") for bits in (0, unused))
        """MySQL sets the unused last bits of a row's bitmap of nulls."""
        self._order = None if len(wanted) == 1 else [sorted(wanted).index(i) for i in wanted]
        """Places of the wanted values among those found, which come in the columns' order."""
        self._readers = {i: columns[i].reader() for i in wanted}
        self._steps = self._plan()

    def keys(self, data: bytes, at: int, end: int) -> list[object]:
        """Return the key (`catalog.keys.join_key`) of every row image between two offsets; all columns are present."""
        keys: list[object] = []
        null_bytes, none_null, steps, order = self._null_bytes, self._none_null, self._steps, self._order
        while at < end:
            nulls = data[at : at + null_bytes]
            at += null_bytes
            if nulls not in none_null:
                values, at = self._slow(data, at, nulls)
                keys.append(join_key(values))
                continue
            found: list[Any] = []
            for kind, argument, reader in steps:
                if kind == 0:
                    at += argument
                elif kind == 1:
                    at += 1 + data[at]
                elif kind == 2:
                    at += 2 + data[at] + (data[at + 1] << 8)
                elif kind == 3:
                    at += argument + int.from_bytes(data[at : at + argument], "little")
                else:
                    value, at = reader(data, at)
                    found.append(value)
            keys.append(found[0] if order is None else join_key([found[i] for i in order]))
        if at != end:
            raise BinlogFormat(f"a row event ends {at - end} bytes too early for its table; upgrade adsindex")
        return keys

    def _slow(self, data: bytes, at: int, nulls: bytes) -> tuple[tuple[Any, ...], int]:
        found: dict[int, Any] = {}
        for i, column in enumerate(self._columns):
            if nulls[i >> 3] >> (i & 7) & 1:
                continue
            if i in self._readers:
                found[i], at = self._readers[i](data, at)
            elif column.length_size:
                at += column.length_size + int.from_bytes(data[at : at + column.length_size], "little")
            else:
                at += column.width
        return tuple(found.get(i) for i in self._wanted), at

    def _plan(self) -> list[tuple[int, int, Reader]]:
        """Steps of a row without nulls: (0, width) over fixed ones together, (1 or 2, -), (3, prefix), (4, key)."""
        steps: list[tuple[int, int, Reader]] = []
        for i, column in enumerate(self._columns):
            if i in self._readers:
                steps.append((4, i, self._readers[i]))
            elif column.length_size in (1, 2):
                steps.append((column.length_size, 0, _never))
            elif column.length_size:
                steps.append((3, column.length_size, _never))
            elif steps and steps[-1][0] == 0:
                steps[-1] = (0, steps[-1][1] + column.width, _never)
            else:
                steps.append((0, column.width, _never))
        return steps


class RowsEvent:
    """A row event: which table, which images, where its rows begin."""

    def __init__(self, kind: int, payload: bytes) -> None:
        """Read the head of a row event's payload."""
        self.kind = kind
        self.table_id = int.from_bytes(payload[:6], "little")
        self.flags = payload[6] | payload[7] << 8
        at = 8
        if kind in _V2:
            at += payload[8] | payload[9] << 8
        self.count, at = lenenc(payload, at)
        size = (self.count + 7) // 8
        images = 2 if kind in UPDATE else 1
        self.present = [payload[at + i * size : at + (i + 1) * size] for i in range(images)]
        at += images * size
        self.data, self.start = (uncompress_rows(payload[at:]), 0) if kind in _COMPRESSED else (payload, at)

    @property
    def full(self) -> bool:
        """Whether all columns are in all images. MySQL sets a bitmap's unused last bits, MariaDB does not."""
        whole = (1 << self.count) - 1
        return all(int.from_bytes(p, "little") & whole == whole for p in self.present)

    def images(self, table: TableMap) -> Iterator[dict[str, Any]]:
        """Yield every row image; those of an update alternate: before, after."""
        if self.count != len(table.columns):
            raise BinlogFormat(f"a row of {table.table} has {self.count} columns, its map {len(table.columns)}")
        at, turn = self.start, 0
        while at < len(self.data):
            values, at = table.read_row(self.data, at, self.present[turn % len(self.present)])
            turn += 1
            yield values


@lru_cache(maxsize=_TABLES_KEPT)
def table_of(raw: bytes, flavour: str) -> TableMap:
    """Return the parsed table of a TABLE_MAP event's bytes after the table number."""
    return TableMap(raw, flavour)


def lenenc(data: bytes, at: int) -> tuple[int, int]:
    """Return a length-encoded integer and the offset after it."""
    first = data[at]
    if first < 251:
        return first, at + 1
    size = {252: 2, 253: 3, 254: 8}[first]
    return int.from_bytes(data[at + 1 : at + 1 + size], "little"), at + 1 + size


def _numbers(value: bytes) -> list[int]:
    found, at = [], 0
    while at < len(value):
        number, at = lenenc(value, at)
        found.append(number)
    return found


def _strings(value: bytes) -> list[tuple[bytes, int]]:
    found, at = [], 0
    while at < len(value):
        size, at = lenenc(value, at)
        found.append((value[at : at + size], at))
        at += size
    return found


def _charsets_by_default(value: bytes, columns: Sequence[ColumnType], flavour: str) -> None:
    default, *pairs = _numbers(value) or [0]
    others = dict(zip(pairs[::2], pairs[1::2], strict=True))
    for i, column in enumerate(columns):
        column.charset = charset_name(others.get(i, default), flavour)


def _never(_data: bytes, _at: int) -> tuple[Any, int]:
    raise AssertionError("this step reads nothing")
