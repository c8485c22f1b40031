"""The tasks of an import of a snapshot: rows of one file into the Repo, and afterwards a range of the Repo's digest.

Both can be run again. Rows are written by transactions that are bound to the run's lease, whatever process writes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from batch_workflows._exceptions import SnapshotDamaged
from batch_workflows._task_repo import repo_of
from batch_workflows.leases import Binding
from batch_workflows.objects import Address, Objects
from batch_workflows.parquet_schema import KEY, ColumnSpec, Digest, rows_of
from storage_repo import Limits, Origin, Repo, Row, UnknownTable

TRANSACTION_CELLS = Limits().max_cells_per_transaction // 2
TRANSACTION_BYTES = 8 << 20
"""A transaction is held in memory, here and by HBase's servers; rows of a few kilobytes never come near."""


@dataclass(frozen=True, slots=True)
class ImportJob:
    """What all tasks of one import have in common; it travels as a pickle."""

    open_repo: Callable[[], Repo]
    origin: Origin
    lease: Binding
    source: Address
    home: Path
    """Tells the Repos of homes apart; no file of it is opened."""
    scratch: Path
    """Where files that are elsewhere are brought; it goes with the run."""
    batch_rows: int
    """Rows of a transaction."""


@dataclass(frozen=True, slots=True)
class RowsTask:
    """Some neighbouring rows of a file."""

    number: int
    table: str
    columns: tuple[ColumnSpec, ...]
    file: str
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class RowsDone:
    """What has been written; `faults` are (cell, why it was left out)."""

    task: RowsTask
    faults: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class DigestTask:
    """The rows of a table after one and before another ("": the beginning, the end), at a timestamp."""

    table: str
    number: int
    ts: int
    after: str
    before: str


@dataclass(frozen=True, slots=True)
class DigestDone:
    """How many rows there are, and their digest."""

    task: DigestTask
    rows: int
    digest: str


def put_rows(job: ImportJob, task: RowsTask) -> RowsDone:
    """Write rows. Raises LeaseLost, SnapshotDamaged, ObjectsError, RepoError."""
    repo, faults = repo_of(job.open_repo, job.home), list[tuple[str, str]]()
    for batch in _batches(_local(job, task.file), task, job.batch_rows):
        for rows in _packed(rows_of(batch, list(task.columns))):
            transaction = repo.begin(job.origin)
            job.lease.bind(transaction)
            for row, cells in rows:
                for cell, value in cells.items():
                    try:
                        transaction.put(task.table, row, cell, value)
                    except UnknownTable as error:
                        faults.append((f"{task.table}/{row} {cell}", str(error)))
            transaction.commit()
    return RowsDone(task, tuple(faults))


def _packed(rows: Iterable[tuple[str, dict[str, bytes]]]) -> Iterator[list[tuple[str, dict[str, bytes]]]]:
    """Yield rows that go in one transaction; at least one, however large it is."""
    some, count, size = list[tuple[str, dict[str, bytes]]](), 0, 0
    for row, cells in rows:
        if some and (count + len(cells) > TRANSACTION_CELLS or size > TRANSACTION_BYTES):
            yield some
            some, count, size = [], 0, 0
        some.append((row, cells))
        count, size = count + len(cells), size + sum(map(len, cells.values()))
    if some:
        yield some


def digest_rows(job: ImportJob, task: DigestTask) -> DigestDone:
    """Return the digest of a range. Raises RepoError."""
    snapshot, digest, rows = repo_of(job.open_repo, job.home).snapshot(task.ts), Digest(), 0
    scan: Iterator[tuple[str, Row]] = snapshot.scan(task.table, after=task.after, before=task.before)
    for row, cells in scan:
        digest.add(row, cells)
        rows += 1
    return DigestDone(task, rows, str(digest))


def last_key(file: Path) -> str | None:
    """Return the key of a file's last row as its footer has it; None where it does not say. Raises SnapshotDamaged."""
    try:
        with pq.ParquetFile(file) as parquet:
            place = parquet.schema_arrow.get_field_index(KEY)
            statistics = parquet.metadata.row_group(parquet.num_row_groups - 1).column(place).statistics
    except (OSError, ValueError) as error:
        raise SnapshotDamaged(f"{file}: {error}; take another day") from error
    return statistics.max if statistics is not None and statistics.has_min_max else None


def _batches(file: Path, task: RowsTask, size: int) -> Iterator[pa.RecordBatch]:
    """Yield the task's rows. Raises SnapshotDamaged for a file that is cut, or no Parquet."""
    try:
        with pq.ParquetFile(file) as parquet:
            at = 0
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                low, high = max(task.first, at) - at, min(task.first + task.rows, at + rows) - at
                if low < high:
                    yield from _cut(parquet.iter_batches(size, row_groups=[group]), low, high)
                at += rows
    except (OSError, ValueError) as error:  # what pyarrow raises for such a file
        raise SnapshotDamaged(f"{task.file}: {error}; take another day") from error


def _cut(batches: Iterator[Any], low: int, high: int) -> Iterator[pa.RecordBatch]:
    """Yield what lies between two places of some batches."""
    at = 0
    for batch in batches:
        begin, end = max(low - at, 0), min(high - at, batch.num_rows)
        if begin < end:
            yield batch.slice(begin, end - begin)
        at += batch.num_rows


_brought: list[tuple[Path, str, Path]] = []
"""The file that this process brought last: (scratch directory, name, where it is)."""


def _local(job: ImportJob, name: str) -> Path:
    """Return a file of this machine with the object of that name. Raises ObjectsError."""
    source = Objects(job.source)
    if source.local is not None:
        return source.local / name
    if not _brought or _brought[0][:2] != (job.scratch, name):
        if _brought:
            _brought.pop()[2].unlink(missing_ok=True)
        file = job.scratch / f"part-{os.getpid()}.parquet"
        source.get(name, file)
        _brought.append((job.scratch, name, file))
    return _brought[0][2]
