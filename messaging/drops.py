"""What was dropped on purpose: decided by the switches, counted, and recorded so that a report can list it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from catalog import LaneName
from messaging.api import OutRecord
from messaging.headers import lane_of, now_us
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.switches import DROP_OLDER, Switches
from messaging.topics import DROPS, LANE_NUMBER

TOO_OLD = "too_old"
"""Older than the lane's switch allows. Other reasons: "stale_…" (something newer is stored), "duplicate_…" (the very
same is stored) and "redelivered_…" (stored before a crash, and read again after it)."""

MAX_ENTITIES = 100
"""Entities named in one record; the count is of all."""


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
    """Count updates that are dropped by lane, and return the records that say so; publish them with the position."""
    return drops_of(stage, reason, ((update.header, f"{update.table}/{update.row}") for update in dropped), metrics)


def drops_of(
    stage: str, reason: str, dropped: Iterable[tuple[pb.Header, str]], metrics: StageMetrics | None
) -> list[OutRecord]:
    """Count what is dropped, given as header and name, by lane; return the records that say so.

    Publish them before the position is stored: after a crash in between they are recorded twice, never not at all.
    """
    by_lane: dict[LaneName, pb.Drop] = {}
    for header, name in dropped:
        lane = lane_of(header)
        drop = by_lane.get(lane)
        if drop is None:
            drop = by_lane[lane] = pb.Drop(stage=stage, reason=reason, lane=LANE_NUMBER[lane], at_us=now_us())
        drop.count += 1
        if len(drop.entities) < MAX_ENTITIES:
            drop.entities.append(name)
        if not drop.oldest_origin_us or header.origin_us < drop.oldest_origin_us:
            drop.oldest_origin_us = header.origin_us
    if metrics is not None:
        for lane, drop in by_lane.items():
            metrics.count(f"dropped:{reason}:{lane.value}", drop.count)
    return [OutRecord(DROPS, stage, drop.SerializeToString()) for drop in by_lane.values()]
