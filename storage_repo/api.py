"""The Storage Repo's interface: snapshots, transactions, history and the change feed, without any engine.

Cells are (table, row, column, timestamp) -> bytes. A column is written "family:qualifier". Rows and columns are
text; row keys are 1..400 bytes of UTF-8 without control characters below U+0020 except U+001F, which separates the
parts of an index row key. Values are bytes; an empty value is a value, absence is a tombstone.

Semantics: snapshot isolation (Peng and Dabek, Percolator, OSDI 2010; Bortnikov et al., Omid, FAST 2017). A snapshot at
ts sees the newest version committed at or before ts. Write-write conflicts are per cell, over rows and tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

INDEX_SEPARATOR = "\x1f"

RowId = tuple[str, str]
"""(table, row)."""

Row = dict[str, bytes]
"""Column -> value of the cells that exist; a row without cells is an empty dict."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Who writes: kept with the transaction, shown in history, carried by its notifications."""

    stage: str
    handler: str = ""
    code_version: str = ""
    trace_id: str = ""
    lane: int = 0
    origin_us: int = 0
    hops: bytes = b""
    """Serialized messaging Header of the cause, so that notifications can go on with its timeline; may be empty."""


@dataclass(frozen=True, slots=True)
class CellVersion:
    """One version of a cell. `value` is None for a tombstone. `origin` is None once its record has been collected."""

    commit_ts: int
    value: bytes | None
    committed_at_us: int
    origin: Origin | None


@dataclass(frozen=True, slots=True)
class RowChange:
    """Columns of one row that one transaction wrote or deleted."""

    table: str
    row: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CommittedChange:
    """All that one committed transaction changed; position == commit_ts in the embedded feed."""

    commit_ts: int
    committed_at_us: int
    origin: Origin
    rows: tuple[RowChange, ...]


@dataclass(frozen=True, slots=True)
class Limits:
    """Declared limits; exceeding one is a LimitExceeded error, never a truncation."""

    max_value_bytes: int = 1 << 20
    """Servable documents are some KB; a megabyte already means that something is wrong upstream."""
    max_cells_per_transaction: int = 20_000
    max_transaction_age_s: float = 300.0
    """Versions superseded longer ago than this may be collected; older snapshots abort."""
    versions_kept: int = 10
    """Newest versions of every cell that stay readable for history, however old."""


class Snapshot(Protocol):
    """A consistent read-only view at one timestamp. Cheap; holds no lock and no engine transaction between calls."""

    @property
    def ts(self) -> int:
        """Timestamp of this view."""

    def get(self, table: str, row: str, columns: Sequence[str] | None = None) -> Row:
        """Read one row; `columns` limits what is returned."""

    def get_many(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]] | None = None) -> dict[RowId, Row]:
        """Read many rows of several tables in one go; every asked row is in the answer, missing ones as {}.

        `columns` maps a table to the columns wanted of it; a table that is not in the mapping is read whole.
        """

    def scan(
        self,
        table: str,
        *,
        prefix: str = "",
        after: str = "",
        before: str = "",
        columns: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[tuple[str, Row]]:
        """Yield (row, cells) in key order: rows that begin with `prefix`, are > `after`, and < `before` (if given).

        Rows that have no visible cell are left out. Safe to leave early; survives commits of others in between.
        """


class Transaction(Snapshot, Protocol):
    """A snapshot with buffered writes. Reads see the own writes. Not for use by several threads."""

    @property
    def origin(self) -> Origin:
        """Who writes."""

    def put(self, table: str, row: str, column: str, value: bytes) -> None:
        """Buffer a write. Raises LimitExceeded, UnknownTable."""

    def delete(self, table: str, row: str, column: str) -> None:
        """Buffer a tombstone for one cell."""

    def promote(self, table: str, row: str, column: str) -> None:
        """Put a cell that was only read into the conflict set, where write skew would matter."""

    def commit(self) -> int:
        """Make all writes visible at one new timestamp and return it; durable when this returns.

        A transaction without writes returns its start timestamp. Raises Conflict or SnapshotTooOld, and then nothing
        is visible. If the process dies inside, either all or nothing is visible; the caller cannot know which; nor can
        it after OutcomeUnknown, which stores on a cluster raise when they lose it in the midst.
        """

    def abort(self) -> None:
        """Forget all writes. Safe to call twice."""


CommitOutcome = int | Exception
"""Commit timestamp, or the Conflict / SnapshotTooOld that this transaction met.

On a cluster that goes away in the midst of a group also OutcomeUnknown, and StoreUnavailable for those that are surely
not visible."""


class Repo(Protocol):
    """A versioned column store."""

    def snapshot(self, ts: int | None = None, *, transactions: int = 0) -> Snapshot:
        """Open a view at `ts`, or of all that is committed now. Raises SnapshotTooOld, ValueError for a later `ts`.

        `transactions` tells how many will be begun on this view at most, which saves round trips at their commit.
        """

    def begin(self, origin: Origin, ts: int | None = None) -> Transaction:
        """Start a transaction on the newest snapshot, or on the snapshot `ts` that its reads were made at.

        Giving `ts` lets a batch of transactions share one batched read: each conflicts with whatever committed since.
        """

    def commit_many(self, transactions: Sequence[Transaction]) -> list[CommitOutcome]:
        """Commit independent transactions in order with one durable write; one that conflicts does not hurt the rest.

        Outcomes are in the order of the transactions. Other RepoErrors (disk full) are raised, and then none is
        visible; where one may be, the error is an outcome (OutcomeUnknown).
        """

    def store_id(self) -> str:
        """Return what this store was given at its creation: no two stores have it in common, its copies do."""

    def history(self, table: str, row: str, column: str | None = None) -> dict[str, list[CellVersion]]:
        """All readable versions per column, newest first."""

    def changed_since(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]], since_us: int) -> set[RowId]:
        """Return the rows of which a version of one of the columns, a tombstone too, was committed at a time or later.

        `columns` maps every table to its columns; `since_us` is in microseconds since the epoch, more than 0. Many rows
        are one read per table (some hundreds each on a cluster). Versions whose record has been collected are old.
        """

    def pin(self, name: str, ts: int, ttl_s: float) -> None:
        """Keep snapshot `ts` readable for `ttl_s` seconds whatever the low watermark does (long scans renew it).

        It does not hold tables without history (`TableLayout.history`).
        """

    def unpin(self, name: str) -> None:
        """Release a pin; unknown names are fine."""

    def collect_garbage(self, max_cells: int | None = None) -> int:
        """Advance the low watermark and drop versions that neither history nor a live snapshot needs; return count."""

    def bulk_read(self) -> AbstractContextManager[object]:
        """Announce that most rows are read within the block, by whatever process; an engine may read ahead for it."""

    def statistics(self) -> Mapping[str, int]:
        """Counters since open and sizes: commits, conflicts, groups, cells_read, rows_read, cells_written,
        versions_dropped, snapshots_too_old, pins, low_watermark; every engine has some more."""

    def close(self) -> None:
        """Release files, connections and locks; safe to call twice."""


