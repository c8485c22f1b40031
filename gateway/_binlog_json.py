"""MySQL's binary JSON, decoded to what SELECT shows of it.

The format is described in the server's sql/json_binary.h. Values of SQL types in a document (a DATE, a DECIMAL, bytes)
become what the server prints for them: the library's decoder refuses times beyond 24 hours and loses bytes.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any, Final

from pymysqlreplication.constants import FIELD_TYPE

_LITERAL: Final = 4
_OPAQUE: Final = 15
_STRING: Final = 12
_LITERALS: Final = (None, True, False)
_NUMBERS: Final = {5: "<h", 6: "<H", 7: "<i", 8: "<I", 9: "<q", 10: "<Q", 11: "<d"}
_MICROS = (1 << 24) - 1
"""Packed times have the microseconds in their last 24 bits."""

DecodeDecimal = Callable[[bytes, int, int], Any]
"""Decode a DECIMAL's bytes of a precision and a scale."""


def parse(raw: bytes, decimal: DecodeDecimal) -> Any:
    """Return a document as json.loads would give its text. Raises LookupError, struct.error, ValueError."""
    return _value(raw[0], raw, 1, decimal)


def _value(kind: int, data: bytes, at: int, decimal: DecodeDecimal) -> Any:
    if kind < _LITERAL:
        return _container(data[at:], wide=bool(kind & 1), is_object=kind < 2, decimal=decimal)
    if kind == _LITERAL:
        return _LITERALS[data[at]]
    if kind in _NUMBERS:
        return struct.unpack_from(_NUMBERS[kind], data, at)[0]
    if kind == _STRING:
        return _sized(data, at).decode()
    if kind == _OPAQUE:
        return _opaque(data[at], _sized(data, at + 1), decimal)
    raise ValueError(f"JSON values of type {kind} are not known")


def _container(data: bytes, *, wide: bool, is_object: bool, decimal: DecodeDecimal) -> Any:
    """Read an object or array: counts, key entries, value entries, then keys and values at offsets from its start."""
    size = 4 if wide else 2
    count = int.from_bytes(data[:size], "little")
    at = 2 * size
    keys = []
    for _ in range(count if is_object else 0):
        start, length = int.from_bytes(data[at : at + size], "little"), data[at + size] | data[at + size + 1] << 8
        keys.append(data[start : start + length].decode())
        at += size + 2
    values = []
    for _ in range(count):
        kind = data[at]
        inline = kind in (4, 5, 6) or (wide and kind in (7, 8))
        place = at + 1 if inline else int.from_bytes(data[at + 1 : at + 1 + size], "little")
        values.append(_value(kind, data, place, decimal))
        at += 1 + size
    return dict(zip(keys, values, strict=True)) if is_object else values


def _sized(data: bytes, at: int) -> bytes:
    """Return the bytes after their length, which has seven bits in each byte."""
    length = shift = 0
    while True:
        byte = data[at]
        length |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return data[at : at + length]


def _opaque(kind: int, raw: bytes, decimal: DecodeDecimal) -> Any:
    if kind == FIELD_TYPE.NEWDECIMAL:
        return float(decimal(raw[2:], raw[0], raw[1]))  # a JSON number, as json.loads reads it
    if kind in (FIELD_TYPE.DATE, FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP, FIELD_TYPE.TIME):
        packed = int.from_bytes(raw, "little", signed=True)
        sign, packed = ("-", -packed) if packed < 0 else ("", packed)
        whole, micros = packed >> 24, packed & _MICROS
        days, hour, minute, second = whole >> 17, whole >> 12 & 31, whole >> 6 & 63, whole & 63
        if kind == FIELD_TYPE.TIME:
            return f"{sign}{whole >> 12 & 1023:02}:{minute:02}:{second:02}.{micros:06}"
        year, month = divmod(days >> 5, 13)
        day = f"{year:04}-{month:02}-{days & 31:02}"
        return day if kind == FIELD_TYPE.DATE else f"{day} {hour:02}:{minute:02}:{second:02}.{micros:06}"
    return f"base64:type{kind}:{base64.b64encode(raw).decode()}"
