"""Snapshot: the Repo's tables and the servable documents as Parquet, one whole state per day.

    ADDRESS/TABLE/day=2026-01-31/part-RUN-00000.parquet     rows of a table (index tables too), ordered by key
    ADDRESS/documents/day=2026-01-31/…                      the servable documents, a column per field
    ADDRESS/_days/2026-01-31.json                           what belongs to the day; written last

A day is there when its file in `_days` is: parts of a run that was killed belong to no day, and the next run of that
day removes them. All of a day is read at one timestamp. Columns may come and go between days (`union_by_name` in
DuckDB, `mergeSchema` in Spark).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from batch_workflows._clocks import wall_us
from batch_workflows._exceptions import BadParameters, UnknownSelection
from batch_workflows._runs_model import Stored
from batch_workflows.objects import Objects
from batch_workflows.parquet_schema import (
    CELLS,
    ColumnSpec,
    Digest,
    RowBuffer,
    arrow_schema,
    columns_of,
    document_columns,
)
from batch_workflows.runner import RunContext
from catalog import ValueType
from catalog.documents import decode_document
from catalog.model import DOCUMENT_BODY, INTERNAL_TABLES
from storage_repo import Snapshot, SnapshotTooOld

PART_ROWS = 200_000
"""Rows of a file, and what is done again after a kill: some seconds of work."""
GROUP_ROWS = 10_000
"""Rows of a row group, which is what is held in memory: some tens of megabytes."""
PIN_S = 3_600.0
"""Renewed with every part; a run that is resumed within the hour goes on at its timestamp."""
DAYS = "_days"
_DOCUMENTS = "documents"


class TableFiles(Stored):
    """A table's part of a day."""

    table: str
    columns: tuple[ColumnSpec, ...] = ()
    rows: int = 0
    digest: str = ""
    parts: tuple[int, ...] = ()
    """Rows of each file."""


class Day(Stored):
    """What belongs to a day."""

    day: str
    run: str
    """Part of the names of its files."""
    snapshot_ts: int
    taken_us: int
    catalog: str
    fingerprint: str
    tables: tuple[TableFiles, ...] = ()
    documents: TableFiles | None = None

    def files(self, table: str) -> list[str]:
        """Return the names of a table's files, or of the documents'. Raises UnknownSelection."""
        found = self.find(table)
        return [part_name(found.table, self.day, self.run, number) for number in range(len(found.parts))]

    def find(self, table: str) -> TableFiles:
        """Return a table's part of the day. Raises UnknownSelection."""
        everything = [*self.tables, *([self.documents] if self.documents else [])]
        for found in everything:
            if found.table == table:
                return found
        known = ", ".join(found.table for found in everything)
        raise UnknownSelection(f"the snapshot of {self.day} has no table {table!r}; it has {known}")


class _State(Stored):
    """Where a run of a snapshot is."""

    day: Day
    done: dict[str, TableFiles] = Field(default_factory=dict)
    after: str = ""
    """Last row of the newest part of the table that is being written."""


def part_name(table: str, day: str, run: str, number: int) -> str:
    """Return the name of a file."""
    return f"{table}/day={day}/part-{run}-{number:05d}.parquet"


def days(objects: Objects) -> list[str]:
    """Return the days that are complete, in order. Raises ObjectsError."""
    return [name.removeprefix(f"{DAYS}/").removesuffix(".json") for name in objects.names(DAYS)]


def read_day(objects: Objects, as_of: str = "") -> Day:
    """Return the newest day at or before a day ("" = the newest of all). Raises UnknownSelection, ObjectsError."""
    parse_day(as_of)
    there = [day for day in days(objects) if not as_of or day <= as_of]
    if not there:
        raise UnknownSelection(f"{objects.address} has no snapshot{f' of {as_of} or before' if as_of else ''}")
    return Day.of_cell(f"{objects.address}/{DAYS}/{there[-1]}.json", objects.read(f"{DAYS}/{there[-1]}.json"))


def parse_day(text: str) -> str:
    """Return a day as it is written, checked; "" stays. Raises BadParameters."""
    try:
        return date.fromisoformat(text).isoformat() if text else ""
    except ValueError as error:
        raise BadParameters(f"{text!r} is no day; write it as 2026-01-31") from error


def take_snapshot(context: RunContext[Any], objects: Objects, day: str, documents: bool = True) -> Day:
    """Write a day, replacing one that is there when the new one is complete. Resumable; raises what the parts raise."""
    day = parse_day(day) or datetime.now(UTC).date().isoformat()
    writer = _Writer(context, objects, _begin(context, objects, day, documents))
    written = writer.write()
    context.check()
    objects.write(f"{DAYS}/{day}.json", written.to_cell())
    _remove_others(objects, written)
    context.repo.unpin(_pin(written))
    return written


def _begin(context: RunContext[Any], objects: Objects, day: str, documents: bool) -> _State:
    """Go on with the state of an earlier attempt if its timestamp can still be read, else begin."""
    if context.state is not None:
        state = _State.model_validate(context.state)
        try:
            context.repo.pin(_pin(state.day), state.day.snapshot_ts, PIN_S)
        except SnapshotTooOld:
            context.counts["begun_again"] = "the Repo no longer has the timestamp that the first attempt read"
        else:
            return state
    known = _known_types(objects)
    catalog = context.catalog
    internal = {name for name, _ in INTERNAL_TABLES}
    tables = [name for name, _ in catalog.repo_tables() if name not in internal]
    fields = TableFiles(
        table=_DOCUMENTS if _DOCUMENTS not in tables else f"servable_{_DOCUMENTS}",
        columns=tuple(document_columns(catalog, known.get(_DOCUMENTS, {}))),
    )
    state = _State(
        day=Day(
            day=day, run=f"{context.record.number}-{context.token}", snapshot_ts=context.repo.snapshot().ts,
            taken_us=wall_us(), catalog=catalog.name, fingerprint=catalog.fingerprint,
            tables=tuple(
                TableFiles(table=name, columns=tuple(columns_of(catalog, name, known.get(name, {})))) for name in tables
            ),
            documents=fields if documents else None,
        )
    )  # fmt: skip
    context.repo.pin(_pin(state.day), state.day.snapshot_ts, PIN_S)
    context.checkpoint(state.model_dump(mode="json"))
    return state


