"""The daily report of everything dropped: so many by day (UTC), stage, reason and lane.

One function, `tally`, counts a record of DROPS or DEAD_LETTERS into a table of counts. Every count remembers the offset
up to which it has counted, so a record given twice counts once, whoever counts and however often he is killed.

On Kafka the reports stage keeps such a table with its changelog in DROP_COUNTS (see `messaging.reports_stage`). The
report reads the changelog and counts the rest itself, so it is complete to the last record also while the stage is
behind or down, it does not read a million dead letters again, and it keeps the days that their topics have forgotten.
The embedded log has no such stage: there the rest is everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import structlog

from messaging._exceptions import BadMessage, LogError, OffsetTrimmed
from messaging.api import Log, Record
from messaging.dead_letters import parse
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import DEAD_LETTERS, DROP_COUNTS, DROPS, LANE_NUMBER

EXAMPLES = 20
"""Entities kept with a count, the newest first: enough to look at; every one is in the topic itself for a month."""
KEPT_DAYS = 400
"""Days of counts that the reports stage keeps: this month beside the same one a year ago."""
UNREADABLE = "unreadable"
"""Reason of a record of DROPS or DEAD_LETTERS that is none."""
DROPPED, DEAD_LETTER = "dropped", "dead_letter"
COUNTED: dict[str, str] = {DROPS: DROPPED, DEAD_LETTERS: DEAD_LETTER}
"""Topics that are counted -> kind. A count belongs to one of them, so one offset says how far it has counted."""

_BATCH = 500
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class DropLine:
    """One line of the report: so many of one kind on one day."""

    day: date
    kind: str
    """"dropped" or "dead_letter"."""
    stage: str
    reason: str
    lane: str
    count: int
    entities: tuple[str, ...]
    hint: str


def report_drops(log: Log, day: date | None = None) -> list[DropLine]:
    """Return what was dropped or dead-lettered, by day (UTC), stage, reason and lane; of one day if given.

    Raises LogError when the counts cannot belong to the topics that they count.
    """
    counts = load_counts(log)
    for topic, following in next_offsets(counts).items():
        for record in _records(log, topic, {0: following}, day):
            if (counted := tally(counts, record)) is not None:
                counts[counted[0]] = counted[1]
    return sorted(_lines(counts, day), key=lambda line: (line.day, line.kind, line.stage, line.reason, line.lane))


def tally(counts: Mapping[bytes, bytes], record: Record) -> tuple[bytes, bytes] | None:
    """Count one record: return the key and new value of the count that changes, None if it was counted before.

    Records of a topic are to be given in order of offset, from any point at or before the first that is not counted.
    """
    key, amount, entities = _what(record)
    stored = counts.get(key)
    count, upto, before = json.loads(stored) if stored else (0, -1, [])
    if record.offset <= upto:
        return None
    examples = list(dict.fromkeys([*entities[:EXAMPLES], *before]))[:EXAMPLES]
    return key, json.dumps([count + amount, record.offset, examples], ensure_ascii=False).encode()


def load_counts(log: Log) -> dict[bytes, bytes]:
    """Return the counts that the reports stage has stored; empty on the embedded log.

    Raises LogError when they go beyond the end of a topic: it was made anew, and the counts were not.
    """
    counts: dict[bytes, bytes] = {}
    for record in _read(log, DROP_COUNTS, 0, log.start_offsets(DROP_COUNTS)[0], log.end_offsets(DROP_COUNTS)[0]):
        key = record.key.encode()
        if record.value:
            counts[key] = record.value
        else:  # a tombstone: the day is too long ago
            counts.pop(key, None)
    for topic, following in next_offsets(counts).items():
        end = log.end_offsets(topic)[0]
        if following > end:
            raise LogError(
                f"{DROP_COUNTS} has counted {topic} up to offset {following - 1}, but the topic ends at {end}: it was "
                f"made anew; delete the topic {DROP_COUNTS} as well, then ./adsindex topics apply"
            )
    return counts


def next_offsets(counts: Mapping[bytes, bytes]) -> dict[str, int]:
    """Return topic -> offset of the first record that is not counted.

    Records are counted in order, and each is the newest of one count: all below the newest of any count are counted.
    """
    upto = dict.fromkeys(COUNTED.values(), -1)
    for key, value in counts.items():
        kind = json.loads(key)[1]
        upto[kind] = max(upto[kind], json.loads(value)[1])
    return {topic: upto[kind] + 1 for topic, kind in COUNTED.items()}


def expired(keys: Iterable[bytes], today: date) -> list[bytes]:
    """Return the keys of days that are more than KEPT_DAYS ago."""
    oldest = (today - timedelta(days=KEPT_DAYS)).isoformat()
    return [key for key in keys if json.loads(key)[0] < oldest]


def _what(record: Record) -> tuple[bytes, int, list[str]]:
    """Return the key of the count that a record belongs to, how much it counts, and the entities that it names."""
    try:
        if record.topic == DROPS:
            drop = parse(pb.Drop, record)
            key = (_day(drop.at_us), DROPPED, drop.stage, drop.reason, _lane(drop.lane))
            return _key(key), drop.count, list(drop.entities)
        letter = parse(pb.DeadLetter, record)
    except BadMessage as error:
        _log.warning("report_unreadable", error=str(error))
        return _key((_day(record.appended_us), COUNTED[record.topic], "unknown", UNREADABLE, "unknown")), 1, []
    key = (_day(letter.at_us), DEAD_LETTER, letter.stage, letter.reason, _lane(letter.header.lane))
    return _key(key), 1, [f"{letter.table}/{letter.row}" if letter.table else letter.row] if letter.row else []


def _key(parts: tuple[date, str, str, str, str]) -> bytes:
    return json.dumps([parts[0].isoformat(), *parts[1:]], ensure_ascii=False).encode()


def _lines(counts: Mapping[bytes, bytes], day: date | None) -> Iterator[DropLine]:
    for key, value in counts.items():
        found, kind, stage, reason, lane = json.loads(key)
        if day is None or found == day.isoformat():
            count, _, entities = json.loads(value)
            yield DropLine(
                date.fromisoformat(found), kind, stage, reason, lane, count, tuple(entities), _hint(kind, reason)
            )


def _records(log: Log, topic: str, positions: Mapping[int, int], day: date | None) -> Iterator[Record]:
    """Read a topic from the positions to its end; of one day, what was appended on it and one day later at most."""
    starts = log.start_offsets(topic)
    for partition, end in log.end_offsets(topic).items():
        position = max(starts[partition], positions.get(partition, 0))
        if day is not None:
            position = _first_since(log, topic, partition, position, end, day)
        for record in _read(log, topic, partition, position, end):
            if day is not None and _day(record.appended_us) > day + timedelta(days=1):
                break
            yield record


def _read(log: Log, topic: str, partition: int, position: int, end: int) -> Iterator[Record]:
    while position < end:
        try:
            records = log.read(topic, partition, position, _BATCH)
        except OffsetTrimmed as error:
            position = error.oldest
            continue
        if not records:
            return
        yield from records
        position = records[-1].offset + 1


def _first_since(log: Log, topic: str, partition: int, low: int, high: int, day: date) -> int:
    """Find by halving the first record appended on the day: a few reads, however many there are."""
    while low < high:
        middle = (low + high) // 2
        try:
            found = log.read(topic, partition, middle, 1)
        except OffsetTrimmed as error:
            low = error.oldest
            continue
        if not found or _day(found[0].appended_us) >= day:
            high = middle
        else:
            low = middle + 1
    return low


_RESYNC = "send them again: adsindex workflow run resync"
_NOTHING_LOST = "what is stale or came twice is no loss: something newer, or the very same, is stored"


def _hint(kind: str, reason: str) -> str:
    if kind == DEAD_LETTER:
        return "mend the cause, then replay them from the page's dead letters, or run adsindex workflow run resync"
    return _NOTHING_LOST if reason.startswith(("stale", "duplicate", "redelivered")) else _RESYNC


def _day(at_us: int) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)).date()


def _lane(number: int) -> str:
    return next((lane.value for lane, lane_number in LANE_NUMBER.items() if lane_number == number), "unknown")
