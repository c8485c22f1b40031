"""Turn committed changes of the Repo into column-level change notifications in the log.

On the embedded store the change feed is written in one step with each commit, so a notification means committed by
construction; the HBase feed has to prove that itself. Delivery is at least once; on the embedded log the feed's
position is stored in one step with the notifications, so a kill -9 repeats none.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import structlog
from google.protobuf.message import DecodeError

from catalog import Catalog, LaneName
from messaging.api import OutRecord, Position
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import LANE_NUMBER, LANE_OF, NOTIFICATIONS, REPO_FEED, WAL_PROXY_GROUP
from storage_repo._exceptions import StoreUnavailable
from storage_repo.api import CommittedChange, Repo

STAGE = "wal_proxy"
_BATCH = 500
_WAIT_SECONDS = 0.25
_MAINTENANCE_SECONDS = 1.0
_MAINTENANCE_CELLS = 5_000
"""Versions looked at each time: about 10 ms (measured: 2,000 in 2 to 5 ms), during which notifications wait."""
_CHANGES_KEPT = 10_000
"""Change records kept behind the position, so that somebody can look at what was notified lately."""


class ChangeNotifier:
    """The pure core: committed changes in, notifications out. Keeps only columns that somebody watches."""

    def __init__(self, catalog: Catalog, watched: Mapping[str, frozenset[str]]) -> None:
        self._names = {
            (table.name, column.cell): column.name
            for table in catalog.tables.values()
            for column in table.columns.values()
            if column.cell in watched.get(table.name, frozenset())
        }

    def notifications(self, changes: Iterable[CommittedChange], entered_us: int) -> list[pb.Notification]:
        """Return one notification per transaction and row with the watched columns that it changed."""
        result = []
        for change in changes:
            header: pb.Header | None = None
            for row in change.rows:
                columns = [name for cell in row.columns if (name := self._names.get((row.table, cell))) is not None]
                if not columns:
                    continue
                header = header or _header_of(change, entered_us)
                result.append(
                    pb.Notification(
                        header=header,
                        table=row.table,
                        row=row.row,
                        columns=columns,
                        commit_ts=change.commit_ts,
                        writer=f"{change.origin.stage}/{change.origin.handler}".rstrip("/"),
                    )
                )
        return result


def _header_of(change: CommittedChange, entered_us: int) -> pb.Header:
    header = pb.Header()
    try:
        header.ParseFromString(change.origin.hops)
    except DecodeError as error:  # its writer's fault, and no reason to hold up the change itself
        structlog.get_logger().warning("bad_timeline", stage=STAGE, commit_ts=change.commit_ts, error=str(error))
        header.Clear()
    if not header.trace_id and not header.hops:
        header.trace_id = change.origin.trace_id
        header.origin_us = change.origin.origin_us or change.committed_at_us
    if change.origin.lane in LANE_OF:
        header.lane = LANE_NUMBER[LANE_OF[change.origin.lane]]
    elif header.lane not in LANE_OF:
        header.lane = LANE_NUMBER[LaneName.LOW]
    if header.hops:
        header.hops[-1].left_us = change.committed_at_us
    header.hops.add(stage=STAGE, entered_us=entered_us, left_us=now_us())
    return header


def run(context: StageContext, repo: Repo, watched: Mapping[str, frozenset[str]]) -> None:
    """Follow the Repo's change feed until told to stop; also keep the Repo in order (versions, stale readers).

    Raises StoreUnavailable when the log's position is ahead of the Repo: then the two are not of one home, and
    changes would be missed.
    """
    log, metrics = context.log, context.metrics
    events = structlog.get_logger().bind(stage=STAGE)
    notifier = ChangeNotifier(context.catalog, watched)
    # Whether the last publish of a killed process was stored is settled in LMDB by the next write only. Forgetting
    # nothing is such a write; without it the position read here may be older than the notifications in the log.
    log.trim(REPO_FEED, 0, 0)
    position = log.committed(WAL_PROXY_GROUP, REPO_FEED).get(0, 0)
    if position > (newest := repo.last_commit_ts()):
        raise StoreUnavailable(
            f"the log has notified up to commit {position}, but the Repo's newest is {newest}: one of them was "
            "replaced; restore both together, or remove both and load again"
        )
    context.ready(0)
    maintained = time.monotonic()
    while not context.stop.is_set():
        context.beat()
        changes = repo.changes(position, _BATCH)
        if changes:
            entered_us, started = now_us(), time.perf_counter()
            notifications = notifier.notifications(changes, entered_us)
            position = changes[-1].commit_ts
            log.publish(
                [
                    OutRecord(NOTIFICATIONS[LANE_OF[n.header.lane]], f"{n.table}/{n.row}", n.SerializeToString())
                    for n in notifications
                ],
                [Position(WAL_PROXY_GROUP, REPO_FEED, 0, position)],
            )
            seconds = time.perf_counter() - started
            metrics.count("transactions", len(changes))
            metrics.count("notifications", len(notifications))
            metrics.time("batch_us", seconds * 1e6)
            events.info(
                "notified",
                transactions=len(changes),
                notifications=len(notifications),
                position=position,
                ms=round(seconds * 1e3, 2),
            )
        else:
            repo.wait_for_changes(position, _WAIT_SECONDS)
        if time.monotonic() - maintained > _MAINTENANCE_SECONDS:
            trimmed = repo.trim_changes(position - _CHANGES_KEPT)
            collected = repo.collect_garbage(max_cells=_MAINTENANCE_CELLS)
            metrics.count("changes_trimmed", trimmed)
            metrics.count("versions_collected", collected)
            maintained = time.monotonic()
    metrics.flush(force=True)
