"""The Repo's side of a sync's checksums: a table at one timestamp, cut into ranges of keys that any engine reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Protocol

from batch_workflows._sync_common import Sync
from batch_workflows._task_repo import repo_of
from batch_workflows.ranges import PAGE, Ranges, Sums, neighbours
from storage_repo import Repo, Row, Snapshot

RANGE_ROWS = 50_000
"""Rows of a task: about a second of work; a smaller table is read faster than a process is started."""


class Adds(Protocol):
    """Adds what a row comes to; it travels as a pickle: a function of a module, or a partial of one."""

    def __call__(self, sums: Sums, row: str, cells: Row, /) -> None:
        """Add a row."""


@dataclass(frozen=True, slots=True)
class SumJob:
    """What all tasks of one table have in common; it travels as a pickle."""

    open_repo: Callable[[], Repo]
    home: Path
    """Tells the Repos of homes apart; no file of it is opened."""
    snapshot_ts: int
    table: str
    columns: tuple[str, ...]
    ranges: Ranges
    add: Adds


@dataclass(frozen=True, slots=True)
class Summed:
    """What the rows of a range come to."""

    rows: int
    sums: Sums


def sum_range(job: SumJob, within: tuple[str, str]) -> Summed:
    """Read the rows after one and before another ("": the beginning, the end). Raises RepoError."""
    snapshot, sums, rows = repo_of(job.open_repo, job.home).snapshot(job.snapshot_ts), Sums(job.ranges), 0
    for row, cells in snapshot.scan(job.table, after=within[0], before=within[1], columns=job.columns):
        job.add(sums, row, cells)
        rows += 1
    return Summed(rows, sums)


def sum_table(
    sync: Sync,
    snapshot: Snapshot,
    table: str,
    columns: Sequence[str],
    ranges: Ranges,
    add: Adds,
    *,
    key_cell: str,
    step: Callable[[int], None],
) -> Sums:
    """Return what a table's rows come to: by the sync's engine, or here where there are few or it has none.

    `key_cell` is one that nearly every row has, by which the table is cut. `step` is called with the rows read since;
    it may raise to end the sync. Raises RepoError.
    """
    sums = Sums(ranges)
    if sync.engine is not None and sync.open_repo is not None:
        cut = neighbours((row for row, _ in snapshot.scan(table, columns=[key_cell])), RANGE_ROWS)
        first, second = next(cut), next(cut, None)
        if second is not None:
            job = SumJob(sync.open_repo, sync.home.root, snapshot.ts, table, tuple(columns), ranges, add)
            for done in sync.engine.map(partial(sum_range, job), chain((first, second), cut), sync.check):
                sums.merge(done.sums)
                step(done.rows)
            return sums
    count = 0
    for count, (row, cells) in enumerate(snapshot.scan(table, columns=columns), 1):
        add(sums, row, cells)
        if count % PAGE == 0:
            step(PAGE)
    step(count % PAGE)
    return sums
