"""Typed values: their encoding in cells and messages, and the check that a value is what its column declares.

Encoding: MessagePack of the value; null is the empty byte string in messages and a tombstone in the Repo. A value that
its column refuses is kept as a mark with the reason: it reads as null, but it is not the same as never set, because
null often means "no condition" (targeting, dates), and what cannot be understood must not serve.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np

from catalog import hours, places, predicates
from catalog._exceptions import InvalidValue
from catalog.kinds import ValueType
from catalog.model import Column

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIMES = tuple((t.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND for t in (datetime.min, datetime.max))
"""Years 1 to 9999: what `datetime_of` and every database can show."""
_SHOWN = 60
"""Characters of a refused value that an error quotes: the value may have megabytes."""
_UTF8_BYTES = 4  # of one character at most
_INT64 = (-(1 << 63), (1 << 63) - 1)
_INTEGER = re.compile(r"[+-]?[0-9]{1,40}")

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


REFUSED_MARK = b"\xc1"
"""The one byte that no MessagePack value begins with."""


def refused(reason: str) -> bytes:
    """Return the mark of a value that its column refuses; `reason` is InvalidValue.reason."""
    return REFUSED_MARK + reason.encode()


def refusal(data: bytes | None) -> str | None:
    """Return why a value was refused, None if the bytes are a value or a null."""
    return data[1:].decode(errors="replace") if data and data.startswith(REFUSED_MARK) else None


def decode(data: bytes | None) -> Any:
    """Return the value of encoded bytes; None, b"" and a refused value give None. Raises msgspec.DecodeError."""
    try:
        return _decode(data) if data and not data.startswith(REFUSED_MARK) else None
    except (UnicodeDecodeError, RecursionError) as error:  # msgspec lets these two through
        raise msgspec.DecodeError(f"MessagePack data is malformed: {error}") from error


def micros_of(moment: datetime) -> int:
    """Return microseconds since the epoch; a naive datetime is taken as UTC."""
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def datetime_of(micros: int) -> datetime:
    """Return the UTC datetime of microseconds since the epoch."""
    return _EPOCH + timedelta(microseconds=micros)


def check(column: Column, value: Any) -> Any:
    """Return `value` as the column's type, converting only what loses nothing. Raises InvalidValue.

    Accepts what databases and JSON give: text as bytes, whole floats and decimals for int, 0/1 for bool, ISO text and
    dates for times, decimals as their exact text for string.
    `max_bytes` bounds text and bytes, and lists by their encoded size.
    """
    if value is None:
        return None
    checked = _check_type(column, value)
    size = _size_of(column, checked)
    if size > column.max_bytes:
        raise InvalidValue(
            column.ref, "value_too_large", f"{size} bytes, but the catalogue allows {column.max_bytes} (max_bytes)"
        )
    if column.values and checked not in column.values:
        raise InvalidValue(column.ref, "value_not_allowed", f"{_quote(checked)} is none of {', '.join(column.values)}")
    return checked


def check_source(column: Column, value: Any) -> Any:
    """Return what the ads DB holds as the column's value: `check`, after `scale` and `split`. Raises InvalidValue."""
    if value is None:
        return column.default
    if column.scale != 1:
        value = _scaled(column, value)
    if column.split is not None and isinstance(value, str | bytes):
        value = _split(column, value)
    return check(column, value)


def source_encoder(column: Column) -> Callable[[Any], bytes]:
    """Return a function from what the ads DB holds to the encoded value: `check_source` and `encode`, b"" for null.

    Plain numbers and text, which are most of all values, need none of the questions that `check` asks. The function
    raises InvalidValue.
    """

    def carefully(value: Any) -> bytes:
        checked = check_source(column, value)
        return b"" if checked is None else encode(checked)

    lowest, highest = _INT64
    longest, allowed = column.max_bytes // _UTF8_BYTES, frozenset(column.values)

    def whole_number(value: Any) -> bytes:
        return encode(value) if type(value) is int and lowest <= value <= highest else carefully(value)

    def text(value: Any) -> bytes:
        if type(value) is str and len(value) <= longest and (not allowed or value in allowed):
            try:
                return encode(value)
            except UnicodeEncodeError:  # a lone surrogate
                return carefully(value)
        return carefully(value)

    if column.scale != 1 or column.split is not None:
        return carefully
    if column.type is ValueType.INT and not allowed:
        return whole_number
    return text if column.type is ValueType.STRING else carefully


