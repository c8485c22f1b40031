"""Sixty-four numbers compared at a time give what comparing one after the other gives, whatever they are stored in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numba import njit

from manas.kernels import _intrinsics
from manas.kernels._block_intrinsics import between

_INT64 = (-(1 << 63), (1 << 63) - 1)
_OUT = 1 << 62
"""As far as bounds of columns of up to four bytes go."""


def _flagged(kind: str) -> Any:
    cast = getattr(_intrinsics, kind)

    @njit
    def flagged(address: int, place: int, low: Any, high: Any) -> int:
        return between(cast(address), place, low, high)

    return flagged


def _words(inside: np.ndarray[Any, Any]) -> int:
    return sum(1 << place for place, one in enumerate(inside.tolist()) if one)


@pytest.mark.parametrize("kind", ["u8", "u16", "u32", "i64"])
def test_whole_numbers_between_bounds(kind: str) -> None:
    """Bounds at, next to and far beyond the ends of the type; intervals that are empty or hold everything."""
    dtype = np.dtype({"u8": "u1", "u16": "<u2", "u32": "<u4", "i64": "<i8"}[kind])
    ends = np.iinfo(dtype)
    rng = np.random.default_rng(3)
    numbers = rng.integers(ends.min, ends.max, 192, dtype, endpoint=True)
    numbers[64:70] = [ends.min, ends.min + 1, ends.max, ends.max - 1, 5, 5]
    own = [ends.min, ends.min + 1, 5, ends.max - 1, ends.max, *rng.choice(numbers, 4)]
    far = [] if kind == "i64" else [-_OUT, -1, int(ends.max) + 1, _OUT, *_INT64]
    bounds = sorted({int(bound) for bound in (*own, *far)})
    flagged, wide = _flagged(kind), [int(number) for number in numbers]
    for place in (0, 64, 101):
        for low in bounds:
            for high in bounds:
                inside = np.array([low <= number <= high for number in wide[place : place + 64]])
                found = flagged(numbers.ctypes.data, place, low, high)
                assert int(found) & ((1 << 64) - 1) == _words(inside), (place, low, high)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_floats_between_bounds(kind: str) -> None:
    """A bound that a float32 cannot hold is not rounded to one that lets the next number in."""
    dtype = np.dtype({"f32": "<f4", "f64": "<f8"}[kind])
    numbers = np.random.default_rng(4).standard_normal(128).astype(dtype)
    numbers[:4] = [0.1, -0.0, 0.0, 1e30]
    around = [np.nextafter(np.float64(numbers[0]), way) for way in (-1.0, 1.0)]
    bounds = [-np.inf, -1.0, 0.0, float(numbers[0]), *map(float, around), 0.1, 1e30, np.inf]
    flagged = _flagged(kind)
    for place in (0, 64):
        some = numbers[place : place + 64].astype(np.float64)
        for low in bounds:
            for high in bounds:
                found = flagged(numbers.ctypes.data, place, low, high)
                assert int(found) & ((1 << 64) - 1) == _words((some >= low) & (some <= high)), (place, low, high)
