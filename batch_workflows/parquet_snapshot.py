"""Snapshot: the Repo's tables and the servable documents as Parquet, one whole state per day.

    ADDRESS/TABLE/day=2026-01-31/part-RUN-00000.parquet     rows of a table (index tables too), ordered by key
    ADDRESS/documents/day=2026-01-31/…                      the servable documents, a column per field
    ADDRESS/_days/2026-01-31.json                           what belongs to the day; written last

A day is there when its file in `_days` is: parts of a run that was killed belong to no day, and the next run of that
day removes them. All of a day is read at one timestamp. Columns may come and go between days (`union_by_name` in
DuckDB, `mergeSchema` in Spark).
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, date, datetime
from functools import partial
from typing import Any

from pydantic import Field

from batch_workflows._clocks import wall_us
from batch_workflows._exceptions import BadParameters, SnapshotDamaged, UnknownSelection
from batch_workflows._parquet_parts import SCRATCH, PartDone, PartJob, PartTask, key_ranges, write_part
from batch_workflows._runs_model import Stored
from batch_workflows._task_repo import close_repo
from batch_workflows.base_index import open_embedded_repo
from batch_workflows.engines import Engine, for_tasks
from batch_workflows.objects import Objects
from batch_workflows.parquet_schema import ColumnSpec, Digest, columns_of, document_columns
from batch_workflows.runner import RunContext
from catalog import ValueType
from catalog.model import INTERNAL_TABLES
from storage_repo import SnapshotTooOld

PART_ROWS = 100_000
"""Rows of a file, and what each process does again after a kill: some seconds of work."""
GROUP_ROWS = 10_000
"""Rows of a row group, which is what is held in memory: some tens of megabytes."""
PIN_S = 3_600.0
"""Renewed every minute; a run that is resumed within the hour goes on at its timestamp."""
DAYS = "_days"
_DOCUMENTS = "documents"


class TableFiles(Stored):
    """A table's part of a day."""

    table: str
    columns: tuple[ColumnSpec, ...] = ()
    rows: int = 0
    digest: str = ""
    parts: tuple[int, ...] = ()
    """Rows of each file; there is none where no row is."""


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

    @property
    def all_tables(self) -> tuple[TableFiles, ...]:
        """The tables, and the documents if they were taken."""
        return (*self.tables, self.documents) if self.documents else self.tables

    def files(self, table: str) -> list[str]:
        """Return the names of a table's files, or of the documents'. Raises UnknownSelection."""
        found = self.find(table)
        return [part_name(found.table, self.day, self.run, number) for number, rows in enumerate(found.parts) if rows]

    def find(self, table: str) -> TableFiles:
        """Return a table's part of the day. Raises UnknownSelection."""
        everything = self.all_tables
        for found in everything:
            if found.table == table:
                return found
        known = ", ".join(found.table for found in everything)
        raise UnknownSelection(f"the snapshot of {self.day} has no table {table!r}; it has {known}")


_PART_NAME = re.compile(r"day=\d{4}-\d{2}-\d{2}/part-\d+-\d+-\d{5,}\.parquet")


class _State(Stored):
    """Where a run of a snapshot is: some 80 bytes per part, so a checkpoint has room for 300 million rows."""

    day: Day
    part_rows: int = 0
    """By which tables are cut, so that parts are the same ones when the run goes on."""
    parts: dict[str, tuple[int, str]] = Field(default_factory=dict)
    """Part -> rows and digest of those that are written."""


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


def take_snapshot(
    context: RunContext[Any],
    objects: Objects,
    day: str,
    documents: bool = True,
    processes: int = 0,
    engine: Engine | None = None,
) -> Day:
    """Write a day, replacing one that is there when the new one is complete. Resumable; raises what the parts raise.

    `processes` write parts at the same time, with the same files as one would; 0: one per processor, and none for few
    rows. `engine`: what writes them instead; it stays open.
    """
    day = parse_day(day) or datetime.now(UTC).date().isoformat()
    for left in context.home.run.glob(f"{SCRATCH}*"):  # of a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    writer = _Writer(context, objects, _begin(context, objects, day, documents))
    with context.repo.bulk_read():
        written = writer.write(processes, engine)
    context.check()
    _check_there(objects, written)
    objects.write(f"{DAYS}/{day}.json", written.to_cell())
    _remove_others(objects)
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
            return state if state.part_rows else state.model_copy(update={"part_rows": PART_ROWS})
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
        ),
        part_rows=PART_ROWS,
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


def _key(table: str, number: int) -> str:
    return f"{table}/{number}"


