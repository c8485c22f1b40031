"""Index tables against the entities that they turn round, in both directions, and their repair.

Reference and index row move in one transaction, so at one snapshot they agree, whatever is in flight: a difference is
one at once. A fix is a transaction like any other: it reads the reference again, puts it into its conflict set, and
runs again if the Updater was faster.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial

import msgspec

from batch_workflows._sync_common import BATCH, Part, Sync, chunks
from batch_workflows._sync_sums import sum_table
from batch_workflows.ranges import PAGE, Ranges, Sums, checksum
from catalog import Reference, ValueType
from catalog.model import INDEX_CELL
from catalog.values import decode
from storage_repo import INDEX_SEPARATOR, Conflict, Row, Snapshot, SnapshotTooOld

MISSING, EXTRA = "index_row_missing", "index_row_extra"
_RANGES = 50_000
_PER_TRANSACTION = 100
"""Referring rows fixed together: few enough that a conflict with the Updater is rare."""


def targets_of(cell: bytes | None) -> set[str]:
    """Return the row keys that a reference's cell points to; none for one that does not parse."""
    try:
        value = decode(cell)
    except msgspec.DecodeError:
        return set()
    return set() if value is None else {str(one) for one in (value if isinstance(value, list) else [value])}


def add_references(cell: str, sums: Sums, row: str, cells: Row) -> None:
    """Add a checksum for every reference of a row."""
    for target in targets_of(cells.get(cell)):
        sums.add(row, checksum(row, [target.encode()]))


def add_index_row(sums: Sums, key: str, cells: Row) -> None:
    """Add the checksum of an index row, as its referring row's."""
    target, _, row = key.partition(INDEX_SEPARATOR)
    sums.add(row, checksum(row, [target.encode()]))


class IndexSync:
    """Compares and repairs one index table after the other."""

    def __init__(self, sync: Sync) -> None:
        self._sync = sync
        # Of a fixed number: ranges that follow the table's size would need a count first.
        self._ranges = Ranges.of(ValueType.STRING, _RANGES, per_range=1)
        self._extra: dict[str, set[str]] = {}
        """Referring row -> targets of its index rows that are too many, of the batch in hand."""

    def run(self, reference: Reference) -> Part:
        """Compare one index table and repair it. Raises RepoError."""
        part, started = Part(), time.monotonic()
        with self._sync.pinned(reference.index_table) as snapshot:
            if differing := self._compare(snapshot, reference, part):
                for batch in chunks(self._children(snapshot, reference, differing, part), BATCH):
                    self._sync.check()
                    wrong = list(dict.fromkeys(batch))
                    if self._sync.repair:
                        for some in chunks(wrong, _PER_TRANSACTION):
                            part.repaired += self._fix(reference, some)
                    self._extra.clear()
        part.seconds = time.monotonic() - started
        return part

    def _compare(self, snapshot: Snapshot, reference: Reference, part: Part) -> frozenset[int]:
        cell = _cell(self._sync, reference)
        expected = sum_table(
            self._sync, snapshot, reference.table, [cell], self._ranges, partial(add_references, cell),
            key_cell=cell, step=self._sync.step,
        )  # fmt: skip
        stored = sum_table(
            self._sync, snapshot, reference.index_table, [INDEX_CELL], self._ranges, add_index_row,
            key_cell=INDEX_CELL, step=lambda _: self._sync.check(),
        )  # fmt: skip
        part.rows = max(expected.rows, stored.rows)
        part.rows_read += expected.rows + stored.rows
        part.bytes_read += expected.nbytes + stored.nbytes
        differing = expected.differing(stored)
        part.ranges, part.ranges_differing = max(len(expected), len(stored)), len(differing)
        return differing

    def _children(
        self, snapshot: Snapshot, reference: Reference, differing: frozenset[int], part: Part
    ) -> Iterator[str]:
        """Yield referring rows with an index row too few or too many."""
        cell, index, ranges = _cell(self._sync, reference), reference.index_table, self._ranges
        referring = (
            (row, target)
            for row, cells in snapshot.scan(reference.table, columns=[cell])
            if ranges.of_row(row) in differing
            for target in targets_of(cells.get(cell))
        )
        for chunk in chunks(referring, PAGE):
            keys = {(index, f"{target}{INDEX_SEPARATOR}{row}"): row for row, target in chunk}
            found = snapshot.get_many(list(keys), {index: [INDEX_CELL]})
            part.rows_read += 2 * len(keys)
            for key, row in keys.items():
                if not found[key]:
                    part.found(f"{index}:{MISSING}", key[1].replace(INDEX_SEPARATOR, "/"))
                    yield row
        listed = (key.partition(INDEX_SEPARATOR) for key, _ in snapshot.scan(index, columns=[INDEX_CELL]))
        for some in chunks(((row, target) for target, _, row in listed if ranges.of_row(row) in differing), PAGE):
            entities = self._read(snapshot, reference, (row for row, _ in some))
            part.rows_read += 2 * len(some)
            for row, target in some:
                if target not in targets_of(entities[row].get(cell)):
                    part.found(f"{index}:{EXTRA}", f"{target}/{row}")
                    self._extra.setdefault(row, set()).add(target)
                    yield row

    def _read(self, snapshot: Snapshot, reference: Reference, rows: Iterable[str]) -> dict[str, Row]:
        cell = _cell(self._sync, reference)
        wanted = [(reference.table, row) for row in dict.fromkeys(rows) if row]
        found = snapshot.get_many(wanted, {reference.table: [cell]})
        return {"": {}} | {row: cells for (_, row), cells in found.items()}

    def _fix(self, reference: Reference, rows: list[str]) -> int:
        """Make the index rows of some referring rows what their references say; return how many rows were wrong."""
        cell, index = _cell(self._sync, reference), reference.index_table
        while True:
            snapshot = self._sync.repo.snapshot()
            entities = self._read(snapshot, reference, rows)
            pairs = {(row, t): True for row in rows for t in targets_of(entities[row].get(cell))}
            pairs |= {(row, t): False for row in rows for t in self._extra.get(row, ()) if (row, t) not in pairs}
            keys = {pair: (index, f"{pair[1]}{INDEX_SEPARATOR}{pair[0]}") for pair in pairs}
            found = snapshot.get_many(list(keys.values()), {index: [INDEX_CELL]})
            transaction, wrong = self._sync.transaction(snapshot.ts), set[str]()
            for pair, wanted in pairs.items():
                if bool(found[keys[pair]]) == wanted:
                    continue
                wrong.add(pair[0])
                if wanted:
                    transaction.put(*keys[pair], INDEX_CELL, b"")
                else:
                    transaction.delete(*keys[pair], INDEX_CELL)
            for row in wrong - {""}:
                transaction.promote(reference.table, row, cell)
            try:
                transaction.commit()
                return len(wrong)
            except (Conflict, SnapshotTooOld):
                self._sync.check()


def _cell(sync: Sync, reference: Reference) -> str:
    return sync.catalog.tables[reference.table].columns[reference.column].cell