class ChangeFeedRepo(Repo, Protocol):
    """A Repo that is its own change feed and counts its commits; of a cluster's Repo the WAL proxy makes the feed."""

    def advance(self, ts: int) -> None:
        """Give no commit a timestamp <= `ts` any more; durable when this returns. For use while nobody else commits."""

    def last_commit_ts(self) -> int:
        """Timestamp of the newest commit; 0 in an empty store."""

    def changes(self, after_ts: int, limit: int) -> list[CommittedChange]:
        """Committed changes with commit_ts > after_ts in commit order; written atomically with their commits."""

    def wait_for_changes(self, after_ts: int, timeout_s: float) -> bool:
        """Block without polling until last_commit_ts() > after_ts or the time is over; True if there is something."""

    def trim_changes(self, upto_ts: int) -> int:
        """Forget change records <= upto_ts, which their consumer has taken; return how many."""


@dataclass(frozen=True, slots=True)
class TableLayout:
    """How a table is laid out on a cluster; engines of one machine need not look."""

    salts: int = 0
    """Spread rows over so many key ranges by a hash of their key's first part, up to INDEX_SEPARATOR; 0: in key order.
    Fixed when the table is created: rows would not be found under another number."""
    splits: tuple[str, ...] = ()
    """Row keys at which the table is split into regions at its creation; for tables without salts."""
    history: bool = True
    """Keep `Limits.versions_kept` versions; without, Omid's compaction leaves one version below its low watermark.

    That watermark knows no pins, and a restart of the TSO moves it up to now: a snapshot or transaction that reads such
    a table is too old from then on, pinned or not. So it is for tables that nobody scans for longer than a moment."""
    family_deletes: bool = True
    """Java clients of Omid may delete whole families of a row; this engine never does.

    Without, reads of chosen columns do not look for the mark of it, a third of HBase's work for them: what a client
    deletes so all the same would still be read."""


@dataclass(frozen=True, slots=True)
class TableSchema:
    """What an engine needs to know of a table."""

    name: str
    families: tuple[str, ...]
    layout: TableLayout = field(default_factory=TableLayout)


@dataclass(frozen=True, slots=True)
class RepoSchema:
    """All tables."""

    tables: tuple[TableSchema, ...]
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(
        cls,
        tables: Iterable[tuple[str, Sequence[str]]],
        limits: Limits | None = None,
        layouts: Mapping[str, TableLayout] | None = None,
    ) -> RepoSchema:
        """Build from (name, families) pairs; `layouts` has those of tables that are not laid out plainly."""
        plain, given = TableLayout(), layouts or {}
        return cls(tuple(TableSchema(n, tuple(f), given.get(n, plain)) for n, f in tables), limits or Limits())
