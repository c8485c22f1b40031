"""Circles and points on the sphere: cells by which candidates are found, and the exact test.

Two grids of latitude and longitude. For circles (many, asked with one point) the grid of a level has 2^level rows of
equal height, each cut into cells about as wide as high, so cells do not degenerate at the poles; a circle is covered by
some ten cells of the level whose rows are just higher than its radius. For points (many, asked with one circle) cells
are halved in both directions, so that the points below any cell are neighbours in the order of their codes (Z-order).

The test compares squared chords with 4 sin^2(r / 2R): unlike cosines these lose no digits where circles are small.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from catalog.places import EARTH_M, FARTHEST_M

Doubles = npt.NDArray[np.float64]

LEVELS = 15
"""Of the circles' grid: rows of the last are 1.2 km high, and smaller circles have few strangers in such cells."""
_SLACK = 1e-9
"""Degrees that covers are too large: more than the rounding of what computes them."""
CODE_BITS = 24
"""Of each coordinate in a point's code: 1.2 m, below which finer cells separate nobody."""
_MAX_CELLS = 64
"""Cells that a circle is covered by among points: each is a look-up of a microsecond."""


def vectors(lat: npt.ArrayLike, lon: npt.ArrayLike) -> Doubles:
    """Return unit vectors of degrees, as rows."""
    phi, lam = np.radians(np.asarray(lat, np.float64)), np.radians(np.asarray(lon, np.float64))
    return np.stack([np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)], axis=-1)


def chords(metres: npt.ArrayLike) -> Doubles:
    """Return the squared chords of great-circle distances."""
    half = np.minimum(np.asarray(metres, np.float64), FARTHEST_M) / (2 * EARTH_M)
    result: Doubles = 4 * np.sin(half) ** 2
    return result


def within(points: Doubles, centres: Doubles, metres: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Tell which points (unit vectors) are no further than so many metres from the centres; rows are paired."""
    gap = points - centres
    result: npt.NDArray[np.bool_] = (gap * gap).sum(axis=-1) <= chords(metres)
    return result


# ---- circles ----


def circle_cells(lat: float, lon: float, metres: float) -> list[str]:
    """Return cells that cover a circle."""
    radius = math.degrees(min(metres, FARTHEST_M) / EARTH_M) + _SLACK
    level = 0
    while level + 1 < LEVELS and 180 / (1 << (level + 1)) >= radius:
        level += 1
    cells = []
    width = _half_width(lat, radius)
    for row in range(_row(level, max(-90.0, lat - radius)), _row(level, min(90.0, lat + radius)) + 1):
        count = _columns(level, row)
        first = math.floor((lon - width + 180) / 360 * count)
        last = math.floor((lon + width + 180) / 360 * count)
        columns = range(count) if last - first + 1 >= count else range(first, last + 1)
        cells += [f"{level}/{row}/{column % count}" for column in columns]
    return cells


def cells_at(lat: float, lon: float) -> list[str]:
    """Return the cells that a point is in, one of each level."""
    cells = []
    for level in range(LEVELS):
        row = _row(level, lat)
        count = _columns(level, row)
        cells.append(f"{level}/{row}/{math.floor((lon + 180) / 360 * count) % count}")
    return cells


def _half_width(lat: float, radius: float) -> float:
    """Return how many degrees of longitude a circle reaches to each side; 180 with a pole in it."""
    if radius >= 90 or abs(lat) + radius >= 90:
        return 180.0
    return min(180.0, math.degrees(math.asin(math.sin(math.radians(radius)) / math.cos(math.radians(lat)))) + _SLACK)


def _row(level: int, lat: float) -> int:
    rows = 1 << level
    return min(rows - 1, math.floor((lat + 90) / 180 * rows))


def _columns(level: int, row: int) -> int:
    """Return the number of cells in a row: as many as make them no narrower than high where they are widest."""
    height = 180 / (1 << level)
    south, north = -90 + row * height, -90 + (row + 1) * height
    widest = 0.0 if south <= 0 <= north else min(abs(south), abs(north))
    return max(1, math.floor((2 << level) * math.cos(math.radians(widest))))


# ---- points ----


def codes(lat: Doubles, lon: Doubles) -> npt.NDArray[np.uint64]:
    """Return the codes of points."""
    return _interleaved(_steps(lat, 90, 180, CODE_BITS), _steps(lon, 180, 360, CODE_BITS))


def code_ranges(lat: float, lon: float, metres: float) -> npt.NDArray[np.uint64]:
    """Return rows (first, last) of codes that together have every point within so many metres."""
    radius = math.degrees(min(metres, FARTHEST_M) / EARTH_M) + _SLACK
    width = _half_width(lat, radius)
    south, north = max(-90.0, lat - radius), min(90.0, lat + radius)
    sides = [(lon - width, lon + width)]
    if width >= 180:
        sides = [(-180.0, 180.0)]
    elif lon - width < -180:
        sides = [(-180.0, lon + width), (lon - width + 360, 180.0)]
    elif lon + width > 180:
        sides = [(lon - width, 180.0), (-180.0, lon + width - 360)]
    for level in range(CODE_BITS, -1, -1):
        rows = _span(south, north, 90, 180, level)
        spans = [_span(west, east, 180, 360, level) for west, east in sides]
        if (rows[1] - rows[0] + 1) * sum(b - a + 1 for a, b in spans) <= _MAX_CELLS:
            break
    columns = np.unique(np.concatenate([np.arange(a, b + 1, dtype=np.uint64) for a, b in spans]))
    grid = np.repeat(np.arange(rows[0], rows[1] + 1, dtype=np.uint64), len(columns))
    cells = np.sort(_interleaved(grid, np.tile(columns, rows[1] - rows[0] + 1)))
    apart = np.flatnonzero(np.diff(cells) > 1) + 1  # neighbours become one range
    first, last = cells[np.concatenate([[0], apart])], cells[np.concatenate([apart - 1, [len(cells) - 1]])]
    shift = np.uint64(2 * (CODE_BITS - level))
    return np.stack([first << shift, ((last + np.uint64(1)) << shift) - np.uint64(1)], axis=1)


def _steps(values: Doubles, offset: float, span: float, bits: int) -> npt.NDArray[np.uint64]:
    scaled = np.floor((np.asarray(values, np.float64) + offset) / span * (1 << bits))
    return np.clip(scaled, 0, (1 << bits) - 1).astype(np.uint64)


def _span(low: float, high: float, offset: float, span: float, bits: int) -> tuple[int, int]:
    first, last = _steps(np.array([low, high]), offset, span, bits).tolist()
    return first, last


def _interleaved(rows: npt.NDArray[np.uint64], columns: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return rows and columns of up to 32 bits with their bits in turn, the row's first."""
    return (_spread(rows) << np.uint64(1)) | _spread(columns)


def _spread(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    spread = values.astype(np.uint64)
    for shift, mask in _SPREADING:
        spread = (spread | (spread << np.uint64(shift))) & np.uint64(mask)
    return spread


_SPREADING: Sequence[tuple[int, int]] = (
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)
