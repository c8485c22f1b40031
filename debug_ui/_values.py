"""Values in a form that JSON and people can read, bounded in size."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import numpy as np
from pydantic import JsonValue

from catalog import Column, ValueType
from catalog.values import datetime_of, decode, refusal

MAX_SHOWN = 20_000
"""Longer text is cut on show, with its full length said: a 10 MB description must not make a 10 MB page."""


def jsonable(value: Any) -> JsonValue:
    """Return any value that a database or MessagePack gives as JSON can hold it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return value if len(value) <= MAX_SHOWN else f"{value[:MAX_SHOWN]}… ({len(value)} characters)"
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        return data.hex() if len(data) <= MAX_SHOWN // 2 else f"{data[: MAX_SHOWN // 2].hex()}… ({len(data)} bytes)"
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [jsonable(v) for v in value]
    return str(value)


def typed_value(column: Column | None, value: Any) -> JsonValue:
    """Return a decoded column value for show: vectors as numbers, the rest as `jsonable`."""
    if column is not None and column.type is ValueType.VECTOR and isinstance(value, bytes) and len(value) % 4 == 0:
        return [round(float(x), 6) for x in np.frombuffer(value, dtype="<f4")]
    return jsonable(value)


def cell_value(column: Column | None, data: bytes | None) -> JsonValue:
    """Return the readable value of a cell's bytes; a refused one says why, what is no encoding is shown as hex."""
    if (reason := refusal(data)) is not None:
        return f"not valid ({reason})"
    try:
        return typed_value(column, decode(data))
    except msgspec.DecodeError:
        return jsonable(data)


def moment(us: int | float | None) -> str:
    """Return a time as text, UTC, to the millisecond; "never" for None and 0."""
    if not us:
        return "never"
    try:
        return datetime_of(int(us)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
    except OverflowError:
        return f"{us} µs"


def duration(us: float | None) -> str:
    """Return microseconds as text in the unit that reads best."""
    if us is None:
        return "–"
    sign, us = ("-", -us) if us < 0 else ("", us)
    if us < 1_000:
        return f"{sign}{us:.0f} µs"
    if us < 1_000_000:
        return f"{sign}{us / 1_000:.1f} ms"
    seconds = us / 1_000_000
    if seconds < 120:
        return f"{sign}{seconds:.1f} s"
    return f"{sign}{timedelta(seconds=int(seconds))}"


def money(micros: int | float | None, currency: str | None = None) -> str:
    """Return micros as an amount, with its currency if known."""
    if micros is None:
        return "–"
    amount = f"{micros / 1_000_000:,.6f}".rstrip("0")
    whole, _, part = amount.partition(".")
    return f"{whole}.{part:<02}".rstrip() + (f" {currency}" if currency else "")


def shown(value: Any, column: str = "", currency: str | None = None) -> str:
    """Return a column's value as one line of text, times and money readable beside the raw number."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and column.endswith("_micros"):
        return f"{money(value, currency)} ({value})"
    if isinstance(value, int) and column.endswith(("_us", "_at")) and value > 10**14:
        return f"{moment(value)} ({value})"
    if isinstance(value, list) and len(value) > 24 and all(isinstance(v, float) for v in value):
        return f"[{', '.join(f'{v:.3f}' for v in value[:6])}, … {len(value)} numbers]"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
