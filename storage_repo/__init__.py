"""What did this row look like at that timestamp, and how do I change many rows at once?

`api` has the interface; `embedded` is an engine for one machine, `hbase` one on HBase with Apache Omid.
"""

from __future__ import annotations

from storage_repo._exceptions import (
    Conflict,
    FalseConflict,
    FeedStuck,
    LimitExceeded,
    OutcomeUnknown,
    RepoError,
    SnapshotTooOld,
    StoreUnavailable,
    TransactionClosed,
    UnknownTable,
)
from storage_repo.api import (
    INDEX_SEPARATOR,
    CellVersion,
    ChangeFeedRepo,
    CommitOutcome,
    CommittedChange,
    Limits,
    Origin,
    Repo,
    RepoSchema,
    Row,
    RowChange,
    RowId,
    Snapshot,
    TableLayout,
    TableSchema,
    Transaction,
)

__all__ = [
    "INDEX_SEPARATOR",
    "CellVersion",
    "ChangeFeedRepo",
    "CommitOutcome",
    "CommittedChange",
    "Conflict",
    "FalseConflict",
    "FeedStuck",
    "LimitExceeded",
    "Limits",
    "Origin",
    "OutcomeUnknown",
    "Repo",
    "RepoError",
    "RepoSchema",
    "Row",
    "RowChange",
    "RowId",
    "Snapshot",
    "SnapshotTooOld",
    "StoreUnavailable",
    "TableLayout",
    "TableSchema",
    "Transaction",
    "TransactionClosed",
    "UnknownTable",
]
