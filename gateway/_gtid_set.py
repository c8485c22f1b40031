"""MySQL's GTID sets: adding one at a time, and keeping long ones where Kafka's positions have no room for them.

A set grows by a UUID with every server that was ever the primary, and by an interval with every gap. A long one is
published whole to a compacted topic, under a number of its own; positions have that number and what was added since.
"""

from __future__ import annotations

import re

from gateway._kept_texts import KeptTexts
from messaging import Log

MAX_STORED_BYTES = 1_500
"""Of the part of a GTID set that goes with a position: Kafka keeps 4096 bytes, and a snapshot's progress wants some."""

_Interval = tuple[int, int]
_TAG = re.compile(r":\s*([a-z_]\w*)", re.I)
_REFERENCE = re.compile(r"@([0-9a-f]{16})\+(.*)", re.S)


def add(gtids: str, gtid: str) -> str:
    """Return the set with one more transaction; nearly always the one after the last of its server."""
    uuid, _, number = gtid.partition(":")
    start = gtids.find(uuid)
    if start >= 0:
        end = gtids.find(",", start)
        end = len(gtids) if end < 0 else end
        before = gtids.rfind(":", start, end) + 1
        first, _, last = gtids[before:end].partition("-")
        if int(last or first) + 1 == int(number):
            return f"{gtids[:before]}{first}-{number}{gtids[end:]}"
    return union(gtids, gtid)


def tag_of(gtids: str) -> str:
    """Return a tag in a set, "" if there is none: MySQL 8.3 and newer allow UUID:TAG:NUMBER, which is not read here."""
    found = _TAG.search(gtids)
    return found.group(1) if found else ""


def union(one: str, other: str) -> str:
    """Return the set of all transactions that are in either set. Raises ValueError."""
    merged = _entries(one)
    for uuid, intervals in _entries(other).items():
        if merged.get(uuid) != intervals:
            merged[uuid] = _printed(_joined(_parsed(merged.get(uuid, "")) + _parsed(intervals)))
    return _text(merged)


def difference(one: str, other: str) -> str:
    """Return the set of transactions that are in the first set only. Raises ValueError."""
    taken = _entries(other)
    left = {}
    for uuid, intervals in _entries(one).items():
        if taken.get(uuid) != intervals:  # most servers of a long set write no more
            left[uuid] = _printed(_without(_joined(_parsed(intervals)), _joined(_parsed(taken.get(uuid, "")))))
    return _text(left)


class GtidSets:
    """Stores GTID sets of any length with positions. For one thread; only one Gateway publishes at a time."""

    def __init__(self, log: Log, *, keys: str = "") -> None:
        """Use the topic GTID_SETS of the log, which has records only while a set is long; `keys` begins their keys."""
        self._kept = KeptTexts(log, keys)
        self._whole = ""

    def shortened(self, gtids: str) -> str:
        """Return what to store for a set, publishing it whole first if that is due. Raises LogUnavailable."""
        if len(gtids) <= MAX_STORED_BYTES:
            return gtids
        added = difference(gtids, self._whole) if self._whole else gtids
        if len(added) > MAX_STORED_BYTES or difference(self._whole, gtids):
            self._kept.put(gtids)
            self._whole, added = gtids, ""
        return f"@{self._kept.number}+{added}"

    def whole(self, stored: str) -> str:
        """Return the set that was given to `shortened`. Raises PositionLost when the topic does not have it."""
        match = _REFERENCE.fullmatch(stored)
        if match is None:
            return stored
        number, added = match.groups()
        self._whole = self._kept.get(number)
        return union(self._whole, added)


def _entries(text: str) -> dict[str, str]:
    """Return UUID -> its intervals as they are written."""
    found: dict[str, str] = {}
    for entry in text.replace("\n", "").split(","):
        uuid, _, intervals = entry.strip().partition(":")
        if uuid:
            found[uuid] = f"{found[uuid]}:{intervals}" if uuid in found else intervals
    return found


def _text(entries: dict[str, str]) -> str:
    return ",".join(f"{uuid}:{intervals}" for uuid, intervals in entries.items() if intervals)


def _parsed(intervals: str) -> list[_Interval]:
    parts = (each.partition("-") for each in intervals.split(":") if each)
    return [(int(low), int(high or low)) for low, _, high in parts]


def _printed(intervals: list[_Interval]) -> str:
    return ":".join(f"{low}-{high}" if high > low else str(low) for low, high in intervals)


def _joined(intervals: list[_Interval]) -> list[_Interval]:
    whole: list[_Interval] = []
    for low, high in sorted(intervals):
        if whole and low <= whole[-1][1] + 1:
            whole[-1] = (whole[-1][0], max(high, whole[-1][1]))
        else:
            whole.append((low, high))
    return whole


def _without(intervals: list[_Interval], taken: list[_Interval]) -> list[_Interval]:
    """Both in order and without overlaps."""
    left: list[_Interval] = []
    at = 0
    for first, high in intervals:
        low = first
        while at < len(taken) and taken[at][1] < low:
            at += 1
        ahead = at
        while ahead < len(taken) and taken[ahead][0] <= high:
            start, end = taken[ahead]
            if start > low:
                left.append((low, start - 1))
            low, ahead = end + 1, ahead + 1
        if low <= high:
            left.append((low, high))
    return left
