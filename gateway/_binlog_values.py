"""Values in row events: how wide each column is, and what it holds, as SELECT gives it (MySQL internals, "Row events").

Integers and decimals are exact, unsigned ones unsigned. CHAR and text are text by the column's character set, binary
columns bytes at their full length. SET is its members joined by commas, BIT bytes, TIME a timedelta. Dates that are
none ("0000-00-00") stay text, as the driver gives them. JSON of MySQL is the decoded document; MariaDB's is text.
"""

from __future__ import annotations

import datetime
import decimal
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymysqlreplication.constants import CHARSET, FIELD_TYPE

from gateway import _binlog_json
from gateway._exceptions import BinlogFormat

BLOB_COMPRESSED, VARCHAR_COMPRESSED, VECTOR = 140, 141, 242
_BINARY_CHARSET = 63
_DIGIT_BYTES = (0, 1, 1, 2, 2, 3, 3, 4, 4, 4)
_EPOCH = datetime.datetime(1970, 1, 1)

ENCODINGS = {
    "utf8": "utf-8", "utf8mb3": "utf-8", "utf8mb4": "utf-8", "ascii": "ascii", "latin1": "cp1252",
    "latin2": "iso8859-2", "latin5": "iso8859-9", "latin7": "iso8859-13", "greek": "iso8859-7",
    "hebrew": "iso8859-8", "koi8r": "koi8-r", "koi8u": "koi8-u", "ucs2": "utf-16-be", "utf16": "utf-16-be",
    "utf16le": "utf-16-le", "utf32": "utf-32-be", "sjis": "cp932", "cp932": "cp932", "ujis": "euc-jp",
    "eucjpms": "euc-jp", "gb2312": "gbk", "gbk": "gbk", "gb18030": "gb18030", "big5": "big5", "euckr": "cp949",
    "tis620": "tis-620", "macroman": "mac-roman", "macce": "mac-latin2", "cp1250": "cp1250", "cp1251": "cp1251",
    "cp1256": "cp1256", "cp1257": "cp1257", "cp850": "cp850", "cp852": "cp852", "cp866": "cp866",
}  # fmt: skip
"""Character set -> Python's codec; text of any other one comes as bytes."""

Reader = Callable[[bytes, int], tuple[Any, int]]
"""Take a row's bytes and an offset; return the value and the offset after it."""


