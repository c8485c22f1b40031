"""A snapshot's day back into an empty Repo: every cell as it was, checked by the digests that the snapshot has."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from batch_workflows._clocks import elapsed_s
from batch_workflows._exceptions import BadParameters, SnapshotDamaged
from batch_workflows._parquet_parts import key_ranges
from batch_workflows._parquet_rows import DigestTask, ImportJob, RowsTask, digest_rows, last_key, put_rows
from batch_workflows._runs_model import Stored
from batch_workflows._task_repo import close_repo
from batch_workflows.base_index import open_embedded_repo
from batch_workflows.engines import Engine, InlineEngine, LocalEngine
from batch_workflows.objects import Objects
from batch_workflows.parquet_schema import Digest
from batch_workflows.parquet_snapshot import PIN_S, Day, TableFiles
from batch_workflows.runner import RunContext
from catalog.model import INTERNAL_TABLES
from storage_repo import Snapshot
from storage_repo.embedded import EmbeddedRepo

BATCH_ROWS = 500
"""Rows of a transaction: some thousand cells, far below the Repo's limit of 20,000."""
TASK_ROWS = 10_000
"""Rows of a task, and what each process writes again after a kill at most: a second or two of work."""
POOL_ROWS = 50_000
"""Up to so many rows a pool of processes would take longer to start than it saves."""
CHECKPOINT_S = 1.0
"""A checkpoint costs as much as a batch."""
_PIN = "snapshot-import"


class _State(Stored):
    """What has been written, by numbers of tasks."""

    day: str
    run: str
    task_rows: int = 0
    """By which files are cut, so that tasks are the same ones when the run goes on."""
    upto: int = 0
    """All tasks before this one are done."""
    beyond: frozenset[int] = frozenset()
    """And these: as many as processes at most."""


def import_day(context: RunContext[Any], objects: Objects, day: Day, processes: int = 0) -> dict[str, int]:
    """Write a day's tables into the Repo, check that they are what was taken, and return rows by table.

    The Repo must be empty, unless the run goes on with its own work. Killed, it goes on with the tasks that had not
    ended; writing rows twice changes nothing. `processes` write at the same time (0: one per processor); on HBase one
    does: all their transactions have the run's lease in their conflict sets, and Omid refuses one of two such that
    commit at the same time. Raises BadParameters (not empty), SnapshotDamaged, ObjectsError, RepoError.
    """
    state = _State.model_validate(context.state) if context.state is not None else _State(day=day.day, run=day.run)
    if (state.day, state.run) != (day.day, day.run):
        raise BadParameters(
            f"the import was of {state.day} (run {state.run}), which is {day.run} now; empty the Repo and begin again"
        )
    if not state.task_rows:
        state = state.model_copy(update={"task_rows": TASK_ROWS})
    if context.state is None:
        _check_empty(context)
        context.checkpoint(state.model_dump(mode="json"))
    few = day_rows(day) <= POOL_ROWS
    one = few or processes == 1 or not isinstance(context.repo, EmbeddedRepo)
    engine: Engine = InlineEngine() if one else LocalEngine(processes)
    with tempfile.TemporaryDirectory(prefix="import-", dir=context.home.run) as directory:
        opener = context.opened.open_repo or partial(open_embedded_repo, context.home, context.catalog)
        job = ImportJob(
            opener, context.origin, context.lease.binding, objects.address, context.home.root, Path(directory),
            BATCH_ROWS,
        )  # fmt: skip
        try:
            _write(context, engine, job, day, state)
            _verify(context, engine, job, day)
        finally:
            close_repo()
            engine.close()
    return {table.table: table.rows for table in day.tables}


def _tasks(day: Day, state: _State) -> Iterator[RowsTask]:
    """Yield all tasks, table by table."""
    number = 0
    for table in day.tables:
        sizes = [rows for rows in table.parts if rows]
        for name, rows in zip(day.files(table.table), sizes, strict=True):
            for first in range(0, rows, state.task_rows):
                yield RowsTask(number, table.table, table.columns, name, first, min(state.task_rows, rows - first))
                number += 1


