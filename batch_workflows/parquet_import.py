"""A snapshot's day back into an empty Repo: every cell as it was, checked by the digests that the snapshot has."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from batch_workflows._clocks import elapsed_s
from batch_workflows._exceptions import BadParameters, SnapshotDamaged
from batch_workflows._runs_model import Stored
from batch_workflows.objects import Objects
from batch_workflows.parquet_schema import Digest, rows_of
from batch_workflows.parquet_snapshot import Day, TableFiles
from batch_workflows.runner import RunContext
from catalog.model import INTERNAL_TABLES
from storage_repo import Row, UnknownTable

BATCH_ROWS = 500
"""Rows of a transaction: some thousand cells, far below the Repo's limit of 20,000."""
CHECKPOINT_S = 1.0
"""What is written again after a kill at most; a checkpoint costs as much as a batch."""
_CHECK_ROWS = 5_000


class _State(Stored):
    """What has been written: a place in the snapshot's files."""

    day: str
    run: str
    table: int = 0
    part: int = 0
    row: int = 0
    """Rows of the part that are in the Repo."""
    rows: int = 0
    """All rows that are in the Repo."""


def import_day(context: RunContext[Any], objects: Objects, day: Day) -> dict[str, int]:
    """Write a day's tables into the Repo, check that they are what was taken, and return rows by table.

    The Repo must be empty, unless the run goes on with its own work. Killed, it goes on after its last batch; writing a
    batch twice changes nothing. Raises BadParameters (not empty), SnapshotDamaged, ObjectsError, RepoError.
    """
    state = _State.model_validate(context.state) if context.state is not None else _State(day=day.day, run=day.run)
    if (state.day, state.run) != (day.day, day.run):
        raise BadParameters(
            f"the import was of {state.day} (run {state.run}), which is {day.run} now; empty the Repo and begin again"
        )
    if context.state is None:
        _check_empty(context)
        context.checkpoint(state.model_dump(mode="json"))
    total = sum(table.rows for table in day.tables)
    with tempfile.TemporaryDirectory(prefix="import-", dir=context.home.run) as directory:
        for number, table in enumerate(day.tables):
            if number >= state.table:
                if number > state.table:
                    state = state.model_copy(update={"table": number, "part": 0, "row": 0})
                state = _import_table(context, objects, day, table, state, Path(directory), total)
    _verify(context, day)
    return {table.table: table.rows for table in day.tables}


def _import_table(
    context: RunContext[Any], objects: Objects, day: Day, table: TableFiles, state: _State, directory: Path, total: int
) -> _State:
    stored_s = elapsed_s()
    for number, name in enumerate(day.files(table.table)):
        if number < state.part:
            continue
        if number > state.part:
            state = state.model_copy(update={"part": number, "row": 0})
        file = directory / "part.parquet"
        objects.get(name, file)
        skip = state.row
        for batch in _batches(file, name):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            _write(context, table, list(rows_of(batch.slice(skip), list(table.columns))))
            written, skip = batch.num_rows - skip, 0
            state = state.model_copy(update={"row": state.row + written, "rows": state.rows + written})
            if elapsed_s() - stored_s > CHECKPOINT_S:
                context.checkpoint(state.model_dump(mode="json"))
                stored_s = elapsed_s()
            context.progress(state.rows, total, "rows")
            context.check()
    return state


def _batches(file: Path, name: str) -> Iterator[Any]:
    try:
        with pq.ParquetFile(file) as parquet:
            yield from parquet.iter_batches(BATCH_ROWS)
    except (OSError, ValueError) as error:  # what pyarrow raises for a file that is cut or no Parquet
        raise SnapshotDamaged(f"{name}: {error}; take another day") from error


def _write(context: RunContext[Any], table: TableFiles, rows: list[tuple[str, Row]]) -> None:
    transaction = context.begin()
    for row, cells in rows:
        for cell, value in cells.items():
            try:
                transaction.put(table.table, row, cell, value)
            except UnknownTable as error:
                context.failed("cell", f"{table.table}/{row} {cell}", "not_declared", str(error))
    transaction.commit()


def _check_empty(context: RunContext[Any]) -> None:
    internal = {name for name, _ in INTERNAL_TABLES}
    snapshot = context.repo.snapshot()
    for table, _ in context.catalog.repo_tables():
        if table not in internal and next(snapshot.scan(table, limit=1), None) is not None:
            raise BadParameters(
                f"the Repo has rows in {table}; an import is for an empty one: use a new home, or another prefix"
            )


def _verify(context: RunContext[Any], day: Day) -> None:
    """Compare what the Repo has now with what was taken. Raises SnapshotDamaged naming tables that differ."""
    if context.failures:
        context.counts["verified"] = False  # cells were left out, and the run says so
        return
    snapshot, wrong, seen = context.repo.snapshot(), [], 0
    for table in day.tables:
        digest, rows = Digest(), 0
        for row, cells in snapshot.scan(table.table):
            digest.add(row, cells)
            rows += 1
            seen += 1
            if seen % _CHECK_ROWS == 0:
                context.progress(seen, sum(t.rows for t in day.tables), "rows checked")
                context.check()
        if (rows, str(digest)) != (table.rows, table.digest or str(Digest())):
            wrong.append(f"{table.table} has {rows} rows instead of {table.rows}, or other cells")
    if wrong:
        raise SnapshotDamaged(
            f"after the import of {day.day} the Repo is not what was taken: {'; '.join(wrong)}. Writers at work "
            "meanwhile (stages that run) do that, and damaged files; import into an empty Repo with the service down"
        )
    context.counts["verified"] = True
