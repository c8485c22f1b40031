"""The tasks of a snapshot, the same on every engine: each writes one range of a table's rows as one Parquet file.

A task can be run again: at the same timestamp it writes the same bytes under the same name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from batch_workflows._task_repo import repo_of
from batch_workflows.objects import Address, Objects
from batch_workflows.parquet_schema import CELLS, ColumnSpec, Digest, RowBuffer, arrow_schema
from batch_workflows.ranges import neighbours
from catalog import Catalog
from catalog.documents import decode_document
from catalog.model import DELETED, DOCUMENT_BODY, INDEX_CELL, RUN, SOURCE_VERSION
from storage_repo import Repo, Row, Snapshot

SCRATCH = "snapshot-part-"
"""Directories of files that are being written."""


@dataclass(frozen=True, slots=True)
class PartJob:
    """What all tasks of one snapshot have in common; it travels as a pickle."""

    open_repo: Callable[[], Repo]
    snapshot_ts: int
    target: Address
    home: Path
    """Tells the Repos of homes apart; no file of it is opened."""
    scratch: Path | None
    """Where files are written before they are brought to their place; None: where the task runs, its own choice."""
    group_rows: int
    """Rows of a row group, which is what a task holds in memory."""


@dataclass(frozen=True, slots=True)
class PartTask:
    """One file of a table: the rows after `after` and before `before` ("": the beginning, the end)."""

    table: str
    read: str
    """The Repo's table."""
    columns: tuple[ColumnSpec, ...]
    documents: bool
    """The servable documents of the table instead of its rows."""
    number: int
    name: str
    after: str
    before: str


@dataclass(frozen=True, slots=True)
class PartDone:
    """What a task wrote; a range without rows has no file."""

    task: PartTask
    rows: int
    digest: str
    faults: tuple[tuple[str, str, str], ...]
    """(kind of item, its key, what is wrong with it)."""


def key_ranges(
    snapshot: Snapshot, catalog: Catalog, table: str, documents: bool, rows: int
) -> Iterator[tuple[str, str]]:
    """Cut a table into (after, before) of about `rows` rows, by a cell that nearly every row has."""
    if documents:
        columns = [DOCUMENT_BODY]
    elif table == catalog.document_table:
        columns = [RUN, DOCUMENT_BODY]
    else:
        columns = [SOURCE_VERSION, DELETED] if table in catalog.tables else [INDEX_CELL]
    return neighbours((row for row, _ in snapshot.scan(table, columns=columns)), rows)


def write_part(job: PartJob, task: PartTask) -> PartDone:
    """Write a part and bring it to its place. Raises RepoError, ObjectsError, OSError (a full disk)."""
    snapshot = repo_of(job.open_repo, job.home).snapshot(job.snapshot_ts)
    scan = snapshot.scan(
        task.read, after=task.after, before=task.before, columns=[DOCUMENT_BODY] if task.documents else None
    )
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=job.scratch) as directory:
        part = _Part(job, task, Path(directory) / "part.parquet")
        part.write(scan)
        if part.rows:
            Objects(job.target).put(part.file, task.name)
    return PartDone(task, part.rows, str(part.digest), tuple(part.faults))


class _Part:
    """One file on its way."""

    def __init__(self, job: PartJob, task: PartTask, file: Path) -> None:
        self.file, self.rows, self.digest = file, 0, Digest()
        self.faults: list[tuple[str, str, str]] = []
        self._task, self._group_rows = task, job.group_rows
        self._schema = arrow_schema(list(task.columns), with_cells=not task.documents)

    def write(self, scan: Iterator[tuple[str, Row]]) -> None:
        """Write all rows of a scan."""
        buffer, add = RowBuffer(list(self._task.columns)), self._document if self._task.documents else self._row
        with closing(pq.ParquetWriter(self.file, self._schema, compression="zstd")) as writer:
            for row, cells in scan:
                add(buffer, row, cells)
                if len(buffer.keys) >= self._group_rows:
                    self._group(writer, buffer)
            if buffer.keys:
                self._group(writer, buffer)

    def _row(self, buffer: RowBuffer, row: str, cells: Row) -> None:
        buffer.add(row, cells)
        self.digest.add(row, cells)

    def _document(self, buffer: RowBuffer, row: str, cells: Row) -> None:
        try:
            buffer.add_document(row, decode_document(cells[DOCUMENT_BODY]))
        except msgspec.DecodeError as error:
            self.faults.append(("document", row, str(error)))

    def _group(self, writer: pq.ParquetWriter, buffer: RowBuffer) -> None:
        self.rows += len(buffer.keys)
        writer.write_table(buffer.take(self._schema))
        faults, buffer.faults = buffer.faults, []
        self.faults += [
            ("cell", f"{self._task.table}/{row} {cell}", f"{why}; kept as bytes in {CELLS}")
            for row, cell, why in faults
        ]
