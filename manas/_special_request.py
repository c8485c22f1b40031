"""The keys of a request that special fields and frequency caps are judged by.

| key | value | left out |
| --- | --- | --- |
| a dimension | its value, a list of them where it is `multi`, or "*" | unknown: predicates that need it do not hold |
| `position` | {"lat": 51.5, "lon": -0.12}, or "*" | ads with circles are left out |
| `near` | {"lat": .., "lon": .., "km": ..} (or "m", "miles") | no condition |
| `time_zone` | the user's IANA zone, or "*" | ads with hours in the user's zone are left out |
| `seen` | {campaign: {"day": 2, "week": 5, "total": 9}}: what the user has seen of it | nothing has been seen |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalog import Dimension, ValueType
from catalog.hours import HoursError, time_zone
from catalog.places import PlaceError, metres_of, point_of
from catalog.targeting import ANY
from manas._clauses import Asked, Condition, Inside, Meets, Near, Runs
from manas._exceptions import InvalidRequest
from manas._predicates import dimension_key
from manas._schema import INT64_MAX, INT64_MIN, DocumentSchema
from manas.budgets import WINDOWS, Seen

MAX_VALUES = 1_000
"""Of one dimension: segments of a user, at most."""
MAX_CHARACTERS = 1_024
"""Of one value: what requests say is kept by thousands, so that the next one is quicker."""
MAX_SEEN = 1_000
"""Campaigns of one request: what the caller's store of users keeps is bounded by the longest window that it counts."""

_NOBODY: Mapping[str, Any] = {}


class SpecialParser:
    """Reads these keys for one catalogue."""

    def __init__(self, schema: DocumentSchema) -> None:
        self._dimensions = schema.catalog.dimensions
        serving = self._serving = schema.catalog.serving
        usable = {
            "position": serving.area, "near": serving.location, "time_zone": serving.hours, "seen": serving.budget_key
        }  # fmt: skip
        self.keys = {key: field is not None for key, field in usable.items()}
        self.any = any((serving.predicate, serving.area, serving.location, serving.hours))
        """Whether `conditions` can find some."""

    def conditions(self, request: Mapping[str, Any], at_us: int) -> list[Condition]:
        """Return what the request demands of special fields. Raises InvalidRequest naming the key."""
        serving = self._serving
        found: list[Condition] = []
        if serving.predicate is not None:
            asked = self._asked(request)
            said = ", ".join(key.partition(":")[2] for key, _ in asked) or "nothing"
            found.append(
                Condition("predicate", Meets(serving.predicate, asked), f"its predicate holds; said is {said}")
            )
        if serving.area is not None and request.get("position") != ANY:
            position = None if "position" not in request else _point(request["position"], "position")
            words = "has no circles (no position given)" if position is None else f"takes position {_degrees(position)}"
            found.append(Condition("area", Inside(serving.area, position), words))
        if serving.location is not None and "near" in request:
            found.append(near(serving.location, request["near"], "near"))
        if serving.hours is not None:
            found.append(self._hours(serving.hours, request, at_us))
        return found

    def seen(self, request: Mapping[str, Any]) -> Seen:
        """Return what the user has seen of each campaign. Raises InvalidRequest."""
        given = request.get("seen", _NOBODY)
        if given is _NOBODY:
            return {}
        if not isinstance(given, Mapping) or len(given) > MAX_SEEN:
            raise InvalidRequest(f"seen: an object of at most {MAX_SEEN} campaigns, got {_shown(given)}")
        for campaign, counts in given.items():
            if not isinstance(counts, Mapping) or not counts or not counts.keys() <= set(WINDOWS):
                known = ", ".join(WINDOWS)
                raise InvalidRequest(f"seen.{campaign}: an object of counts by {known}, got {_shown(counts)}")
            for window, count in counts.items():
                if not isinstance(count, int) or isinstance(count, bool) or count < 0:
                    raise InvalidRequest(f"seen.{campaign}.{window}: a whole number from 0, got {_shown(count)}")
        return {str(campaign): dict(counts) for campaign, counts in given.items()}

    def _asked(self, request: Mapping[str, Any]) -> Asked:
        said: list[tuple[str, tuple[str | int, ...] | None]] = []
        for dimension in self._dimensions.values():
            values = values_of(dimension, request.get(dimension.name))
            if values is None or values:
                said.append((dimension_key(dimension), values))
        return tuple(said)

    @staticmethod
    def _hours(field: str, request: Mapping[str, Any], at_us: int) -> Condition:
        zone = request.get("time_zone")
        if "time_zone" in request and zone != ANY:
            try:
                if not isinstance(zone, str) or not zone:
                    raise HoursError(f"an IANA name like Europe/Paris, got {_shown(zone)}")
                time_zone(zone)
            except HoursError as error:
                raise InvalidRequest(f"time_zone: {error}") from None
        words = f"runs at this hour of the week; the user's zone is {zone or 'not given'}"
        return Condition("hours", Runs(field, at_us, zone), words)


