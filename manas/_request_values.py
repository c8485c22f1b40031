"""Values of requests, checked: objects, amounts of money, instants and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from catalog.values import micros_of
from manas._exceptions import InvalidRequest
from manas._schema import INT64_MAX, INT64_MIN, MICROS


def check_object(value: Any, where: str, allowed: Iterable[str], required: Iterable[str] = ()) -> None:
    allowed = list(allowed)
    if not isinstance(value, Mapping) or not value:
        raise InvalidRequest(f"{where}: an object with {', '.join(allowed)}, got {shown(value)}")
    for key in value:
        if key not in allowed:
            raise InvalidRequest(f"{where}: unknown key {key!r}; valid are {', '.join(allowed)}")
    for key in required:
        if key not in value:
            raise InvalidRequest(f"{where}: {key!r} is missing")


def micros(value: Any, where: str, rounding: str) -> int:
    if not is_number(value):
        raise InvalidRequest(f"{where}: a finite number of currency units, got {shown(value)}")
    micros = int((Decimal(str(value)) * MICROS).to_integral_value(rounding))
    return min(max(micros, INT64_MIN), INT64_MAX)


def instant(value: Any, where: str) -> int:
    if isinstance(value, str):
        try:
            return micros_of(datetime.fromisoformat(value))
        except ValueError:
            pass
    raise InvalidRequest(f"{where}: an ISO time like 2026-01-31T12:00:00Z, got {shown(value)}")


def is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond what a float can hold
        return False


def numbers_of(values: list[Any]) -> npt.NDArray[np.float64] | None:
    """Return values as an array, None when one is not a finite number."""
    plain = set(map(type, values)) <= {int, float}  # found out ten times as fast as one by one
    if not plain and not all(map(is_number, values)):
        return None
    try:
        found = np.array(values, np.float64)
    except OverflowError:
        return None
    return found if np.isfinite(found).all() else None


def shown(value: Any) -> str:
    return repr(value)[:80]
