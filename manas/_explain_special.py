"""Why a predicate, circles, a point or weekly hours take a request or not, in words and as trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalog.hours import USER, hour_of_week, time_zone
from catalog.places import distance_m
from catalog.predicates import All, No, Predicate, Said, Some, canonical, truth
from catalog.targeting import ANY
from catalog.values import check, datetime_of
from manas._clauses import Asked, Inside, Meets, Near, Runs, Special
from manas._schema import DocumentSchema
from manas._special import user_zone
from manas._targets import hours_of

_MAX_NODES = 200
"""Of a tree shown: a predicate may have thousands of conditions."""


def evidence(clause: Special, values: Mapping[str, Any], schema: DocumentSchema) -> str:
    """Return the document's own value and what it says to the request."""
    value = values.get(clause.field)
    if value is not None and isinstance(
        clause, Inside | Near
    ):  # a document may write places otherwise than they are kept
        value = check(schema.fields[clause.field].column, value)
    match clause:
        case Meets():
            return "it has no predicate: it takes every request" if value is None else _predicate(clause, value, schema)
        case Inside(_, position):
            return "it has no circles: it takes every position" if value is None else _circles(value, position)
        case Near(field, lat, lon, metres):
            if value is None:
                return f"{field} is missing"
            return f"{field} is {_metres(distance_m(value, (lat, lon)))} away, {_metres(metres)} were asked for"
        case Runs(_, at_us, zone):
            return "it has no weekly hours: it always runs" if value is None else _hours(value, at_us, zone)


def predicate_tree(clause: Meets, values: Mapping[str, Any], schema: DocumentSchema) -> dict[str, Any]:
    """Return {"tree": ...} with the truth of every part, nothing where the document has no predicate."""
    text = values.get(clause.field)
    if text is None:
        return {}
    said, left = _said(clause.asked), [_MAX_NODES]
    return {"tree": _tree(schema.predicate(text), said, left)}


def _tree(node: Predicate, said: Said, left: list[int]) -> dict[str, Any]:
    left[0] -= 1
    shown: dict[str, Any] = {"is": _truth(node, said)}
    parts: tuple[Predicate, ...] = ()
    match node:
        case All(parts):
            shown["kind"] = "and"
        case Some(parts):
            shown["kind"] = "or"
        case No(part):
            shown["kind"], parts = "not", (part,)
        case _:
            return {**shown, "condition": canonical(node)[:1_000]}
    shown["parts"] = [_tree(part, said, left) for part in parts if left[0] > 0]
    if len(shown["parts"]) < len(parts):
        shown["parts_left_out"] = len(parts) - len(shown["parts"])
    return shown


def _predicate(clause: Meets, text: str, schema: DocumentSchema) -> str:
    said, predicate = _said(clause.asked), schema.predicate(text)
    if canonical(predicate) != text:
        return f"{text[:300]} is not understood by this catalogue, so it never holds"
    missing = sorted(_names(predicate) - said.keys())
    because = f"; the request does not say {', '.join(missing)}" if missing else ""
    return f"{text[:300]} is {_truth(predicate, said)}{because}"


def _names(node: Predicate) -> set[str]:
    match node:
        case All(parts) | Some(parts):
            return set().union(*map(_names, parts))
        case No(part):
            return _names(part)
    return {node.dimension} if hasattr(node, "dimension") else set()


def _said(asked: Asked) -> Said:
    return {key.partition(":")[2]: values for key, values in asked}


def _truth(predicate: Predicate, said: Said) -> str:
    found = truth(predicate, said)
    return "unknown" if found is None else str(found).lower()


def _circles(circles: list[list[float]], position: tuple[float, float] | None) -> str:
    if position is None:
        return f"it has {len(circles)} circles, and the request has no position"
    parts = []
    for kind, excluded in (("circle", 0), ("excluded circle", 1)):
        own = [circle for circle in circles if circle[3] == excluded]
        if own:
            # The one that the position is deepest in, or closest to.
            distance, nearest = min((distance_m(c[:2], position) - c[2], c) for c in own)
            where = f"{nearest[0]:.10g}, {nearest[1]:.10g}"
            gap = f"{_metres(abs(distance))} {'inside' if distance <= 0 else 'outside'}"
            parts.append(f"the position is {gap} the nearest {kind} ({where}, radius {_metres(nearest[2])})")
    return "; ".join(parts)


def _hours(text: str, at_us: int, zone: str | None) -> str:
    hours, moment = hours_of(text), datetime_of(at_us)
    own = user_zone(zone) if hours.zone == USER else time_zone(hours.zone)
    if hours.at(moment, own) is None:
        browsed = "the request browses" if zone == ANY else "the request does not say"
        return f"{text}, and {browsed} the user's time zone"
    if own is None:
        return text
    hour = hour_of_week(moment, own)
    return f"{text}; there it is {moment.astimezone(own):%A %H:%M} (hour {hour} of the week)"


def _metres(metres: float) -> str:
    return f"{metres:.6g} m" if metres < 1_000 else f"{metres / 1_000:.6g} km"