def _known_types(objects: Objects) -> dict[str, dict[str, ValueType]]:
    """Return table -> column -> type, as the newest day has them; of columns that it lacks, as days before had."""
    found: dict[str, dict[str, ValueType]] = {}
    for day in days(objects):
        for table in (read := read_day(objects, day)).tables + ((read.documents,) if read.documents else ()):
            found.setdefault(table.table, {}).update({c.name: c.type for c in table.columns})
    return found


def _pin(day: Day) -> str:
    return f"snapshot-{day.day}-{day.run}"


def _remove_others(objects: Objects, written: Day) -> None:
    """Remove files of the day that are of other runs: of the day as it was, and of runs that were killed."""
    for table in [*written.tables, *([written.documents] if written.documents else [])]:
        mine = set(written.files(table.table))
        for name in objects.names(f"{table.table}/day={written.day}"):
            if name not in mine:
                objects.delete(name)


class _Writer:
    """Writes the parts of all tables, and a checkpoint after each."""

    def __init__(self, context: RunContext[Any], objects: Objects, state: _State) -> None:
        self._context, self._objects, self._state = context, objects, state
        self._snapshot: Snapshot = context.repo.snapshot(state.day.snapshot_ts)
        self._rows = sum(table.rows for table in state.done.values())
        self._digest, self._counted = Digest(), 0  # of the part that is being written

    def write(self) -> Day:
        """Return the day with all its files."""
        day = self._state.day
        wanted = [*day.tables, *([day.documents] if day.documents else [])]
        for table in wanted:
            done = self._state.done.get(table.table, table)
            if table.table in self._state.done and not self._state.after:
                continue  # complete
            if self._state.after and table.table != list(self._state.done)[-1]:
                continue  # complete, another one is half done
            self._table(done, documents=table is day.documents)
        done_tables = self._state.done
        self._context.counts["tables"] = {name: files.rows for name, files in done_tables.items()}
        return day.model_copy(
            update={
                "tables": tuple(done_tables[table.table] for table in day.tables),
                "documents": done_tables[day.documents.table] if day.documents else None,
            }
        )

    def _table(self, table: TableFiles, documents: bool) -> None:
        catalog, after = self._context.catalog, self._state.after
        read = catalog.document_table if documents else table.table
        rows = self._snapshot.scan(read, after=after, columns=[DOCUMENT_BODY] if documents else None)
        with tempfile.TemporaryDirectory(prefix="snapshot-", dir=self._context.home.run) as directory:
            while True:
                part, last, more = self._part(Path(directory), table, rows, documents)
                if part is not None:
                    name = part_name(table.table, self._state.day.day, self._state.day.run, len(table.parts))
                    self._context.check()
                    self._objects.put(part, name)
                    rows_now = table.rows + self._counted
                    parts = (*table.parts, self._counted)
                    table = table.model_copy(update={"rows": rows_now, "digest": str(self._digest), "parts": parts})
                self._state = self._state.model_copy(
                    update={"done": {**self._state.done, table.table: table}, "after": last if more else ""}
                )
                self._context.repo.pin(_pin(self._state.day), self._state.day.snapshot_ts, PIN_S)
                self._context.checkpoint(self._state.model_dump(mode="json"))
                if not more:
                    return

    def _part(
        self, directory: Path, table: TableFiles, rows: Iterator[tuple[str, Any]], documents: bool
    ) -> tuple[Path | None, str, bool]:
        """Write up to PART_ROWS rows into a local file; return it (None without rows), the last row, and if more may
        come."""
        columns = list(table.columns)
        schema = arrow_schema(columns, with_cells=not documents)
        buffer, file, last = RowBuffer(columns), directory / "part.parquet", ""
        self._digest, self._counted = Digest(table.digest), 0
        with closing(pq.ParquetWriter(file, schema, compression="zstd")) as writer:
            for row, cells in rows:
                last = row
                if documents:
                    if not self._document(buffer, row, cells):
                        continue
                else:
                    buffer.add(row, cells)
                    self._digest.add(row, cells)
                self._counted += 1
                if len(buffer.keys) >= GROUP_ROWS:
                    self._group(writer, buffer, schema, table.table)
                if self._counted >= PART_ROWS:
                    break
            if buffer.keys:
                self._group(writer, buffer, schema, table.table)
        return (file if self._counted else None), last, self._counted >= PART_ROWS

    def _group(self, writer: Any, buffer: RowBuffer, schema: pa.Schema, table: str) -> None:
        self._rows += len(buffer.keys)
        writer.write_table(buffer.take(schema))
        faults, buffer.faults = buffer.faults, []
        for row, cell, why in faults:
            self._context.failed("cell", f"{table}/{row} {cell}", "not_readable", f"{why}; kept as bytes in {CELLS}")
        self._context.progress(self._rows, None, "rows")
        self._context.check()

    def _document(self, buffer: RowBuffer, row: str, cells: Any) -> bool:
        try:
            buffer.add_document(row, decode_document(cells[DOCUMENT_BODY]))
        except msgspec.DecodeError as error:
            self._context.failed("document", row, "not_readable", str(error))
            return False
        return True