@dataclass(slots=True)
class ColumnType:
    """A column as TABLE_MAP describes it. `width` is 0 for one whose length stands before it in `length_size` bytes."""

    type: int
    meta: bytes
    name: str = ""
    unsigned: bool = False
    charset: str | None = None
    choices: tuple[str, ...] = ()
    width: int = 0
    length_size: int = 0

    def __post_init__(self) -> None:
        """Work out the width. Raises BinlogFormat for a type that is not known."""
        meta = self.meta
        if self.type in (FIELD_TYPE.STRING, FIELD_TYPE.VAR_STRING):
            real = meta[0]
            if real in (FIELD_TYPE.ENUM, FIELD_TYPE.SET):
                self.type, self.width = real, meta[1]
                return
            # Bits 4 and 5 of the type byte hold the two highest bits of the length, inverted.
            self.type, self.length = FIELD_TYPE.STRING, ((((meta[0] << 4) & 0x300) ^ 0x300) + meta[1])
            self.length_size = 1 if self.length < 256 else 2
        elif self.type in (FIELD_TYPE.VARCHAR, VARCHAR_COMPRESSED):
            self.length = int.from_bytes(meta, "little")
            self.length_size = 1 if self.length < 256 else 2
        elif self.type in (FIELD_TYPE.BLOB, FIELD_TYPE.GEOMETRY, FIELD_TYPE.JSON, BLOB_COMPRESSED, VECTOR):
            self.length_size = meta[0]
        elif self.type == FIELD_TYPE.NEWDECIMAL:
            precision, scale = meta
            whole = precision - scale
            self.width = sum(4 * (n // 9) + _DIGIT_BYTES[n % 9] for n in (whole, scale))
        elif self.type == FIELD_TYPE.BIT:
            self.width = (meta[1] * 8 + meta[0] + 7) // 8
        elif self.type in _FRACTIONAL:
            self.width = _FRACTIONAL[self.type] + (meta[0] + 1) // 2
        elif self.type in _FIXED:
            self.width = _FIXED[self.type]
        else:
            raise BinlogFormat(f"column {self.name or '?'} has the unknown type {self.type}; upgrade adsindex")

    length: int = 0

    def reader(self) -> Reader:
        """Return the function that reads the column's value."""
        if self.length_size:
            return self._length_prefixed()
        size = self.width
        if self.type in _INTEGERS and size in _WHOLE:
            unpack = struct.Struct(_WHOLE[size].upper() if self.unsigned else _WHOLE[size]).unpack_from

            def whole(data: bytes, at: int) -> tuple[Any, int]:
                return unpack(data, at)[0], at + size

            return whole
        convert = self._convert()

        def fixed(data: bytes, at: int) -> tuple[Any, int]:
            return convert(data[at : at + size]), at + size

        return fixed

    def _length_prefixed(self) -> Reader:
        prefix = self.length_size
        convert = self._convert()

        def prefixed(data: bytes, at: int) -> tuple[Any, int]:
            start = at + prefix
            end = start + int.from_bytes(data[at:start], "little")
            return convert(data[start:end]), end

        return prefixed

    def _convert(self) -> Callable[[bytes], Any]:
        kind = self.type
        if kind in _INTEGERS:
            signed = not self.unsigned
            return lambda raw: int.from_bytes(raw, "little", signed=signed)
        if kind in (FIELD_TYPE.STRING, FIELD_TYPE.VARCHAR, FIELD_TYPE.BLOB, VARCHAR_COMPRESSED, BLOB_COMPRESSED):
            return self._text()
        if kind == FIELD_TYPE.NEWDECIMAL:
            precision, scale = self.meta
            return lambda raw: _decimal(raw, precision, scale)
        if kind == FIELD_TYPE.ENUM:
            choices = ("", *self.choices)
            return lambda raw: choices[i] if (i := int.from_bytes(raw, "little")) < len(choices) else i
        if kind == FIELD_TYPE.SET:
            members = self.choices
            return lambda raw: ",".join(m for i, m in enumerate(members) if int.from_bytes(raw, "little") >> i & 1)
        if kind in _FRACTIONAL:
            digits = self.meta[0]
            return lambda raw: _FRACTIONAL_READERS[kind](raw, digits)
        return _READERS[kind]

    def _text(self) -> Callable[[bytes], Any]:
        encoding = ENCODINGS.get(self.charset or "utf8mb4") if self.charset != "binary" else None
        padded = self.length if self.type == FIELD_TYPE.STRING and encoding is None else 0
        compressed = self.type in (VARCHAR_COMPRESSED, BLOB_COMPRESSED)

        def text(raw: bytes) -> str | bytes:
            if compressed:
                raw = uncompress_column(raw)
            if encoding is None:
                return raw.ljust(padded, b"\0")
            try:
                return raw.decode(encoding)
            except UnicodeDecodeError:
                # cp1252 has five holes where MySQL's latin1 has control characters; any other text is as it is stored.
                return raw.decode("latin1") if encoding == "cp1252" else raw

        return text


def charset_name(number: int, flavour: str) -> str | None:
    """Return the character set of a collation's number, None if unknown."""
    if number == _BINARY_CHARSET:
        return "binary"
    found = CHARSET.charset_by_id(number, flavour)
    return None if found is None else str(found.name)


def uncompress_column(raw: bytes) -> bytes:
    """Return the content of a MariaDB COMPRESSED column: one byte says how, then the length and zlib's data."""
    if not raw:
        return raw
    if raw[0] >> 4 == 0:
        return raw[1:]
    # Bit 3 says that zlib's own head and checksum were left out.
    return zlib.decompress(raw[1 + (raw[0] & 7) :], wbits=-zlib.MAX_WBITS if raw[0] & 8 else zlib.MAX_WBITS)


def uncompress_rows(raw: bytes) -> bytes:
    """Return what MariaDB's log_bin_compress compressed."""
    return zlib.decompress(raw[1 + (raw[0] & 7) :])


def _decimal(raw: bytes, precision: int, scale: int) -> decimal.Decimal:
    negative = not raw[0] & 0x80
    data = bytes([raw[0] ^ 0x80]) + raw[1:]
    if negative:
        data = bytes(b ^ 0xFF for b in data)
    whole, at = precision - scale, 0
    digits: list[str] = []
    for n, first in ((whole, True), (scale, False)):
        groups = [9] * (n // 9)
        if n % 9:
            groups = [n % 9, *groups] if first else [*groups, n % 9]
        for group in groups:
            size = _DIGIT_BYTES[group]
            digits.append(f"{int.from_bytes(data[at : at + size], 'big'):0{group}d}")
            at += size
        if first and scale:
            digits.append(".")
    text = "".join(digits)
    return decimal.Decimal(f"{'-' if negative else ''}{text if whole else '0' + text}")


def _fraction(raw: bytes, digits: int) -> int:
    """Microseconds of the fractional part, which is big-endian in as many bytes as its digits need."""
    return int.from_bytes(raw, "big") * 10 ** (6 - 2 * ((digits + 1) // 2)) if digits else 0


def _clock(text: str, micros: int, digits: int) -> str:
    return f"{text}.{micros:06d}"[: len(text) + 1 + digits] if digits else text


def _datetime2(raw: bytes, digits: int) -> datetime.datetime | str:
    packed = int.from_bytes(raw[:5], "big") - 0x8000000000
    micros = _fraction(raw[5:], digits)
    month = packed >> 22
    parts = (month // 13, month % 13, packed >> 17 & 31, packed >> 12 & 31, packed >> 6 & 63, packed & 63)
    return _moment(parts, micros, digits)


def _moment(parts: tuple[int, ...], micros: int, digits: int) -> datetime.datetime | str:
    try:
        return datetime.datetime(*parts, micros)  # type: ignore[arg-type,call-arg,unused-ignore]
    except ValueError:
        return _clock("{:04d}-{:02d}-{:02d} {:02d}:{:02d}:{:02d}".format(*parts), micros, digits)


def _timestamp2(raw: bytes, digits: int) -> datetime.datetime | str:
    seconds, micros = int.from_bytes(raw[:4], "big"), _fraction(raw[4:], digits)
    if not seconds and not micros:
        return _clock("0000-00-00 00:00:00", 0, digits)
    return _EPOCH + datetime.timedelta(seconds=seconds, microseconds=micros)


def _time2(raw: bytes, digits: int) -> datetime.timedelta:
    extra = 2 * ((digits + 1) // 2)
    bits = 8 * len(raw)
    packed = int.from_bytes(raw, "big") - (1 << (bits - 1))
    sign, packed = (-1, -packed) if packed < 0 else (1, packed)
    clock, part = packed >> (bits - 24), packed & ((1 << (bits - 24)) - 1)
    micros = part * 10 ** (6 - extra) if extra else 0
    return sign * datetime.timedelta(
        hours=clock >> 12 & 1023, minutes=clock >> 6 & 63, seconds=clock & 63, microseconds=micros
    )


def _date(raw: bytes) -> datetime.date | str:
    packed = int.from_bytes(raw, "little")
    year, month, day = packed >> 9, packed >> 5 & 15, packed & 31
    try:
        return datetime.date(year, month, day)
    except ValueError:
        return f"{year:04d}-{month:02d}-{day:02d}"


def _old_datetime(raw: bytes) -> datetime.datetime | str:
    date, time = divmod(int.from_bytes(raw, "little"), 1_000_000)
    parts = (date // 10000, date // 100 % 100, date % 100, time // 10000, time // 100 % 100, time % 100)
    return _moment(parts, 0, 0)


def _old_timestamp(raw: bytes) -> datetime.datetime | str:
    return _timestamp2(raw[::-1], 0)


def _old_time(raw: bytes) -> datetime.timedelta:
    packed = int.from_bytes(raw, "little", signed=True)
    sign, packed = (-1, -packed) if packed < 0 else (1, packed)
    return sign * datetime.timedelta(hours=packed // 10000, minutes=packed // 100 % 100, seconds=packed % 100)


def _float(raw: bytes) -> float:
    """The shortest number that names the binary32 value, not its binary64 noise."""
    return float(str(np.frombuffer(raw, dtype="<f4")[0]))


def _json(raw: bytes) -> Any:
    return _binlog_json.parse(raw, _decimal) if raw else None


_INTEGERS = {FIELD_TYPE.TINY: 1, FIELD_TYPE.SHORT: 2, FIELD_TYPE.INT24: 3, FIELD_TYPE.LONG: 4, FIELD_TYPE.LONGLONG: 8}
_WHOLE = {1: "<b", 2: "<h", 4: "<i", 8: "<q"}
"""Bytes of an integer -> its form in a struct; a capital letter is unsigned."""
_READERS: dict[int, Callable[[bytes], Any]] = {
    FIELD_TYPE.FLOAT: _float,
    FIELD_TYPE.DOUBLE: lambda raw: struct.unpack("<d", raw)[0],
    FIELD_TYPE.YEAR: lambda raw: 1900 + raw[0] if raw[0] else 0,
    FIELD_TYPE.DATE: _date,
    FIELD_TYPE.NEWDATE: _date,
    FIELD_TYPE.TIME: _old_time,
    FIELD_TYPE.DATETIME: _old_datetime,
    FIELD_TYPE.TIMESTAMP: _old_timestamp,
    FIELD_TYPE.NULL: lambda raw: None,
    FIELD_TYPE.BIT: bytes,
    FIELD_TYPE.GEOMETRY: bytes,
    VECTOR: bytes,
    FIELD_TYPE.JSON: _json,
}
_FIXED = {
    **_INTEGERS,
    FIELD_TYPE.FLOAT: 4,
    FIELD_TYPE.DOUBLE: 8,
    FIELD_TYPE.YEAR: 1,
    FIELD_TYPE.DATE: 3,
    FIELD_TYPE.NEWDATE: 3,
    FIELD_TYPE.TIME: 3,
    FIELD_TYPE.DATETIME: 8,
    FIELD_TYPE.TIMESTAMP: 4,
    FIELD_TYPE.NULL: 0,
}
_FRACTIONAL = {FIELD_TYPE.TIMESTAMP2: 4, FIELD_TYPE.DATETIME2: 5, FIELD_TYPE.TIME2: 3}
_FRACTIONAL_READERS: dict[int, Callable[[bytes, int], Any]] = {
    FIELD_TYPE.TIMESTAMP2: _timestamp2,
    FIELD_TYPE.DATETIME2: _datetime2,
    FIELD_TYPE.TIME2: _time2,
}
