"""Ads DB against Storage Repo: checksums per range of keys, then rows, then a second look, then repair.

The ads DB's side is read page by page and materialized by the Gateway's own code, the Repo's side is one scan at one
snapshot. Only ranges whose checksums differ are read row by row. What differs then may be in flight, so it is looked at
again after everything in flight has arrived, and only what is on both sides as it was counts. It is repaired by having
the Gateway read those entities again, in the low lane: nothing but the pipeline writes entities.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import msgspec

from batch_workflows._sync_common import BATCH, LOOKS, Part, Sync, chunks
from batch_workflows._sync_sums import sum_table
from batch_workflows.ranges import PAGE, Ranges, Sums, checksum
from batch_workflows.refresh import source_key
from catalog import LaneName, Table, ValueType
from catalog.keys import join_key
from catalog.model import COLLECTED, DELETED, SOURCE_VERSION
from catalog.values import decode, encode
from gateway import Change, Materializer, newest_number, open_rows, request_rows
from gateway.streams import Entity, Published, Updates
from messaging.headers import new_header, now_us
from messaging.proto import adsindex_pb2 as pb
from storage_repo import Conflict, Row, Snapshot, SnapshotTooOld
from updater import UpdaterCore
from updater.core import ADS_DB

MISSING, EXTRA, DIFFERENT = "missing_in_repo", "extra_in_repo", "different"
_DEAD = b"dead"
_NO_VERSION = 0
"""A version that every update is newer than."""


class _Collected:
    """A stream that keeps entities instead of publishing them: what the Gateway would send, without the messages."""

    name = "sync"
    topics: Mapping[str, int] = {}

    def __init__(self) -> None:
        self.entities: list[Entity] = []

    def publish(self, entity: Entity) -> Sequence[Published]:
        """Keep the entity."""
        self.entities.append(entity)
        return ()


@dataclass(frozen=True, slots=True)
class _Looked:
    """One look at a row: checksums of what the two sides have (0: nothing), and what kind of difference that is."""

    source: int
    stored: int
    kind: str


class Layout:
    """Which cells of a table come from the ads DB."""

    def __init__(self, table: Table) -> None:
        columns = [column for column in table.columns.values() if column.source_table is not None]
        self.names = [column.name for column in columns]
        self.cells = [column.cell for column in columns]
        self.read = [*self.cells, SOURCE_VERSION, DELETED, COLLECTED]

    def of_entity(self, entity: Entity) -> tuple[int, int]:
        """Return checksum and bytes of an entity as the Gateway would send it."""
        return checksum(entity.row, [entity.values.get(name) or b"" for name in self.names])

    def of_cells(self, row: str, cells: Row) -> tuple[int, int]:
        """Return checksum and bytes of a row as an update leaves it."""
        return checksum(row, [cells.get(cell, b"") for cell in self.cells])

    @staticmethod
    def is_there(cells: Row) -> bool:
        """Return whether the pipeline takes a row for one that exists."""
        return SOURCE_VERSION in cells and DELETED not in cells

    def of_row(self, row: str, cells: Row) -> tuple[int, int]:
        """Return checksum and bytes of a row that is there, or was collected; 0 for one that is not."""
        if self.is_there(cells):
            return self.of_cells(row, cells)
        if any(cells.get(cell) for cell in self.cells):  # left behind by a dead row: equal to nothing
            return checksum(row, [_DEAD, *(cells.get(cell, b"") for cell in self.cells)])
        collected = _whole(cells.get(COLLECTED)) if DELETED in cells else None
        return (collected or 0), 0


def add_row(layout: Layout, sums: Sums, row: str, cells: Row) -> None:
    """Add the checksum of a row that the Repo has."""
    if (checked := layout.of_row(row, cells))[0]:
        sums.add(row, checked)


class AdsSync:
    """Compares and repairs one entity table after the other."""

    def __init__(self, sync: Sync, *, range_rows: int = 0) -> None:
        """`range_rows`: how many rows a range has, 0: as the table's size allows."""
        self._sync, self._range_rows = sync, range_rows
        self._updater = UpdaterCore(sync.repo, sync.catalog)

    def run(self, table: Table) -> Part:
        """Compare one table and repair it. Raises AdsDbUnavailable, SchemaMismatch, RepoError, LogError."""
        part, started = Part(), time.monotonic()
        with self._sync.pinned(table.name) as snapshot:
            differing, stored = self._compare(table, snapshot, part)
            if differing:
                suspects = self._suspects(table, snapshot, stored.ranges, differing, part, stored.count(differing))
                for batch in chunks(suspects, BATCH):
                    self._judge(table, dict(batch), part)
        part.seconds = time.monotonic() - started
        return part

    def row_by_row(self, table: Table) -> Part:
        """Compare every row of a table without checksums and repair nothing: what they are measured against."""
        part, started = Part(), time.monotonic()
        everything = Ranges.of(ValueType.STRING, 1)
        for row, looked in self._suspects(table, self._sync.repo.snapshot(), everything, frozenset({0}), part):
            part.found(f"{table.name}:{looked.kind}", row)
        part.rows, part.seconds = part.rows_read // 4, time.monotonic() - started
        return part

    def _compare(self, table: Table, snapshot: Snapshot, part: Part) -> tuple[frozenset[int], Sums]:
        ranges, layout = self._ranges(table), Layout(table)
        source = Sums(ranges)
        stored = sum_table(
            self._sync, snapshot, table.name, layout.read, ranges, partial(add_row, layout),
            key_cell=SOURCE_VERSION, step=lambda _: self._sync.check(),
        )  # fmt: skip
        for page in self._pages(table):
            for entity in page:
                source.add(entity.row, layout.of_entity(entity))
            self._sync.step(len(page))
        part.rows = max(stored.rows, source.rows)
        part.rows_read += stored.rows + source.rows
        part.bytes_read += stored.nbytes + source.nbytes
        differing = source.differing(stored)
        part.ranges, part.ranges_differing = max(len(source), len(stored)), len(differing)
        return differing, stored

    def _ranges(self, table: Table) -> Ranges:
        if table.source is None:
            return Ranges.of(ValueType.STRING, 0)
        db, columns = self._sync.ads_db, table.source.key_columns
        bounds = "0 AS low, 0 AS high"
        if whole := table.key_type is ValueType.INT and len(columns) == 1:
            bounds = f"MIN({db.quoted(columns[0])}) AS low, MAX({db.quoted(columns[0])}) AS high"
        (found,) = db.select(f"SELECT COUNT(*) AS n, {bounds} FROM {db.quoted(table.source.table)}", {})
        low, high = found["low"], found["high"]
        if not (whole and isinstance(low, int) and isinstance(high, int)):  # SQLite takes any key in any column
            return Ranges.of(ValueType.STRING, int(found["n"]), per_range=self._range_rows)
        return Ranges.of(ValueType.INT, int(found["n"]), low, high, per_range=self._range_rows)

    def _pages(
        self, table: Table, ranges: Ranges | None = None, only: frozenset[int] = frozenset()
    ) -> Iterator[list[Entity]]:
        """Yield the table's entities as the Gateway would send them now; with `ranges`, those of some ranges only."""
        source = table.source
        if source is None:
            return
        collected = _Collected()
        materializer = Materializer(self._sync.catalog, [collected])
        with closing(open_rows(self._sync.ads_db, self._sync.catalog)) as rows:
            after: Sequence[object] | None = None
            while keys := rows.keys(source.table, source.key, after, PAGE):
                after = keys[-1]
                wanted = [join_key(key) for key in keys]
                if ranges is not None:
                    wanted = [key for key in wanted if ranges.of_row(str(key)) in only]
                materializer.materialize([Change(1, source.table, key, 0) for key in wanted], rows)
                yield [entity for entity in collected.entities if not entity.deleted]
                collected.entities.clear()
                if len(keys) < PAGE:
                    return

    def _suspects(
        self,
        table: Table,
        snapshot: Snapshot,
        ranges: Ranges,
        differing: frozenset[int],
        part: Part,
        stored: int | None = None,
    ) -> Iterator[tuple[str, _Looked]]:
        """Yield the rows that differ in the ranges that do: first what the ads DB has, then the rest.

        `stored` is how many rows the Repo has there: where the ads DB has them all, the rest need not be looked for.
        """
        matched = 0
        layout, source = Layout(table), table.source
        for page in self._pages(table, ranges, differing):
            self._sync.check()
            found = snapshot.get_many([(table.name, entity.row) for entity in page], {table.name: layout.read})
            part.rows_read += 2 * len(page)
            for entity in page:
                cells = found[table.name, entity.row]
                looked = _looked(
                    layout.of_entity(entity)[0], layout.of_row(entity.row, cells)[0], layout.is_there(cells)
                )
                matched += bool(looked.stored)
                if looked.kind:
                    yield entity.row, looked
        if matched == stored:
            return
        scan = snapshot.scan(table.name, columns=layout.read)
        there = ((row, cells) for row, cells in scan if ranges.of_row(row) in differing)
        with closing(open_rows(self._sync.ads_db, self._sync.catalog)) as rows:
            collected = _Collected()
            materializer = Materializer(self._sync.catalog, [collected])
            for chunk in chunks(there, PAGE):
                self._sync.check()
                if source is not None:
                    keys = [source_key(table, row) for row, _ in chunk]
                    materializer.materialize([Change(1, source.table, key, 0) for key in keys], rows)
                present = {entity.row for entity in collected.entities if not entity.deleted}
                collected.entities.clear()
                part.rows_read += 2 * len(chunk)
                for row, cells in chunk:
                    looked = _looked(0, layout.of_row(row, cells)[0], layout.is_there(cells))
                    if row not in present and looked.kind:
                        yield row, looked

    def _judge(self, table: Table, suspects: dict[str, _Looked], part: Part) -> None:
        """Look again when everything in flight has arrived; repair what is as it was and still differs."""
        for _ in range(LOOKS - 1):
            if not suspects:
                return
            if not self._sync.lag.pass_by():
                part.unsettled += len(suspects)
                return
            again = self._look(table, list(suspects), part)
            confirmed = {row: looked for row, looked in again.items() if looked == suspects[row]}
            for row, looked in confirmed.items():
                part.found(f"{table.name}:{looked.kind}", row)
            if confirmed and self._sync.repair:
                part.repaired += self._repair(table, list(confirmed))
            part.in_flight += len(suspects) - len(again)
            suspects = {row: looked for row, looked in again.items() if row not in confirmed}
        part.in_flight += len(suspects)

    def _look(self, table: Table, keys: Sequence[str], part: Part) -> dict[str, _Looked]:
        """Return the rows that differ now: what the Updater would store against what is stored."""
        layout, source, sent = Layout(table), table.source, dict[str, pb.EntityUpdate]()
        if source is not None:
            materializer = Materializer(self._sync.catalog, [Updates(self._sync.catalog)])
            changes = [Change(1, source.table, source_key(table, row), 0) for row in keys]
            with closing(open_rows(self._sync.ads_db, self._sync.catalog)) as rows:
                sent = {update.row: update for update in materializer.materialize(changes, rows).updates}
        stored = self._sync.repo.snapshot().get_many([(table.name, row) for row in keys], {table.name: layout.read})
        part.rows_read += 2 * len(keys)
        differing: dict[str, _Looked] = {}
        for row in keys:
            update, expected, cells = sent.get(row), 0, stored[table.name, row]
            if update is not None and not update.deleted:
                expected = layout.of_cells(row, self._updater.cells_of(update))[0]
            looked = _looked(expected, layout.of_row(row, cells)[0], layout.is_there(cells))
            if looked.kind:
                differing[row] = looked
        return differing

    def _repair(self, table: Table, rows: Sequence[str]) -> int:
        """Have the entities sent again, and return how many; a version that no message exceeds is taken back first."""
        number = newest_number(self._sync.ads_db, self._sync.catalog, self._sync.log)
        for row in rows:
            while True:
                snapshot = self._sync.repo.snapshot()
                version = snapshot.get(table.name, row, [SOURCE_VERSION]).get(SOURCE_VERSION)
                if version is None or not _unbeatable(version, number):
                    break
                transaction = self._sync.transaction(snapshot.ts)
                transaction.put(table.name, row, SOURCE_VERSION, encode(_NO_VERSION))
                try:
                    transaction.commit()
                    break
                except (Conflict, SnapshotTooOld):
                    continue  # an update came in between: it has a version of its own
        impossible = [row for row in rows if not _can_be_sent(table, row)]
        if impossible:
            # The Gateway would refuse them: what it would send if it could goes straight to the Updater's code.
            header = new_header(LaneName.LOW, now_us())
            self._updater.apply(
                [
                    pb.EntityUpdate(
                        header=header, table=table.name, row=row, source=ADS_DB, source_version=number + 1, deleted=True
                    )
                    for row in impossible
                ]
            )
        keys = [source_key(table, row) for row in rows if row not in impossible]
        return len(impossible) + request_rows(self._sync.ads_db, self._sync.catalog, self._sync.log, table, keys)


def _can_be_sent(table: Table, row: str) -> bool:
    """Return whether the ads DB may have the key: whole numbers are written in one way only."""
    key = source_key(table, row)
    return table.key_type is not ValueType.INT or (isinstance(key, int) and str(key) == row)


def _unbeatable(version: bytes, number: int) -> bool:
    """Return whether what is stored as a row's version keeps out an update under a number, or is none at all."""
    found = _whole(version)
    return found is None or found >= number


def _whole(data: bytes | None) -> int | None:
    """Return a whole number that a cell holds, None for anything else."""
    try:
        value = decode(data)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _looked(source: int, stored: int, there: bool) -> _Looked:
    """Return a look at a row; its kind is empty if both sides have the same. `there`: the Repo has a living row."""
    if source == stored:
        return _Looked(source, stored, "")
    if not source:
        return _Looked(source, stored, EXTRA)
    return _Looked(source, stored, DIFFERENT if there else MISSING)
