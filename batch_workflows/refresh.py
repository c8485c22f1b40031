"""Refresh: run the same handlers again over everything or a selection, at low priority.

`refresh` sends notifications that say "run all handlers of this row"; the pipeline does the rest, at the low lane.
`resync` makes the Gateway read rows of the ads DB again, and look for those that only the Storage Repo still has.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from batch_workflows._exceptions import UnknownSelection
from catalog import Catalog, LaneName, Table, ValueType
from catalog.model import DELETED, SOURCE_VERSION
from gateway import AdsDb, request_missing, request_resync
from messaging import Log, OutRecord
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import NOTIFICATIONS
from storage_repo import INDEX_SEPARATOR, Repo, Snapshot

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Refreshed:
    """How many rows were asked to run again, per table."""

    by_table: dict[str, int]

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(self.by_table.values())


def refresh(
    repo: Repo,
    log: Log,
    catalog: Catalog,
    *,
    table: str = "",
    ids: Sequence[str] = (),
    advertiser: str = "",
) -> Refreshed:
    """Ask for a run of all handlers of the selected rows (default: every row of every root, parents first).

    Safe to run twice and to kill: what was asked for stays asked for. Raises UnknownSelection.
    """
    roots = _roots(catalog)
    if table and table not in roots:
        raise UnknownSelection(f"handlers run for {', '.join(roots)}; there are none for table {table!r}")
    if ids and not table:
        table = catalog.root
    snapshot = repo.snapshot()
    counts: dict[str, int] = {}
    for root in [table] if table else [catalog.root] if advertiser else roots:
        rows = _rows(snapshot, catalog, root, ids, advertiser)
        counts[root] = _publish(log, root, rows, snapshot.ts)
    return Refreshed(counts)


def _roots(catalog: Catalog) -> list[str]:
    """Return tables with handler-derived columns, those that others join with first, the document's root last."""
    derived = [t.name for t in catalog.entity_tables() if any(c.handler for c in t.columns.values())]
    return [*(name for name in derived if name != catalog.root), catalog.root]


def _rows(snapshot: Snapshot, catalog: Catalog, root: str, ids: Sequence[str], advertiser: str) -> Iterator[str]:
    if ids:
        found = snapshot.get_many([(root, i) for i in ids], {root: [SOURCE_VERSION]})
        if missing := [i for i in ids if not found[(root, i)]]:
            raise UnknownSelection(f"no {root} with id {', '.join(missing)} in the Storage Repo")
        yield from ids
    elif advertiser:
        if not snapshot.get("advertiser", advertiser, [SOURCE_VERSION]):
            raise UnknownSelection(f"no advertiser {advertiser!r} in the Storage Repo")
        yield from _below(snapshot, catalog, "advertiser", advertiser, root)
    else:
        yield from (row for row, _ in snapshot.scan(root, columns=[SOURCE_VERSION]))


def _below(snapshot: Snapshot, catalog: Catalog, table: str, row: str, root: str) -> Iterator[str]:
    for reference in catalog.references():
        if reference.target != table:
            continue
        for key, _ in snapshot.scan(reference.index_table, prefix=row + INDEX_SEPARATOR):
            child = key.split(INDEX_SEPARATOR, 1)[1]
            if reference.table == root:
                yield child
            else:
                yield from _below(snapshot, catalog, reference.table, child, root)


def _publish(log: Log, root: str, rows: Iterator[str], ts: int) -> int:
    count = 0
    batch: list[OutRecord] = []
    for row in rows:
        note = pb.Notification(
            header=new_header(LaneName.LOW, now_us()), table=root, row=row, commit_ts=ts, writer="refresh", refresh=True
        )
        batch.append(OutRecord(NOTIFICATIONS[LaneName.LOW], f"{root}/{row}", note.SerializeToString()))
        count += 1
        if len(batch) == _BATCH:
            log.publish(batch)
            batch = []
    if batch:
        log.publish(batch)
    return count


@dataclass(frozen=True, slots=True)
class Resynced:
    """How many rows of the ads DB are read again, and how many it lacks that the Storage Repo has."""

    rows: int
    gone: int


def resync(ads_db: AdsDb, catalog: Catalog, log: Log, repo: Repo) -> Resynced:
    """Have every row of the ads DB read again, and every row that only the Repo has deleted, in the low lane.

    The Gateway looks at each when its turn comes: what is not in the ads DB then is sent as deleted. Safe to run twice
    and to kill. Capture must be installed. Raises AdsDbUnavailable, SchemaMismatch, LogError, RepoError.
    """
    rows = request_resync(ads_db, catalog, log)
    gone, snapshot = 0, repo.snapshot()
    for table in catalog.entity_tables():
        stored = snapshot.scan(table.name, columns=[SOURCE_VERSION, DELETED])
        alive = (_key(table, row) for row, cells in stored if SOURCE_VERSION in cells and DELETED not in cells)
        while keys := list(islice(alive, _BATCH)):
            gone += request_missing(ads_db, catalog, log, table, keys)
    return Resynced(rows, gone)


def _key(table: Table, row: str) -> int | str:
    """Return a row's key as the ads DB holds it; one that cannot be there stays text."""
    if table.key_type is ValueType.INT and row.removeprefix("-").isdecimal() and -(1 << 63) <= int(row) < 1 << 63:
        return int(row)
    return row