def _check_there(objects: Objects, written: Day) -> None:
    """Look for all files of a day that is about to be complete. Raises SnapshotDamaged."""
    for table in written.all_tables:
        if missing := {*written.files(table.table)} - objects.names(f"{table.table}/day={written.day}").keys():
            raise SnapshotDamaged(
                f"{objects.address} has lost {', '.join(sorted(missing)[:3])} since they were written; take it anew, "
                "without --resume. Only one installation may take snapshots at an address"
            )


def _remove_others(objects: Objects) -> None:
    """Remove files that are of no complete day: of days as they were, and of runs that were killed.

    Only for who alone takes snapshots there: of any day, since whoever reads a table's directory reads all its files.
    """
    known = [read_day(objects, day) for day in days(objects)]
    tables = {table.table for day in known for table in day.all_tables}
    mine = {name for day in known for table in day.all_tables for name in day.files(table.table)}
    for table in sorted(tables):
        for name in objects.names(table):
            if name not in mine and _PART_NAME.fullmatch(name.removeprefix(f"{table}/")):
                objects.delete(name)
    objects.abort_uploads(of=lambda name: name.partition("/")[0] in tables and "/day=" in name)


class _Writer:
    """Has the parts of all tables written, and stores a checkpoint after each."""

    def __init__(self, context: RunContext[Any], objects: Objects, state: _State) -> None:
        self._context, self._objects, self._state = context, objects, state
        self._done = dict(state.parts)
        self._rows = sum(rows for rows, _ in self._done.values())
        self._numbers: dict[str, int] = {}
        self._pinned = time.monotonic()

    def write(self, processes: int, given: Engine | None) -> Day:
        """Return the day with all its files."""
        day, context = self._state.day, self._context
        tasks: Iterable[PartTask] = self._tasks()
        opener = context.opened.open_repo or partial(open_embedded_repo, context.home, context.catalog)
        own: Engine | None = None
        if given is None:
            tasks, own = for_tasks(tasks, lambda task: task.number > 0, processes)
        engine = given or own
        assert engine is not None
        scratch = context.home.run if engine.shares_files else None
        job = PartJob(opener, day.snapshot_ts, self._objects.address, context.home.root, scratch, GROUP_ROWS)
        try:
            for done in engine.map(partial(write_part, job), tasks, self._between):
                self._take(done)
        finally:
            close_repo()
            if own is not None:
                own.close()
        files = {table.table: self._files(table) for table in self._wanted()}
        context.counts["tables"] = {name: table.rows for name, table in files.items()}
        return day.model_copy(
            update={
                "tables": tuple(files[table.table] for table in day.tables),
                "documents": files[day.documents.table] if day.documents else None,
            }
        )

    def _wanted(self) -> list[TableFiles]:
        day = self._state.day
        return [*day.tables, *([day.documents] if day.documents else [])]

    def _tasks(self) -> Iterator[PartTask]:
        """Yield the parts that are still to be written."""
        day, catalog = self._state.day, self._context.catalog
        snapshot = self._context.repo.snapshot(day.snapshot_ts)
        for table in self._wanted():
            documents = table is day.documents
            read = catalog.document_table if documents else table.table
            ranges = key_ranges(snapshot, catalog, read, documents, self._state.part_rows)
            for number, (after, before) in enumerate(ranges):
                self._numbers[table.table] = number + 1
                if _key(table.table, number) not in self._done:
                    name = part_name(table.table, day.day, day.run, number)
                    yield PartTask(table.table, read, table.columns, documents, number, name, after, before)

    def _take(self, done: PartDone) -> None:
        """Count a part that is written. Raises what `RunContext.failed` does."""
        context, state = self._context, self._state
        for kind, key, why in done.faults:
            context.failed(kind, key, "not_readable", why)
        self._rows += done.rows
        self._done[_key(done.task.table, done.task.number)] = done.rows, done.digest
        context.progress(self._rows, None, "rows")
        self._between()
        self._state = state = state.model_copy(update={"parts": dict(self._done)})
        context.checkpoint(state.model_dump(mode="json"))

    def _between(self) -> None:
        """Hear of a cancellation, and keep the timestamp readable however long the next part takes."""
        self._context.check()
        if time.monotonic() - self._pinned > PIN_S / 60:
            self._context.repo.pin(_pin(self._state.day), self._state.day.snapshot_ts, PIN_S)
            self._pinned = time.monotonic()

    def _files(self, table: TableFiles) -> TableFiles:
        """Return what has been written of a table."""
        found = [self._done[_key(table.table, number)] for number in range(self._numbers[table.table])]
        digest, parts = Digest(), tuple(rows for rows, _ in found)
        for _, part in found:
            digest.merge(part)
        rows = sum(parts)
        return table.model_copy(
            update={"rows": rows, "digest": str(digest) if rows else "", "parts": parts if rows else ()}
        )
