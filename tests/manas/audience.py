"""Special fields by brute force: its own reading of predicates, its own distance, its own clock, written as loops."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from catalog import load_catalog
from tests.support import ROOT

CATALOG = load_catalog(ROOT / "examples" / "audience" / "audience.yaml")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

Tree = tuple[Any, ...]
"""("set", dimension, values), ("range", dimension, low, high), ("const", bool), ("not", tree), ("and"|"or", trees)."""


def text_of(tree: Tree) -> str:
    """Return a tree as an advertiser would write it, every part in parentheses."""
    match tree:
        case ("set", name, values):
            return f"{name} in {{{', '.join(map(str, values))}}}"
        case ("range", name, low, high):
            return f"{name} in [{'' if low is None else low}..{'' if high is None else high}]"
        case ("const", holds):
            return str(holds).upper()
        case ("not", part):
            return f"not ({text_of(part)})"
        case (kind, parts):
            return f" {kind} ".join(f"({text_of(part)})" for part in parts)
    raise AssertionError(tree)


def judged(tree: Tree, request: dict[str, Any]) -> tuple[bool, bool]:
    """Return whether a tree is certainly true and certainly false; a browsed dimension makes a condition both."""
    match tree:
        case ("const", holds):
            return holds, not holds
        case ("not", part):
            holds, fails = judged(part, request)
            return fails, holds
        case ("and", parts):
            found = [judged(part, request) for part in parts]
            return all(h for h, _ in found), any(f for _, f in found)
        case ("or", parts):
            found = [judged(part, request) for part in parts]
            return any(h for h, _ in found), all(f for _, f in found)
    said = request.get(tree[1])
    if said == "*":
        return True, True
    if said is None or said == []:
        return False, False
    given = said if isinstance(said, list) else [said]
    if tree[0] == "set":
        hit = any(value in tree[2] for value in given)
    else:
        low, high = tree[2], tree[3]
        hit = any((low is None or value >= low) and (high is None or value <= high) for value in given)
    return hit, not hit


def haversine_m(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Return the great-circle distance on a sphere of 6371008.8 m."""
    (p, q), (r, s) = (map(math.radians, a)), (map(math.radians, b))
    h = math.sin((r - p) / 2) ** 2 + math.cos(p) * math.cos(r) * math.sin((s - q) / 2) ** 2
    return 2 * 6_371_008.8 * math.asin(min(1.0, math.sqrt(h)))


def in_area(circles: list[dict[str, Any]], position: dict[str, float] | None) -> bool:
    """Tell whether circles take a position."""
    if position is None:
        return False
    inside = [haversine_m((c["lat"], c["lon"]), (position["lat"], position["lon"])) <= c["km"] * 1_000 for c in circles]
    wanted = [hit for hit, c in zip(inside, circles, strict=True) if not c.get("exclude")]
    avoided = [hit for hit, c in zip(inside, circles, strict=True) if c.get("exclude")]
    return (any(wanted) or not wanted) and not any(avoided)


def runs(windows: list[tuple[int, int, int]], zone: str, at: str, user: str | None) -> bool:
    """Tell whether one of the windows (day, first hour, hours) has an instant by the wall clock of a zone."""
    if zone == "user":
        if user == "*":
            return True
        if user is None:
            return False
        zone = user
    local = datetime.fromisoformat(at).replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    # Steps of wall-clock hours back from the hour that the clock shows.
    shown = local.replace(minute=0, second=0, microsecond=0)
    for day, first, length in windows:
        for hour in range(length):
            start = shown - timedelta(hours=hour)
            if start.weekday() == day and start.hour == first:
                return True
    return False


def hours_text(windows: list[tuple[int, int, int]], zone: str) -> str:
    """Return windows as an advertiser would write them."""
    return "; ".join(f"{DAYS[d]} {first}-{(first + n - 1) % 24 + 1}" for d, first, n in windows) + f" @ {zone}"


def matches(ad: dict[str, Any], request: dict[str, Any], capped: frozenset[int] = frozenset()) -> bool:
    """Tell whether an ad, as the tests make it, fits a request."""
    if ad.get("tree") is not None and not judged(ad["tree"], request)[0]:
        return False
    position = request.get("position")
    if ad.get("circles") is not None and position != "*" and not in_area(ad["circles"], position):
        return False
    if ad.get("windows") is not None and not runs(*ad["windows"], request["at"], request.get("time_zone")):
        return False
    if "near" in request:
        near, place = request["near"], ad.get("point")
        if place is None or haversine_m(place, (near["lat"], near["lon"])) > near["km"] * 1_000:
            return False
    return ad["campaign_id"] not in capped
