"""Errors of the Storage Repo.

RepoError                     catch this to treat every failure of the Repo alike
├── Conflict                  another transaction committed one of our cells first: run again on a newer snapshot
│   └── FalseConflict         refused again and again though nobody did (clusters only): run again as well
├── SnapshotTooOld            the snapshot or transaction is older than the low watermark: begin again
├── LimitExceeded             a value, row key or transaction is larger than the declared limit: the input is at fault
├── UnknownTable              the table or column family is not in the schema: the catalogue or the caller errs
├── TransactionClosed         the transaction has been committed or aborted already: a bug of the caller
├── FeedStuck                 nobody makes notifications of what is committed: an operator has to act
└── StoreUnavailable          the store cannot be opened or written (disk full, wrong format, backend away)
    └── OutcomeUnknown        whether a transaction is committed cannot be found out now (clusters only)
"""

from __future__ import annotations

from catalog.portable import Portable


class RepoError(Portable):
    """Base of all errors of the Storage Repo."""


class Conflict(RepoError):
    """Raised at commit when a cell of the write or promoted-read set has a version newer than the start timestamp.

    Nothing of the transaction is visible. Run the whole transaction again on a newer snapshot.
    """

    def __init__(self, table: str, row: str, column: str, start_ts: int, newer_ts: int) -> None:
        self.table, self.row, self.column = table, row, column
        self.start_ts, self.newer_ts = start_ts, newer_ts
        super().__init__(
            f"write-write conflict on {table}/{row!r} {column}: started at {start_ts}, but {newer_ts} committed since; "
            "run the transaction again on a newer snapshot"
        )


class FalseConflict(Conflict):
    """Raised at commit when the transaction was refused several times though no cell of it had changed.

    Nothing of it is visible. It names no culprit, for there is none: run the whole transaction again.
    """

    def __init__(self, table: str, row: str, start_ts: int, attempts: int) -> None:
        self.table, self.row, self.column = table, row, ""
        self.start_ts = self.newer_ts = start_ts
        RepoError.__init__(
            self,
            f"the transaction at {start_ts} that writes {table}/{row!r} was refused {attempts} times although nobody "
            "changed a cell of it; run it again",
        )


class SnapshotTooOld(RepoError):
    """Raised when reading or committing below the low watermark, where old versions may have been collected."""

    def __init__(self, ts: int, low_watermark: int) -> None:
        self.ts, self.low_watermark = ts, low_watermark
        super().__init__(f"snapshot {ts} is older than the low watermark {low_watermark}; begin again on a newer one")


class LimitExceeded(RepoError):
    """Raised when input is larger than a declared limit; the message names the limit, the cell and the size."""


class UnknownTable(RepoError):
    """Raised for a table, or a column family of a table, that the schema does not declare."""


class TransactionClosed(RepoError):
    """Raised when a transaction is used after commit or abort."""


class FeedStuck(RepoError):
    """Raised when commits have not become notifications for a long time; the message says why and what to do."""


class StoreUnavailable(RepoError):
    """Raised when the store cannot be opened, read or written."""


class OutcomeUnknown(StoreUnavailable):
    """Raised at commit when the store went away between the decision and the answer: committed, all of it, or not.

    Look at what the transaction would have written, once the store is back, or run it again if that does no harm.
    """
