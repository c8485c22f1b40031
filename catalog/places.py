"""Places on the earth: points, circles, and the great-circle distance between points."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

EARTH_M = 6_371_008.8
"""Mean radius of the earth in metres (IUGG): distances on this sphere are within 0.6% of those on the ellipsoid."""
FARTHEST_M = math.pi * EARTH_M
"""Half of the circumference: a circle of this radius is the whole earth."""
MAX_CIRCLES = 1_000
"""Per value: an advertiser with more places targets regions by name."""
_UNITS = {"m": 1.0, "km": 1_000.0, "miles": 1_609.344}


class PlaceError(ValueError):
    """Raised for a value that is no point or no list of circles; the sentence says what is wrong."""


def point_of(value: Any) -> list[float]:
    """Return [latitude, longitude] in degrees of {"lat": .., "lon": ..}, [lat, lon] or their text. Raises PlaceError.

    Text is JSON, or simply "51.5, -0.12".
    """
    given = _plain(value)
    if isinstance(given, Mapping):
        if given.keys() != {"lat", "lon"}:
            raise PlaceError(f"a point has lat and lon, not {', '.join(map(str, given)) or 'nothing'}")
        return _point(given["lat"], given["lon"])
    if isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2:
        return _point(*given)
    raise PlaceError(f'expected a point like {{"lat": 51.5, "lon": -0.12}}, got {_shown(value)}')


def circles_of(value: Any) -> list[list[float]]:
    """Return the sorted [latitude, longitude, radius in metres, 1 if excluded else 0] of a list of circles.

    Circles are objects {"lat": .., "lon": .., "km": ..} (or "m", "miles"; and "exclude": true), or rows as returned.
    The list may be JSON text. Raises PlaceError naming the circle.
    """
    given = _plain(value)
    if isinstance(given, Mapping):
        given = [given]
    if not isinstance(given, Sequence) or isinstance(given, str) or not given:
        raise PlaceError(f"expected a list of at least one circle, got {_shown(value)}; null is everywhere")
    if len(given) > MAX_CIRCLES:
        raise PlaceError(f"{len(given)} circles, more than {MAX_CIRCLES}")
    found: set[tuple[float, ...]] = set()
    for number, circle in enumerate(given, 1):
        try:
            found.add(_circle(circle))
        except PlaceError as error:
            raise PlaceError(f"circle {number}: {error}") from None
    return [list(circle) for circle in sorted(found)]


def metres_of(given: Mapping[str, Any]) -> float:
    """Return the radius that one of the keys m, km, miles gives. Raises PlaceError."""
    units = [unit for unit in _UNITS if unit in given]
    if len(units) != 1:
        raise PlaceError(f"give the radius once, as {', '.join(_UNITS)}")
    metres = _number(given[units[0]], units[0]) * _UNITS[units[0]]
    if not 0 < metres <= 1.01 * FARTHEST_M:
        raise PlaceError(f"the radius is {metres:.10g} m; it must be above 0 and at most half around the earth")
    return min(metres, FARTHEST_M)


def distance_m(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the great-circle distance of two points [latitude, longitude] in metres."""
    x, y = _vector(a), _vector(b)
    chord = math.sqrt(sum((p - q) ** 2 for p, q in zip(x, y, strict=True)))
    return 2 * EARTH_M * math.asin(min(1.0, chord / 2))


def _vector(point: Sequence[float]) -> tuple[float, float, float]:
    lat, lon = math.radians(point[0]), math.radians(point[1])
    return math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)


def _circle(circle: Any) -> tuple[float, ...]:
    if isinstance(circle, Mapping):
        unknown = circle.keys() - {"lat", "lon", "exclude", *_UNITS}
        if unknown or not {"lat", "lon"} <= circle.keys():
            raise PlaceError(f"has lat, lon, a radius in {', '.join(_UNITS)} and perhaps exclude; got {_shown(circle)}")
        excluded = circle.get("exclude", False)
        if not isinstance(excluded, bool):
            raise PlaceError(f"exclude is true or false, got {_shown(excluded)}")
        return (*_point(circle["lat"], circle["lon"]), metres_of(circle), float(excluded))
    if isinstance(circle, Sequence) and not isinstance(circle, str) and len(circle) in (3, 4):
        lat, lon, radius, *rest = circle
        if rest and rest[0] not in (0, 1):
            raise PlaceError(f"the fourth number is 1 for excluded or 0, got {_shown(rest[0])}")
        return (*_point(lat, lon), metres_of({"m": radius}), float(rest[0]) if rest else 0.0)
    raise PlaceError(f'expected an object like {{"lat": 51.5, "lon": -0.12, "km": 25}}, got {_shown(circle)}')


def _point(lat: Any, lon: Any) -> list[float]:
    latitude, longitude = _number(lat, "lat"), _number(lon, "lon")
    if not -90 <= latitude <= 90:
        raise PlaceError(f"latitude {latitude} is not within -90 and 90 degrees")
    if not -180 <= longitude <= 180:
        raise PlaceError(f"longitude {longitude} is not within -180 and 180 degrees")
    return [latitude + 0.0, longitude + 0.0]  # -0.0 is 0.0: equal values, equal bytes


def _number(value: Any, name: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e12:  # false for NaN
        return float(value)
    raise PlaceError(f"{name} is a finite number, got {_shown(value)}")


def _plain(value: Any) -> Any:
    """Return the value that text stands for; other values as they are."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    try:
        return json.loads(text if text.startswith(("[", "{")) else f"[{text}]")
    except (json.JSONDecodeError, RecursionError):
        raise PlaceError(f"not JSON and not two numbers: {_shown(value)}") from None


def _shown(value: Any) -> str:
    return repr(value)[:80]
