"""What changed in the ads DB, and what is the whole entity now?"""

from gateway._capture import CaptureReport
from gateway._exceptions import AdsDbUnavailable, GatewayError, SchemaMismatch, StatementFailed
from gateway.ads_db import AdsDb, StatementResult
from gateway.feed import Change, ChangeFeed, SqliteChangeFeed
from gateway.materialize import Materialized, Materializer, RowQuery, RowSource

__all__ = [
    "AdsDb",
    "AdsDbUnavailable",
    "CaptureReport",
    "Change",
    "ChangeFeed",
    "GatewayError",
    "Materialized",
    "Materializer",
    "RowQuery",
    "RowSource",
    "SchemaMismatch",
    "SqliteChangeFeed",
    "StatementFailed",
    "StatementResult",
]
