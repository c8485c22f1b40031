"""What was dropped on purpose: decided by the switches, counted, and recorded so that a report can list it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TypeVar

import structlog

from catalog import LaneName
from messaging._exceptions import BadMessage, OffsetTrimmed
from messaging.api import Log, OutRecord
from messaging.dead_letters import parse
from messaging.headers import lane_of, now_us
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.switches import DROP_OLDER, Switches
from messaging.topics import DEAD_LETTERS, DROPS, LANE_NUMBER

TOO_OLD = "too_old"
M = TypeVar("M", pb.Drop, pb.DeadLetter)
_log = structlog.get_logger()

MAX_ENTITIES = 100
"""Entities named in one record; the count is of all."""
_BATCH = 500


def split_too_old(
    updates: Sequence[pb.EntityUpdate], switches: Switches
) -> tuple[list[pb.EntityUpdate], list[pb.EntityUpdate]]:
    """Return the updates to keep and those to drop because their lane's switch says that they are too old.

    A deletion is never dropped: no resync finds a row that is gone. An update without origin time is kept.
    """
    limits: dict[LaneName, int | None] = {lane: switches.oldest_allowed_us(lane) for lane in DROP_OLDER}
    if not any(limits.values()):
        return list(updates), []
    kept: list[pb.EntityUpdate] = []
    dropped: list[pb.EntityUpdate] = []
    for update in updates:
        limit = limits[lane_of(update.header)]
        old = limit is not None and not update.deleted and 0 < update.header.origin_us < limit
        (dropped if old else kept).append(update)
    return kept, dropped


def drop_records(
    stage: str, dropped: Iterable[pb.EntityUpdate], metrics: StageMetrics | None, reason: str = TOO_OLD
) -> list[OutRecord]:
    """Count what is dropped by reason and lane, and return the records that say so; publish them with the position."""
    by_lane: dict[LaneName, pb.Drop] = {}
    for update in dropped:
        lane = lane_of(update.header)
        drop = by_lane.get(lane)
        if drop is None:
            drop = by_lane[lane] = pb.Drop(stage=stage, reason=reason, lane=LANE_NUMBER[lane], at_us=now_us())
        drop.count += 1
        if len(drop.entities) < MAX_ENTITIES:
            drop.entities.append(f"{update.table}/{update.row}")
        if not drop.oldest_origin_us or update.header.origin_us < drop.oldest_origin_us:
            drop.oldest_origin_us = update.header.origin_us
    if metrics is not None:
        for lane, drop in by_lane.items():
            metrics.count(f"dropped:{reason}:{lane.value}", drop.count)
    return [OutRecord(DROPS, stage, drop.SerializeToString()) for drop in by_lane.values()]


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


@dataclass(slots=True)
class _Sum:
    count: int = 0
    entities: Counter[str] = field(default_factory=Counter)


def report_drops(log: Log, day: date | None = None) -> list[DropLine]:
    """Return what was dropped or dead-lettered, by day (UTC), stage, reason and lane; of one day if given."""
    sums: dict[tuple[date, str, str, str, str], _Sum] = {}
    for drop in _messages(log, DROPS, pb.Drop, day):
        found = sums.setdefault((_day(drop.at_us), "dropped", drop.stage, drop.reason, _lane(drop.lane)), _Sum())
        found.count += drop.count
        found.entities.update(drop.entities)
    for letter in _messages(log, DEAD_LETTERS, pb.DeadLetter, day):
        lane = _lane(letter.header.lane)
        found = sums.setdefault((_day(letter.at_us), "dead_letter", letter.stage, letter.reason, lane), _Sum())
        found.count += 1
        if letter.row:
            found.entities[f"{letter.table}/{letter.row}"] += 1
    return [
        DropLine(*key, found.count, tuple(name for name, _ in found.entities.most_common(MAX_ENTITIES)), _hint(key[1]))
        for key, found in sorted(sums.items())
        if day is None or key[0] == day
    ]


def _messages(log: Log, topic: str, kind: type[M], day: date | None) -> Iterator[M]:
    """Read a topic to its end; of one day, from the first record appended on it (records are in order of time)."""
    for partition, end in log.end_offsets(topic).items():
        position = log.start_offsets(topic)[partition]
        if day is not None:
            position = _first_since(log, topic, partition, position, end, day)
        while position < end:
            try:
                records = log.read(topic, partition, position, _BATCH)
            except OffsetTrimmed as error:
                position = error.oldest
                continue
            if not records:
                break
            for record in records:
                if day is not None and _day(record.appended_us) > day + timedelta(days=1):
                    return
                try:
                    yield parse(kind, record)
                except BadMessage as error:
                    _log.warning("report_skips", error=str(error))
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


def _hint(kind: str) -> str:
    if kind == "dropped":
        return "send them again: adsindex workflow run resync"
    return "mend the cause, then replay them from the page's dead letters, or run adsindex workflow run resync"


def _day(at_us: int) -> date:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)).date()


def _lane(number: int) -> str:
    return next((lane.value for lane, lane_number in LANE_NUMBER.items() if lane_number == number), "unknown")
