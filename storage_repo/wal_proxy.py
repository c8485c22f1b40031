"""Turn committed changes of the Repo into column-level change notifications in the log.

On the embedded store the change feed is written in one step with each commit, so a notification means committed by
construction; the HBase feed has to prove that itself. Delivery is at least once; on the embedded log the feed's
position is stored in one step with the notifications, so a kill -9 repeats none.

A position is a number, and a store that was restored from a backup reaches every number again. So beside the position,
in the same step, goes a mark that says of which store and which commit it is: the newest record of the topic
`repo.changes` counts, older ones are trimmed.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping

import msgspec
import structlog
from google.protobuf.message import DecodeError

from catalog import Catalog, LaneName
from messaging.api import Log, OutRecord, Position
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import LANE_NUMBER, LANE_OF, NOTIFICATIONS, REPO_FEED, WAL_PROXY_GROUP
from storage_repo._exceptions import StoreUnavailable
from storage_repo.api import ChangeFeedRepo, CommittedChange

STAGE = "wal_proxy"
_BATCH = 500
_WAIT_SECONDS = 0.25
_MAINTENANCE_SECONDS = 1.0
_MAINTENANCE_CELLS = 5_000
"""Versions looked at each time: about 10 ms (measured: 2,000 in 2 to 5 ms), during which notifications wait."""
_CHANGES_KEPT = 10_000
"""Change records kept behind the position, so that somebody can look at what was notified lately."""
_MARKS_KEPT = 1_000
"""Only the newest mark counts; trimming is a synced write, so it is not done for a few."""


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


def notification_record(notification: pb.Notification) -> OutRecord:
    """Return the record that brings a notification into the topic of its lane; a row's lie in one partition."""
    topic = NOTIFICATIONS[LANE_OF[notification.header.lane]]
    return OutRecord(topic, f"{notification.table}/{notification.row}", notification.SerializeToString())


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


_WAY_OUT = (
    "one of them was replaced, so changes would be missed. Put back the other one of the same backup, or accept the "
    "store as it is and have everything read and published again: ./adsindex workflow run repair-after-restore"
)


class _Mark(msgspec.Struct, array_like=True, frozen=True):
    """Which commit of which store a position stands for."""

    store: str
    commit_ts: int
    digest: str
    """Of that commit's record; "" where there is none: at 0, and where a repair left numbers out."""


def check_feed(log: Log, repo: ChangeFeedRepo) -> int:
    """Return the commit up to which the log has notified what this store has committed.

    Raises StoreUnavailable, naming the way out, when log and store do not belong together.
    """
    position = log.committed(WAL_PROXY_GROUP, REPO_FEED).get(0, 0)
    if position > (newest := repo.last_commit_ts()):
        raise StoreUnavailable(
            f"the log has notified up to commit {position}, but the Repo's newest is {newest}: {_WAY_OUT}"
        )
    end = log.end_offsets(REPO_FEED)[0]
    if end == log.start_offsets(REPO_FEED)[0]:  # nothing was ever notified, or only by a version that kept no marks
        return position
    mark = msgspec.msgpack.decode(log.read(REPO_FEED, 0, end - 1, 1)[0].value, type=_Mark)
    if mark.store != repo.store_id():
        raise StoreUnavailable(f"the log belongs to store {mark.store}, but this is {repo.store_id()}: {_WAY_OUT}")
    # A log that stores positions after the records may have the mark of a publish whose position was lost.
    if mark.commit_ts < position or mark != _mark(repo, mark.commit_ts):
        raise StoreUnavailable(f"commit {mark.commit_ts} is not the one that the log has notified: {_WAY_OUT}")
    return position


def accept_store(log: Log, repo: ChangeFeedRepo) -> int:
    """Take the store as it is: count all of its commits as notified, and return the newest.

    What they changed has to be brought to everybody in another way. No WAL proxy may be running.
    """
    position = repo.last_commit_ts()
    log.publish([_mark_record(_mark(repo, position))], [Position(WAL_PROXY_GROUP, REPO_FEED, 0, position)])
    return position


def _mark(repo: ChangeFeedRepo, position: int) -> _Mark:
    found = repo.changes(position - 1, 1) if position > 0 else []
    return _mark_of(repo.store_id(), position, found[0] if found else None)


def _mark_of(store: str, position: int, change: CommittedChange | None) -> _Mark:
    if change is None or change.commit_ts != position:
        return _Mark(store, position, "")
    rows = [(row.table, row.row, row.columns) for row in change.rows]
    record = msgspec.msgpack.encode((change.committed_at_us, change.origin.trace_id, rows))
    return _Mark(store, position, hashlib.blake2b(record, digest_size=16).hexdigest())


def _mark_record(mark: _Mark) -> OutRecord:
    return OutRecord(REPO_FEED, "mark", msgspec.msgpack.encode(mark))


def run(context: StageContext, repo: ChangeFeedRepo, watched: Mapping[str, frozenset[str]]) -> None:
    """Follow the Repo's change feed until told to stop; also keep the Repo in order (versions, stale readers).

    Raises StoreUnavailable when log and store do not belong together: changes would be missed.
    """
    log, metrics = context.log, context.metrics
    events = structlog.get_logger().bind(stage=STAGE)
    notifier = ChangeNotifier(context.catalog, watched)
    # Whether the last publish of a killed process was stored is settled in LMDB by the next write only. Forgetting
    # nothing is such a write; without it the position read here may be older than the notifications in the log.
    log.trim(REPO_FEED, 0, 0)
    position, store = check_feed(log, repo), repo.store_id()
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
                [*map(notification_record, notifications), _mark_record(_mark_of(store, position, changes[-1]))],
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
            marks = log.end_offsets(REPO_FEED)[0]
            if marks - log.start_offsets(REPO_FEED)[0] > _MARKS_KEPT:
                log.trim(REPO_FEED, 0, marks - 1)
            collected = repo.collect_garbage(max_cells=_MAINTENANCE_CELLS)
            metrics.count("changes_trimmed", trimmed)
            metrics.count("versions_collected", collected)
            maintained = time.monotonic()
    metrics.flush(force=True)