def _write(context: RunContext[Any], engine: Engine, job: ImportJob, day: Day, state: _State) -> None:
    upto, beyond = state.upto, set(state.beyond)
    tasks = list(_tasks(day, state))
    written, total = sum(task.rows for task in tasks if task.number < upto or task.number in beyond), day_rows(day)
    stored_s = elapsed_s()
    waiting = (task for task in tasks if task.number >= state.upto and task.number not in state.beyond)
    for done in engine.map(partial(put_rows, job), waiting):
        for cell, why in done.faults:
            context.failed("cell", cell, "not_declared", why)
        written += done.task.rows
        beyond.add(done.task.number)
        while upto in beyond:
            beyond.remove(upto)
            upto += 1
        if elapsed_s() - stored_s > CHECKPOINT_S:
            state = state.model_copy(update={"upto": upto, "beyond": frozenset(beyond)})
            context.checkpoint(state.model_dump(mode="json"))
            stored_s = elapsed_s()
        context.progress(written, total, "rows")
        context.check()


def day_rows(day: Day) -> int:
    """Return how many rows all tables of a day have."""
    return sum(table.rows for table in day.tables)


def _check_empty(context: RunContext[Any]) -> None:
    internal = {name for name, _ in INTERNAL_TABLES}
    snapshot = context.repo.snapshot()
    for table, _ in context.catalog.repo_tables():
        if table not in internal and next(snapshot.scan(table, limit=1), None) is not None:
            raise BadParameters(
                f"the Repo has rows in {table}; an import is for an empty one: use a new home, or another prefix"
            )


def _ranges(
    context: RunContext[Any], objects: Objects, snapshot: Snapshot, day: Day, table: TableFiles
) -> Iterator[tuple[str, str]]:
    """Cut a table for the check: where the files are here, by the last keys that they say, else by reading its keys."""
    last = [last_key(objects.local / name) for name in day.files(table.table)] if objects.local is not None else [None]
    if None in last:
        yield from key_ranges(snapshot, context.catalog, table.table, False, TASK_ROWS)
        return
    after = ""
    for key in last[:-1]:
        yield after, f"{key}\x01"  # no key goes on with a NUL, so this is right behind the key
        after = str(key)
    yield after, ""


def _verify(context: RunContext[Any], engine: Engine, job: ImportJob, day: Day) -> None:
    """Compare what the Repo has now with what was taken. Raises SnapshotDamaged naming tables that differ."""
    if context.failures:
        context.counts["verified"] = False  # cells were left out, and the run says so
        return
    snapshot, total, seen = context.repo.snapshot(), day_rows(day), 0
    rows, digests = Counter[str](), {table.table: Digest() for table in day.tables}
    context.repo.pin(_PIN, snapshot.ts, PIN_S)
    try:
        tasks = (
            DigestTask(table.table, number, snapshot.ts, after, before)
            for table in day.tables
            for number, (after, before) in enumerate(_ranges(context, Objects(job.source), snapshot, day, table))
        )
        for done in engine.map(partial(digest_rows, job), tasks):
            rows[done.task.table] += done.rows
            digests[done.task.table].merge(done.digest)
            seen += done.rows
            context.progress(seen, total, "rows checked")
            context.repo.pin(_PIN, snapshot.ts, PIN_S)
            context.check()
    finally:
        context.repo.unpin(_PIN)
    wrong = [
        f"{table.table} has {rows[table.table]} rows instead of {table.rows}, or other cells"
        for table in day.tables
        if (rows[table.table], str(digests[table.table])) != (table.rows, table.digest or str(Digest()))
    ]
    if wrong:
        raise SnapshotDamaged(
            f"after the import of {day.day} the Repo is not what was taken: {'; '.join(wrong)}. Writers at work "
            "meanwhile (stages that run) do that, and damaged files; import into an empty Repo with the service down"
        )
    context.counts["verified"] = True
