"""What changed in the ads DB, and what is the whole entity now?"""

from gateway._exceptions import (
    AdsDbUnavailable,
    BinlogFormat,
    GatewayError,
    MissingTopic,
    PositionLost,
    SchemaMismatch,
    ServerUnsuitable,
    StatementFailed,
)
from gateway.ads_db import AdsDb, CaptureReport, StatementResult
from gateway.backends import FeedLag, feed_lag, newest_number, open_rows, request_missing, request_resync, request_rows
from gateway.binlog import BinlogChangeFeed
from gateway.feed import Change, ChangeFeed, SqliteChangeFeed
from gateway.materialize import Materialized, Materializer, RowQuery, RowSource
from gateway.mysql_ads_db import MysqlAdsDb
from gateway.sqlite_ads_db import SqliteAdsDb

__all__ = [
    "AdsDb",
    "AdsDbUnavailable",
    "BinlogChangeFeed",
    "BinlogFormat",
    "CaptureReport",
    "Change",
    "ChangeFeed",
    "FeedLag",
    "GatewayError",
    "Materialized",
    "Materializer",
    "MissingTopic",
    "MysqlAdsDb",
    "PositionLost",
    "RowQuery",
    "RowSource",
    "SchemaMismatch",
    "ServerUnsuitable",
    "SqliteAdsDb",
    "SqliteChangeFeed",
    "StatementFailed",
    "StatementResult",
    "feed_lag",
    "newest_number",
    "open_rows",
    "request_missing",
    "request_resync",
    "request_rows",
]