def values_of(dimension: Dimension, value: Any) -> tuple[str | int, ...] | None:
    """Return what a request says of a dimension, each value once; None for "*", nothing where it does not say.

    Raises InvalidRequest.
    """
    name = dimension.name
    if value is None:
        return ()
    if value == ANY:
        return None
    given = value if isinstance(value, list) else [value]
    if isinstance(value, list) and not dimension.multi:
        raise InvalidRequest(f"{name}: takes one value, got a list")
    if len(given) > MAX_VALUES:
        raise InvalidRequest(f"{name}: {len(given)} values, more than {MAX_VALUES}")
    wanted = int if dimension.type is ValueType.INT else str
    for item in given:
        if not isinstance(item, wanted) or isinstance(item, bool):
            raise InvalidRequest(f"{name}: values are {dimension.type.value}, got {_shown(item)}")
        if isinstance(item, str) and len(item) > MAX_CHARACTERS:
            raise InvalidRequest(f"{name}: a value of {len(item)} characters, more than {MAX_CHARACTERS}")
        if isinstance(item, int) and not INT64_MIN <= item <= INT64_MAX:
            raise InvalidRequest(f"{name}: {item} does not fit 64 bits")
        if dimension.values and str(item) not in dimension.values:
            raise InvalidRequest(f"{name}: {item!r} is none of {', '.join(dimension.values)}")
    return tuple(dict.fromkeys(given))


def near(field: str, value: Any, where: str) -> Condition:
    """Return the condition of {"lat": .., "lon": .., "km": ..}. Raises InvalidRequest."""
    if not isinstance(value, Mapping):
        raise InvalidRequest(f'{where}: an object like {{"lat": 51.5, "lon": -0.12, "km": 5}}, got {_shown(value)}')
    unknown = value.keys() - {"lat", "lon", "m", "km", "miles"}
    if unknown:
        raise InvalidRequest(
            f"{where}: unknown key {min(unknown, key=str)!r}; valid are lat, lon and one of m, km, miles"
        )
    lat, lon = _point({key: value[key] for key in ("lat", "lon") if key in value}, where)
    try:
        metres = metres_of(value)
    except PlaceError as error:
        raise InvalidRequest(f"{where}: {error}") from None
    return Condition("near", Near(field, lat, lon, metres), f"{field} within {metres:.10g} m of {_degrees((lat, lon))}")


def _point(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, Mapping):
        raise InvalidRequest(f'{where}: an object like {{"lat": 51.5, "lon": -0.12}}, got {_shown(value)}')
    try:
        lat, lon = point_of(value)
    except PlaceError as error:
        raise InvalidRequest(f"{where}: {error}") from None
    return lat, lon


def _degrees(point: tuple[float, float]) -> str:
    return f"{point[0]:.10g}, {point[1]:.10g}"


def _shown(value: Any) -> str:
    return repr(value)[:80]
