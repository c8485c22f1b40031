"""The first look of a sync at derived rows, range by range: a task that any engine runs.

It says what runs of the handlers would change at one snapshot. What that means is judged by the sync itself, after what
is in flight has arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from heapq import merge
from pathlib import Path

from argus import Paused, Registry, RunResult, compute_runs, load_registry
from argus.core import Sources
from batch_workflows._sync_common import chunks
from batch_workflows._task_repo import repo_of
from batch_workflows.ranges import neighbours
from catalog import Catalog
from catalog.model import DOCUMENT_BLOCKED, DOCUMENT_BODY, RUN, SOURCE_VERSION
from storage_repo import Repo, Snapshot

RANGE_ROWS = 5_000
"""Rows of a task: seconds of work."""
READ = 1_000
HANDLER_FAILED = "handler_failed"
_TEMPORARY = frozenset({"source_unavailable", "source_behind", "handler_paused"})

Changes = Mapping[tuple[str, str], bytes | None]


@dataclass(frozen=True, slots=True)
class LookJob:
    """What all tasks of one look at a root have in common; it travels as a pickle."""

    open_repo: Callable[[], Repo]
    open_sources: Callable[[], Sources]
    catalog: Catalog
    snapshot_ts: int
    root: str
    paused: Paused
    home: Path
    """Tells the Repos of homes apart; no file of it is opened."""


@dataclass(slots=True)
class Looked:
    """What a look at some rows came to."""

    rows: int = 0
    bytes_read: int = 0
    unjudged: int = 0
    """Rows that a source or a switch keeps from being judged."""
    failing: list[tuple[str, str]] = field(default_factory=list)
    """(row, what its handler says)."""
    suspects: list[tuple[str, Changes]] = field(default_factory=list)
    """Rows that a run would change, and how."""


def look(
    snapshot: Snapshot, registry: Registry, sources: Sources, rows: Iterable[str], paused: Paused, root: str
) -> Looked:
    """Say what runs of some rows would come to. Raises RepoError."""
    looked = Looked()
    for result in compute_runs(snapshot, registry, sources, rows, paused, root):
        looked.rows += 1
        looked.bytes_read += len(result.body_before or b"")
        if any(failure.reason in _TEMPORARY for failure in result.failures):
            looked.unjudged += 1
            continue
        looked.failing += [(result.key, f.sentence) for f in result.failures if f.reason == HANDLER_FAILED]
        if matters(result):
            looked.suspects.append((result.key, result.changes))
    return looked


def matters(result: RunResult) -> bool:
    """Return whether a run would change anything; that a row is gone need not be written at what is left of it."""
    return any(result.exists or cell != DOCUMENT_BLOCKED for _, cell in result.changes)


def rows_of(snapshot: Snapshot, registry: Registry, root: str, after: str = "", before: str = "") -> Iterator[str]:
    """Yield every row that is there or has outputs, in key order, each once."""
    output = registry.plans[root].output_table
    scans = [snapshot.scan(root, after=after, before=before, columns=[SOURCE_VERSION])]
    if output != root:
        scans.append(snapshot.scan(output, after=after, before=before, columns=[DOCUMENT_BODY, RUN]))
    last = None
    for row in merge(*((row for row, _ in scan) for scan in scans), key=str.encode):
        if row != last:
            yield row
        last = row


def ranges_of(rows: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Cut rows in key order into the ranges of tasks."""
    return neighbours(rows, RANGE_ROWS)


def look_range(job: LookJob, within: tuple[str, str]) -> Looked:
    """Look at the rows of a range, in whatever process. Raises RepoError."""
    world, total = _World.of(job), Looked()
    for chunk in chunks(rows_of(world.snapshot, world.registry, job.root, *within), READ):
        found = look(world.snapshot, world.registry, world.sources, chunk, job.paused, job.root)
        total.rows += found.rows
        total.bytes_read += found.bytes_read
        total.unjudged += found.unjudged
        total.failing += found.failing
        total.suspects += found.suspects
    return total


class _World:
    """What a process needs for the tasks of one look, opened once; it ends with the engine's process."""

    _current: _World | None = None

    def __init__(self, job: LookJob, repo: Repo) -> None:
        self._repo, self._for = repo, (job.snapshot_ts, job.root)
        self.snapshot = repo.snapshot(job.snapshot_ts)
        self.sources = job.open_sources()
        self.registry = load_registry(job.catalog)

    @classmethod
    def of(cls, job: LookJob) -> _World:
        """Return this process's world for a look, and close that of an earlier one."""
        repo, current = repo_of(job.open_repo, job.home), cls._current
        if current is None or current._repo is not repo or current._for != (job.snapshot_ts, job.root):
            if current is not None:
                for source in current.sources.values():
                    source.close()
            cls._current = current = cls(job, repo)
        return current