def output_encoder(column: Column) -> Callable[[Any], bytes]:
    """Return a function from a value that is not None to `encode(check(column, value))`, which is what it raises too.

    Handlers mostly return just what the column declares, and then there is nothing to ask or to convert.
    """

    def carefully(value: Any) -> bytes:
        return encode(check(column, value))

    def truth(value: Any) -> bytes:
        return encode(value) if type(value) is bool else carefully(value)

    def number(value: Any) -> bytes:
        return encode(value) if type(value) is float and math.isfinite(value) else carefully(value)

    def moment(value: Any) -> bytes:
        return encode(value) if type(value) is int and _TIMES[0] <= value <= _TIMES[1] else carefully(value)

    def texts(value: Any) -> bytes:
        if type(value) is list and all(type(one) is str for one in value):
            try:
                data = encode(value)
            except UnicodeEncodeError:  # a lone surrogate
                return carefully(value)
            if len(data) <= column.max_bytes:
                return data
        return carefully(value)

    def numbers(value: Any) -> bytes:
        if type(value) is list and all(type(one) is int and _INT64[0] <= one <= _INT64[1] for one in value):
            data = encode(value)
            if len(data) <= column.max_bytes:
                return data
        return carefully(value)

    plain = {
        ValueType.BOOL: truth,
        ValueType.FLOAT: number,
        ValueType.TIME: moment,
        ValueType.STRING_LIST: texts,
        ValueType.INT_LIST: numbers,
    }
    if column.type in (ValueType.INT, ValueType.STRING):
        return source_encoder(replace(column, scale=1, split=None, default=None))
    return carefully if column.values else plain.get(column.type, carefully)


def _scaled(column: Column, value: Any) -> int:
    """Return an exact number times the column's scale. Floats count as the shortest text that names them."""
    try:
        number = Decimal(value.decode() if isinstance(value, bytes) else str(value)) * column.scale
        if number != (whole := number.to_integral_value()):
            raise InvalidValue(
                column.ref, "out_of_range", f"{_quote(value)} times {column.scale} is not a whole number"
            )
        return int(whole)
    except (ArithmeticError, UnicodeDecodeError):
        raise InvalidValue(column.ref, "bad_type", f"expected a number, got {_quote(value)}") from None


def _split(column: Column, value: str | bytes) -> list[str]:
    try:
        text = value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise InvalidValue(column.ref, "invalid_utf8", f"not UTF-8 at byte {error.start}: {value[:40]!r}") from None
    return text.split(column.split) if text else []


def _size_of(column: Column, checked: Any) -> int:
    if isinstance(checked, bytes):
        return len(checked)
    if not isinstance(checked, str | list):
        return 0
    try:
        return len(checked.encode() if isinstance(checked, str) else encode(checked))
    except UnicodeEncodeError as error:  # a lone surrogate, which JSON can carry
        text = f"not Unicode text: {error.reason} at character {error.start}"
        raise InvalidValue(column.ref, "invalid_utf8", text) from None


