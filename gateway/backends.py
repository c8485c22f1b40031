"""Which change feed and which rows belong to an ads DB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass

from catalog import Catalog, Table
from gateway import _binlog_resume, _mysql
from gateway._exceptions import AdsDbUnavailable
from gateway._kept_texts import LongStates
from gateway._mysql_rows import MysqlRowSource
from gateway._mysql_server import end_position
from gateway._rows import SqliteRowSource
from gateway.ads_db import AdsDb
from gateway.binlog import BinlogChangeFeed
from gateway.binlog_position import FeedState, file_order
from gateway.feed import Change, ChangeFeed, SqliteChangeFeed
from gateway.materialize import Materializer, RowQuery
from gateway.mysql_ads_db import MysqlAdsDb
from gateway.sqlite_ads_db import SqliteAdsDb
from messaging import Log
from messaging.headers import now_us
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP


@dataclass(frozen=True, slots=True)
class FeedLag:
    """What the Gateway has not published yet; `waiting` 0 means nothing. `unit` says what is counted."""

    waiting: int
    end: int
    position: int
    unit: str


def open_feed(db: AdsDb, catalog: Catalog, log: Log, *, by_file: bool = False) -> ChangeFeed:
    """Open the change feed of an ads DB; `by_file`: a binlog by file and offset. Raises GatewayError."""
    if isinstance(db, MysqlAdsDb):
        return BinlogChangeFeed(db, catalog, log, by_file=by_file)
    return SqliteChangeFeed(_sqlite(db), catalog)


def open_rows(db: AdsDb, catalog: Catalog, feed: ChangeFeed | None = None) -> SqliteRowSource | MysqlRowSource:
    """Open the rows of an ads DB, no older than what `feed` has handed out. Raises AdsDbUnavailable."""
    if isinstance(db, MysqlAdsDb):
        if isinstance(feed, BinlogChangeFeed):
            return MysqlRowSource(db, catalog, expect=feed.server.identity, need=feed.read_point)
        return MysqlRowSource(db, catalog)
    return SqliteRowSource(_sqlite(db), catalog)


def newest_number(db: AdsDb, catalog: Catalog, log: Log) -> int:
    """Return a number that no change still to come will have: a version for rows that are read now."""
    if isinstance(db, MysqlAdsDb):
        return max(0, log.committed(GATEWAY_GROUP, CHANGE_FEED).get(0, 0) - 1)
    with closing(SqliteChangeFeed(_sqlite(db), catalog)) as feed:
        return feed.end()


def feed_lag(db: AdsDb, log: Log) -> FeedLag:
    """Return how far the Gateway is behind the ads DB, from outside of it. Raises AdsDbUnavailable, PositionLost."""
    known = CHANGE_FEED in log.topics()
    position = max(0, log.committed(GATEWAY_GROUP, CHANGE_FEED).get(0, 0) - 1) if known else 0
    if not isinstance(db, MysqlAdsDb):
        end = db.last_change()
        return FeedLag(max(0, end - position), end, position, "changes")
    with closing(db.connect()) as connection, _mysql.translated(db.name):
        now = end_position(connection)
    end = _as_number(now.file, now.offset)
    stored = log.committed_metadata(GATEWAY_GROUP, CHANGE_FEED).get(0, "") if known else ""
    if not stored:
        return FeedLag(end, end, 0, "bytes of the binlog")
    state = FeedState.from_json(LongStates(log).whole(stored))
    at = state.position
    if at.server != now.server or not at.file:
        return FeedLag(1, end, 0, "bytes of the binlog")  # another server: how much is not known before it is read
    behind = max(0, end - _as_number(at.file, at.offset))
    asked = _binlog_resume.newest_request(log).number > state.resync
    return FeedLag(behind + len(state.todo) + asked, end, _as_number(at.file, at.offset), "bytes of the binlog")


def request_resync(db: AdsDb, catalog: Catalog, log: Log) -> int:
    """Have every row of the ads DB sent again, for the low lane; return how many rows there are.

    On a binlog this is also the way out of a lost position. It holds whether or not a Gateway runs now: a Gateway that
    cannot go on from its position goes on from where the binlog ends now, before any row is looked at.
    """
    if isinstance(db, MysqlAdsDb):
        with closing(db.connect()) as connection, _mysql.translated(db.name):
            end = end_position(connection)
            rows = sum(
                int(_mysql.rows(connection, f"SELECT COUNT(*) FROM {_mysql.quoted(table.source.table)}")[0][0])
                for table in catalog.entity_tables()
                if table.source is not None
            )
        _binlog_resume.ask(log, end, db.address.database)
        return rows
    with closing(SqliteChangeFeed(_sqlite(db), catalog)) as feed:
        return feed.resync(max(feed.end() + 1, log.committed(GATEWAY_GROUP, CHANGE_FEED).get(0, 0)))


def request_missing(db: AdsDb, catalog: Catalog, log: Log, table: Table, keys: Iterable[int | str]) -> int:
    """Have those of `keys` that the table's main ads DB table does not have sent as deleted, for the low lane.

    Returns how many. A change table takes them, and the Gateway looks again when their turn comes. A binlog takes
    nothing: there they are published from here, under the newest number that the Gateway has published; a key that it
    published last of all has that number already, and is found only when something was published after it.
    Raises AdsDbUnavailable, SchemaMismatch, LogError.
    """
    source = table.source
    if source is None:
        return 0
    if not isinstance(db, MysqlAdsDb):
        with closing(SqliteChangeFeed(_sqlite(db), catalog)) as feed:
            return feed.enqueue_missing(table, keys)
    wanted = tuple(keys)
    with closing(MysqlRowSource(db, catalog)) as rows:
        found = rows.rows([RowQuery(source.table, source.key, (), wanted)])
        present = {str(key) for _, key, _ in found}
    return _publish(db, catalog, log, table, [key for key in wanted if str(key) not in present], gone_only=True)


def request_rows(db: AdsDb, catalog: Catalog, log: Log, table: Table, keys: Iterable[int | str]) -> int:
    """Have the entities of `keys` read again and sent, as they are or as deleted, for the low lane; return how many.

    As `request_missing` does it: what is published from here has the number `newest_number` as its version, and the
    Updater takes it for stale where a row has that version or a newer one. Raises AdsDbUnavailable, SchemaMismatch,
    LogError.
    """
    if table.source is None:
        return 0
    if not isinstance(db, MysqlAdsDb):
        with closing(SqliteChangeFeed(_sqlite(db), catalog)) as feed:
            return feed.enqueue(table, keys)
    return _publish(db, catalog, log, table, list(keys))


def _publish(
    db: MysqlAdsDb, catalog: Catalog, log: Log, table: Table, keys: Sequence[int | str], *, gone_only: bool = False
) -> int:
    """Publish rows as they are now, all or those that are gone, under the newest number published; return how many."""
    # Before the rows are read: whatever changes after that has a higher number.
    number = newest_number(db, catalog, log)
    if number <= 0 or table.source is None:  # nothing was ever published from this binlog
        return 0
    now = now_us()
    with closing(MysqlRowSource(db, catalog)) as rows:
        changes = [Change(number, table.source.table, key, now, backfill=True) for key in keys]
        result = Materializer(catalog).materialize(changes, rows)
    log.publish(result.records(now))
    return sum(update.deleted or not gone_only for update in result.updates)


def _as_number(file: str, offset: int) -> int:
    return (file_order(file, 0)[1] << 32) + offset


def _sqlite(db: AdsDb) -> SqliteAdsDb:
    if not isinstance(db, SqliteAdsDb):
        raise AdsDbUnavailable(f"ads DB {db.name}: there is no change feed for {type(db).__name__}")
    return db
