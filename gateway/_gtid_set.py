"""MySQL's GTID sets: adding one at a time, and keeping long ones where Kafka's positions have no room for them.

A set grows by a UUID with every server that was ever the primary, and by an interval with every gap. A long one is
published whole to a compacted topic, under a number of its own; positions have that number and what was added since.
"""

from __future__ import annotations

import hashlib
import re

from gateway._exceptions import PositionLost
from messaging import Log, OutRecord
from messaging.topics import GTID_SETS

MAX_STORED_BYTES = 1_500
"""Of the part of a GTID set that goes with a position: Kafka keeps 4096 bytes, and a snapshot's progress wants some."""

_Interval = tuple[int, int]
_REFERENCE = re.compile(r"@([0-9a-f]{16})\+(.*)", re.S)
_READ = 1_000


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

    def __init__(self, log: Log) -> None:
        """Use the topic GTID_SETS of the log, which has records only while a set is long."""
        self._log = log
        self._whole, self._number = "", ""

    def shortened(self, gtids: str) -> str:
        """Return what to store for a set, publishing it whole first if that is due. Raises LogUnavailable."""
        if len(gtids) <= MAX_STORED_BYTES:
            return gtids
        added = difference(gtids, self._whole) if self._whole else gtids
        if len(added) > MAX_STORED_BYTES or difference(self._whole, gtids):
            number = hashlib.blake2b(gtids.encode(), digest_size=8).hexdigest()
            # Two keys in turn: a position that is stored after this may be lost, and then the set before is needed.
            key = "even" if self._key_of(self._number) == "odd" else "odd"
            self._log.publish([OutRecord(GTID_SETS, key, f"{number} {gtids}".encode())])
            self._whole, self._number, added = gtids, number, ""
        return f"@{self._number}+{added}"

    def whole(self, stored: str) -> str:
        """Return the set that was given to `shortened`. Raises PositionLost when the topic does not have it."""
        match = _REFERENCE.fullmatch(stored)
        if match is None:
            return stored
        number, added = match.groups()
        for _, found, gtids in self._records():
            if found == number:
                self._whole, self._number = gtids, number
                return union(gtids, added)
        raise PositionLost(
            f"the GTID set {number} of the stored position is not in the topic {GTID_SETS}; was the topic made anew? "
            "Run the resync workflow: the Gateway then goes on from the binlog's present end and sends every row again"
        )

    def _key_of(self, number: str) -> str:
        return next((key for key, found, _ in self._records() if found == number), "")

    def _records(self) -> list[tuple[str, str, str]]:
        """Return (key, number, set) of all records, oldest first."""
        found: list[tuple[str, str, str]] = []
        at, end = self._log.start_offsets(GTID_SETS)[0], self._log.end_offsets(GTID_SETS)[0]
        while at < end and (records := self._log.read(GTID_SETS, 0, at, _READ)):
            found.extend((r.key, *_halves(r.value.decode())) for r in records)
            at = records[-1].offset + 1
        return found


def _halves(text: str) -> tuple[str, str]:
    number, _, gtids = text.partition(" ")
    return number, gtids


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