def _quote(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "..."


def _check_type(column: Column, value: Any) -> Any:
    kind = column.type
    if isinstance(value, Decimal):
        value = _undecimal(column, value)
    if isinstance(value, int) and value.bit_length() > 1_000:  # before anything tries to show or to convert it
        raise InvalidValue(column.ref, "out_of_range", f"a number of {value.bit_length()} bits")
    if isinstance(value, bytes | bytearray | memoryview) and kind not in (ValueType.BYTES, ValueType.VECTOR):
        try:
            value = bytes(value).decode()
        except UnicodeDecodeError as error:
            raise InvalidValue(
                column.ref, "invalid_utf8", f"not UTF-8 at byte {error.start}: {bytes(value)[:40]!r}"
            ) from None
    match kind:
        case ValueType.STRING | ValueType.JSON:
            if isinstance(value, str):
                return value
            if isinstance(value, int | float) and not isinstance(value, bool):
                return str(value)
        case ValueType.INT:
            if isinstance(value, bool):
                return int(value)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, str) and _INTEGER.fullmatch(value):
                value = int(value)
            if isinstance(value, int):
                return _within(column, value, _INT64, "64 bits")
        case ValueType.FLOAT:
            if isinstance(value, int | float) and not isinstance(value, bool):
                if math.isfinite(number := float(value)):
                    return number
                raise InvalidValue(column.ref, "out_of_range", f"{_quote(value)} is not a finite number")
        case ValueType.BOOL:
            if value in (0, 1):
                return bool(value)
        case ValueType.TIME:
            return _time_of(column, value)
        case ValueType.BYTES:
            if isinstance(value, bytes | bytearray | memoryview):
                return bytes(value)
        case ValueType.STRING_LIST:
            if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
                return list(value)
        case ValueType.INT_LIST:
            if isinstance(value, list | tuple) and all(isinstance(v, int) and not isinstance(v, bool) for v in value):
                return [_within(column, v, _INT64, "64 bits") for v in value]
        case ValueType.VECTOR:
            if isinstance(value, bytes | bytearray | memoryview) and len(vector := bytes(value)) == 4 * column.dims:
                if np.isfinite(np.frombuffer(vector, dtype="<f4")).all():
                    return vector
                raise InvalidValue(column.ref, "out_of_range", "a component of the vector is not a finite number")
            text = f"expected {column.dims} float32 values ({4 * column.dims} bytes), got {type(value).__name__}"
            raise InvalidValue(column.ref, "bad_type", text)
        case ValueType.PREDICATE | ValueType.HOURS if isinstance(value, str):
            return _expression(column, value)
        case ValueType.POINT | ValueType.CIRCLES:
            return _place(column, value)
    raise InvalidValue(column.ref, "bad_type", f"expected {kind.value}, got {type(value).__name__} {_quote(value)}")


def _expression(column: Column, text: str) -> str:
    """Return the canonical text of a predicate or of weekly hours."""
    _bounded(column, text)
    try:
        if column.type is ValueType.HOURS:
            return hours.canonical(hours.parse(text))
        return predicates.canonical(predicates.parse(text, {d.name: d for d in column.dimensions}))
    except predicates.PredicateError as error:
        raise InvalidValue(column.ref, "bad_predicate", f"not a predicate {error}; got {_quote(text)}") from None
    except hours.HoursError as error:
        raise InvalidValue(column.ref, "bad_hours", f"not weekly hours: {error}") from None


def _place(column: Column, value: Any) -> list[float] | list[list[float]]:
    if isinstance(value, str):
        _bounded(column, value)
    try:
        return places.point_of(value) if column.type is ValueType.POINT else places.circles_of(value)
    except places.PlaceError as error:
        raise InvalidValue(column.ref, f"bad_{column.type.value}", str(error)) from None


def _bounded(column: Column, text: str) -> None:
    """Refuse text before it is parsed: it may have megabytes."""
    if len(text) > column.max_bytes:
        raise InvalidValue(column.ref, "value_too_large", f"{len(text)} characters, more than max_bytes")


def _undecimal(column: Column, value: Decimal) -> int | float | str:
    """Return a DECIMAL as what the column's type takes; text keeps every digit."""
    if not value.is_finite():
        raise InvalidValue(column.ref, "out_of_range", f"{value} is not a finite number")
    if column.type is ValueType.FLOAT:
        return float(value)
    if column.type is ValueType.STRING or value.adjusted() > 40:
        return format(value, "f")
    return int(value) if value == value.to_integral_value() else format(value, "f")


def _within(column: Column, value: int, bounds: tuple[int, ...], what: str) -> int:
    if bounds[0] <= value <= bounds[1]:
        return value
    raise InvalidValue(column.ref, "out_of_range", f"{_quote(value)} does not fit {what}")


def _time_of(column: Column, value: Any) -> int:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # text that is no time is refused below
            value = datetime.fromisoformat(value)
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day)
    if isinstance(value, datetime):
        value = micros_of(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return _within(column, value, _TIMES, "the years 1 to 9999")
    text = f"expected a time like 2026-01-31 12:00:00 (UTC), got {type(value).__name__} {_quote(value)}"
    raise InvalidValue(column.ref, "bad_type", text)
