"""Commit of a batch of transactions by Omid's protocol, in four steps of one round trip each (per table).

1. `flush`: all cells of all transactions, each at the version of its transaction's start timestamp.
2. The TSO decides on all at once; what it grants is in the commit table when it answers: committed.
3. The shadow cells of the granted; when the caller hears of its commit, readers need no commit table any more.
4. Later, in the background: the entries of the commit table go, and the cells of what was refused.

A client that dies before 2 has written cells that nobody ever sees. One that dies after has committed: readers find the
entry and write the missing shadow cells. Writing a cell twice changes nothing: its version is fixed.

The TSO only says no. Whoever is refused gets a new start timestamp and reads the newest versions of its cells there:
with a newer one than its snapshot it has met a true conflict, which names the cell. Without, the refusal was false
(two cells with one id, a promoted read that another only promoted too, a TSO that was restarted) and the transaction,
checked just now, is tried once more at its new start. The same check lets transactions share a snapshot: each takes a
start of its own at its commit.

`faults` is called before and after everything that can be cut off: before-flush, "flush TABLE", "flush TABLE done",
flushed, decided, "finish TABLE", "finish TABLE done", finished (and before-entry-removal, in the background).
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from storage_repo._exceptions import Conflict, FalseConflict, OutcomeUnknown, SnapshotTooOld, StoreUnavailable
from storage_repo.api import CommitOutcome, RowId
from storage_repo.hbase._background import Background
from storage_repo.hbase._cells import VisibleRow
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase._read import Reader
from storage_repo.hbase._state import Watermark
from storage_repo.hbase._time import Oracle
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import ORIGIN_FAMILY, ORIGIN_QUALIFIER, Column, HbaseNames
from storage_repo.hbase.thrift2 import TColumn, TColumnValue, TDelete, TDeleteType, TPut
from storage_repo.omid import Aborted, CommitRequest, Committed, CommitUnknown, Outcome
from storage_repo.omid.ids import cell_id, table_id
from storage_repo.omid.layout import encode_timestamp, shadow_qualifier

_ATTEMPTS = 4
"""Tries of a transaction that is refused for no true conflict; more would only help while a TSO keeps failing."""

_BYTES_PER_CALL = 4 << 20
"""Of values in one call; a Thrift server holds all of a call in memory, several times."""

_ORIGIN_SHADOW = shadow_qualifier(ORIGIN_QUALIFIER)

Cell = tuple[str, str, Column]
"""(table, row, column)."""


@dataclass(slots=True)
class Prepared:
    """A transaction ready to be committed."""

    ts: int
    """Its snapshot: it conflicts with what committed later."""
    start: int | None
    """Its own start timestamp, if its snapshot is one that nobody else uses."""
    writes: dict[RowId, list[tuple[Column, bytes]]]
    """Stored values; a tombstone is empty."""
    promoted: list[Cell]
    origin: bytes
    refused: bool = False
    """The TSO has refused it at least once."""

    def conflict_set(self) -> Iterator[Cell]:
        """Yield the cells that nobody else may have changed."""
        for (table, row), cells in self.writes.items():
            for column, _ in cells:
                yield table, row, column
        yield from self.promoted


class Committer:
    """Commits batches; may be used by several threads at the same time."""

    def __init__(
        self,
        connections: HbaseConnections,
        names: HbaseNames,
        oracle: Oracle,
        reader: Reader,
        commit_table: CommitTable,
        background: Background,
        watermark: Watermark,
        faults: Callable[[str], None],
    ) -> None:
        self._connections, self._names, self._oracle, self._reader = connections, names, oracle, reader
        self._commit_table, self._background, self._watermark = commit_table, background, watermark
        self._faults = faults
        self._lock = threading.Lock()
        self.counters: Counter[str] = Counter()

    def apply(self, batch: Sequence[Prepared]) -> list[CommitOutcome]:
        """Commit in order; each is checked against those before it as well.

        Raises StoreUnavailable, and then none is visible; when some are, or may be (OutcomeUnknown), it is the others'
        outcome instead.
        """
        outcomes: dict[int, CommitOutcome] = {}
        pending = dict(enumerate(batch))
        self._count(groups=1)
        try:
            for _ in range(_ATTEMPTS):
                self._check(pending, outcomes)
                if not pending:
                    break
                self._attempt(pending, outcomes)
            self._check(pending, outcomes)  # of the last refusals, too, those that name a culprit are no false ones
            for index, refused in pending.items():
                self._count(false_aborts_given_up=1)
                table, row, _ = next(refused.conflict_set())
                outcomes[index] = FalseConflict(table, row, refused.ts, _ATTEMPTS)
        except StoreUnavailable as error:
            if not any(isinstance(outcome, (int, OutcomeUnknown)) for outcome in outcomes.values()):
                raise
            outcomes.update((index, error) for index in range(len(batch)) if index not in outcomes)
        return [outcomes[index] for index in range(len(batch))]

    def _check(self, pending: dict[int, Prepared], outcomes: dict[int, CommitOutcome]) -> None:
        """Give every transaction a start timestamp; sort out those whose cells have changed up to there."""
        self._refuse_old(pending, outcomes)
        unchecked = {index: prepared for index, prepared in pending.items() if prepared.start is None}
        if not unchecked:
            return
        starts = self._oracle.begin_many(len(unchecked))
        newest = self._newest(starts[-1], unchecked.values())
        self._refuse_old(pending, outcomes)  # below the watermark a deletion may be gone, and we blind to it
        for (index, prepared), start in zip(unchecked.items(), starts, strict=True):
            if index in outcomes:
                continue
            prepared.start = start
            newer_ts, cell = max(((self._changed(newest, cell), cell) for cell in prepared.conflict_set()), key=_first)
            if newer_ts > prepared.ts:
                outcomes[index] = self._conflict(prepared, cell, newer_ts)
                del pending[index]
            elif prepared.refused:
                self._count(false_aborts=1)

    def _refuse_old(self, pending: dict[int, Prepared], outcomes: dict[int, CommitOutcome]) -> None:
        for ts in {prepared.ts for prepared in pending.values()}:
            of_ts = [index for index, prepared in pending.items() if prepared.ts == ts]
            try:
                self._watermark.check(ts, {table for i in of_ts for table, _, _ in pending[i].conflict_set()})
            except SnapshotTooOld as error:
                for index in of_ts:
                    outcomes[index] = error
                    del pending[index]

    def _attempt(self, pending: dict[int, Prepared], outcomes: dict[int, CommitOutcome]) -> None:
        """Write, ask the TSO, finish what it granted; what stays pending was refused and has no start any more."""
        self._faults("before-flush")
        try:
            self._put(_data_puts(self._names, pending.values()), "flush")
        except StoreUnavailable:
            self._roll_back(pending.values())
            raise
        self._faults("flushed")
        answers = self._oracle.tso.commit_many([self._request(prepared) for prepared in pending.values()])
        self._faults("decided")
        committed: dict[int, tuple[Prepared, int]] = {}
        refused: list[Prepared] = []
        never_asked: list[Prepared] = []
        lost: StoreUnavailable | None = None
        for (index, prepared), answer in zip(list(pending.items()), answers, strict=True):
            try:
                commit_ts = self._outcome(prepared, answer)
            except OutcomeUnknown as error:
                outcomes[index] = error
                del pending[index]
                continue
            except StoreUnavailable as error:
                lost = error
                never_asked.append(prepared)
                continue
            if commit_ts is None:
                refused.append(prepared)
            else:
                outcomes[index] = commit_ts
                committed[index] = (prepared, commit_ts)
                self._reader.known.learn(_start(prepared), commit_ts)
                del pending[index]
        self._finish(list(committed.values()))
        self._roll_back(refused + never_asked)
        for prepared in refused:
            prepared.start, prepared.refused = None, True
        if lost is not None:
            raise lost

    def _outcome(self, prepared: Prepared, answer: Outcome) -> int | None:
        """Return the commit timestamp, or None if it is certainly not committed.

        Raises OutcomeUnknown; other StoreUnavailables only when the TSO was never asked.
        """
        if isinstance(answer, Committed):
            return answer.commit_ts
        if isinstance(answer, Aborted) and not answer.after_retry:
            return None
        if not isinstance(answer, (Aborted, CommitUnknown)):
            raise answer  # the TSO is away, and was never asked
        self._count(unknown_outcomes=1)
        start = _start(prepared)
        try:
            for _ in range(2):
                entry = self._commit_table.lookup([start]).get(start)
                if entry is not None:
                    return entry.commit_ts
                if self._commit_table.invalidate(start):
                    return None
        except StoreUnavailable as error:
            raise OutcomeUnknown(f"whether transaction {start} is committed is unknown: {error}") from error
        raise OutcomeUnknown(f"the commit table does not tell whether transaction {start} is committed") from (
            answer if isinstance(answer, CommitUnknown) else None
        )

    def _finish(self, committed: Sequence[tuple[Prepared, int]]) -> None:
        """Write the shadow cells of committed transactions, or leave that to the background; nothing can fail now."""
        if not committed:
            return
        starts = [_start(prepared) for prepared, _ in committed]
        puts = _shadow_puts(self._names, committed)
        try:
            self._put(puts, "finish")
        except StoreUnavailable:
            self._count(finished_later=len(committed))
            self._background.write_shadow_cells(puts, then_remove=starts)
            self._faults("finished")
        else:
            self._faults("finished")
            self._background.remove_entries(starts)
        cells = sum(len(columns) for prepared, _ in committed for columns in prepared.writes.values())
        self._count(commits=len(committed), cells_written=cells)

    def _roll_back(self, refused: Iterator[Prepared] | Sequence[Prepared] | Any) -> None:
        """Have the cells of refused transactions deleted, each at exactly its version."""
        # Thrift1 would delete all older versions with it; so would DELETE_COLUMNS.
        for prepared in refused:
            start = _start(prepared)
            for (table, row), cells in prepared.writes.items():
                columns = [TColumn(column.family, column.qualifier, start) for column, _ in cells]
                columns.append(TColumn(ORIGIN_FAMILY, ORIGIN_QUALIFIER, start))
                delete = TDelete(
                    row=self._names.row_key(table, row), columns=columns, deleteType=TDeleteType.DELETE_COLUMN
                )
                self._background.delete_cells(self._names.hbase_table(table), [delete])

    def _request(self, prepared: Prepared) -> CommitRequest:
        names = self._names
        cells = {
            cell_id(names.hbase_table(table), names.row_key(table, row), column.family, column.qualifier)
            for table, row, column in prepared.conflict_set()
        }
        tables = {table_id(names.hbase_table(table)) for table, _ in prepared.writes}
        return CommitRequest(_start(prepared), sorted(cells), sorted(tables))

    def _newest(self, ts: int, batch: Any) -> dict[tuple[str, bytes], VisibleRow]:
        """Read the conflict sets of a batch at a timestamp."""
        asked: defaultdict[str, dict[bytes, VisibleRow]] = defaultdict(dict)
        columns: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for prepared in batch:
            for table, row, column in prepared.conflict_set():
                asked[table][self._names.row_key(table, row)] = {}
                columns[table][column.name] = None
        self._reader.rows(ts, asked, columns)
        return {(table, key): row for table, rows in asked.items() for key, row in rows.items()}

    def _changed(self, newest: dict[tuple[str, bytes], VisibleRow], cell: Cell) -> int:
        """Return the commit timestamp of a cell's newest version, or of its family's deletion; 0 if it has none."""
        table, row, column = cell
        found = newest[table, self._names.row_key(table, row)]
        family = column.name.partition(":")[0] + ":"
        return max((found[name].commit_ts for name in (column.name, family) if name in found), default=0)

    def _conflict(self, prepared: Prepared, cell: Cell, newer_ts: int) -> Conflict:
        self._count(conflicts=1)
        return Conflict(cell[0], cell[1], cell[2].name, prepared.ts, newer_ts)

    def _put(self, puts: dict[bytes, list[Any]], step: str) -> None:
        jobs = [(table, chunk) for table, of_table in puts.items() for chunk in _chunks(of_table)]

        def put(job: tuple[bytes, list[Any]]) -> None:
            self._faults(f"{step} {job[0].decode()}")
            self._connections.put(*job)
            self._faults(f"{step} {job[0].decode()} done")

        self._connections.in_parallel(put, jobs)

    def _count(self, **increments: int) -> None:
        with self._lock:
            for name, increment in increments.items():
                self.counters[name] += increment


def _data_puts(names: HbaseNames, batch: Any) -> dict[bytes, list[Any]]:
    puts: defaultdict[bytes, list[Any]] = defaultdict(list)
    for prepared in batch:
        start = _start(prepared)
        for (table, row), cells in prepared.writes.items():
            values = [TColumnValue(column.family, column.qualifier, stored, start) for column, stored in cells]
            values.append(TColumnValue(ORIGIN_FAMILY, ORIGIN_QUALIFIER, prepared.origin, start))
            puts[names.hbase_table(table)].append(TPut(row=names.row_key(table, row), columnValues=values))
    return puts


def _shadow_puts(names: HbaseNames, committed: Sequence[tuple[Prepared, int]]) -> dict[bytes, list[Any]]:
    puts: defaultdict[bytes, list[Any]] = defaultdict(list)
    for prepared, commit_ts in committed:
        start, value = _start(prepared), encode_timestamp(commit_ts)
        for (table, row), cells in prepared.writes.items():
            values = [TColumnValue(column.family, column.shadow, value, start) for column, _ in cells]
            values.append(TColumnValue(ORIGIN_FAMILY, _ORIGIN_SHADOW, value, start))
            puts[names.hbase_table(table)].append(TPut(row=names.row_key(table, row), columnValues=values))
    return puts


def _chunks(puts: list[Any]) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    size = 0
    for put in puts:
        weight = sum(len(cell.value) for cell in put.columnValues)
        if chunk and size + weight > _BYTES_PER_CALL:
            yield chunk
            chunk, size = [], 0
        chunk.append(put)
        size += weight
    if chunk:
        yield chunk


def _start(prepared: Prepared) -> int:
    if prepared.start is None:
        raise AssertionError(f"transaction at {prepared.ts} has no start timestamp yet")
    return prepared.start


def _first(pair: tuple[int, Cell]) -> int:
    return pair[0]
