"""Low watermark, pins and the sweep of tables with history: what may be forgotten, and when.

A version may go only if it is beyond the `versions_kept` newest of its cell AND was superseded at or before the low
watermark. The watermark follows the TSO's time at a distance of `max_transaction_age_s`, never passes a live pin, and
never goes back; it is published before anything is deleted, and readers look at it after they have read.

This is our watermark, for our readers. Omid's own (in its commit table) moves when the TSO's conflict map overflows or
the TSO is restarted, and rules two things here: only at or below it, or before the TSO's epoch, can a transaction
without a commit never commit any more, so that its cells may go. Nobody but the TSO may move it: a transaction that is
forbidden to commit above it could still be told that it has committed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import msgspec

from storage_repo.api import Limits
from storage_repo.hbase._cells import NEVER
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase._history import Versions, locate_commits, versions_of
from storage_repo.hbase._read import Reader, raw_cells
from storage_repo.hbase._schema import ALL_VERSIONS
from storage_repo.hbase._state import State, StateRow, Watermark, max_age_us
from storage_repo.hbase._time import Oracle
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import ORIGIN_COLUMN, ORIGIN_FAMILY, HbaseNames
from storage_repo.hbase.thrift2 import TColumn, TDelete, TDeleteType, TScan, TTimeRange
from storage_repo.omid.layout import is_tombstone, shadow_qualifier, start_of

_ROWS_PER_CHUNK = 100
"""Rows read at once with all their versions: a few megabytes at most."""


class Collector:
    """Housekeeping of one store for one repo."""

    def __init__(
        self,
        connections: HbaseConnections,
        names: HbaseNames,
        reader: Reader,
        commit_table: CommitTable,
        oracle: Oracle,
        state: StateRow,
        watermark: Watermark,
        limits: Limits,
    ) -> None:
        self._connections, self._names, self._reader = connections, names, reader
        self._commit_table, self._oracle, self._state, self._watermark = commit_table, oracle, state, watermark
        self._kept = limits.versions_kept
        self._max_age_us = max_age_us(limits)
        self._tables = [table for table in names.tables if names.schema_of(table).layout.history]
        self._lock = threading.Lock()
        self._table = 0  # where the sweep goes on: the table's place, and the row
        self._row = b""
        self._swept_upto = -1
        self.dropped = 0

    def collect(self, max_cells: int | None, max_rows: int | None = None) -> int:
        """Advance the watermark and sweep; return how many versions went.

        `max_cells` bounds the superseded versions looked at, `max_rows` the rows, of one pass at most.
        """
        with self._lock:
            now = self._oracle.begin()
            low = self._advance(now)
            dead_below = max(self._commit_table.low_watermark() + 1, self._reader.epoch)
            dropped, left, rows_left = 0, max_cells, max_rows
            while (
                self._tables
                and self._swept_upto < low
                and (left is None or left > 0)
                and (rows_left is None or rows_left > 0)
            ):
                gone, looked_at, rows = self._sweep(now, low, dead_below, left, rows_left)
                dropped += gone
                if left is not None:
                    left -= looked_at
                if rows_left is not None:
                    rows_left -= rows
                if self._table == len(self._tables):
                    self._table, self._swept_upto = 0, low
            self.dropped += dropped
            return dropped

    def _advance(self, now: int) -> int:
        """Move the low watermark as far as ages and pins allow; drop pins that have run out."""
        now_us = self._oracle.timeline.us(now)

        def decide(state: State) -> State:
            pins = {name: pin for name, pin in state.pins.items() if now_us < pin.until_us}
            horizon = self._oracle.timeline.latest(now_us - max(self._max_age_us, state.max_age_us))
            low = max(state.low_watermark, min([horizon, *(pin.ts for pin in pins.values())]))
            if low == state.low_watermark and len(pins) == len(state.pins):
                return state
            return msgspec.structs.replace(state, low_watermark=low, pins=pins)

        low = self._state.change(decide).low_watermark
        self._watermark.moved_to(low)
        return low

    def _sweep(
        self, now: int, low: int, dead_below: int, budget: int | None, max_rows: int | None
    ) -> tuple[int, int, int]:
        """Sweep some rows; return how many versions went, and how many superseded ones and rows were looked at."""
        table = self._tables[self._table]
        rows = min(wanted for wanted in (_ROWS_PER_CHUNK, budget, max_rows) if wanted is not None)
        families = [*(family.encode() for family in self._names.families(table)), ORIGIN_FAMILY]
        scan = TScan(
            startRow=self._row,
            columns=[TColumn(family) for family in families],
            timeRange=TTimeRange(0, now),
            maxVersions=ALL_VERSIONS,
            caching=rows,
            limit=rows,
        )
        results = self._connections.scan(self._names.hbase_table(table), scan, rows)
        found = [versions_of(table, r.row, raw_cells(r), self._reader, self._names) for r in results]
        locate_commits(found, self._reader)
        deletes: list[Any] = []
        gone = looked_at = 0
        finished = len(results) < rows
        for row in found:
            if budget is not None and looked_at >= budget:
                self._row, finished = row.key, False
                break
            self._row = row.key + b"\0"
            verdict = _Verdict(row, self._kept, low, dead_below, self._names)
            looked_at += verdict.superseded
            gone += verdict.dropped
            late = {start for start in verdict.unborn if not self._commit_table.invalidate(start)}
            if dead := [(column, version) for column, version in verdict.dead if start_of(version) not in late]:
                deletes.append(_delete(row.key, dead))
        if deletes:
            self._connections.delete(self._names.hbase_table(table), deletes)
        if finished:
            self._table, self._row = self._table + 1, b""
        return gone, looked_at, len(found)


class _Verdict:
    """Which versions of a row may go."""

    def __init__(self, row: Versions, kept: int, low: int, dead_below: int, names: HbaseNames) -> None:
        self.dead: list[tuple[bytes, int]] = []
        """(column, version)s."""
        self.unborn: set[int] = set()
        """Starts of transactions that never committed and, once forbidden to, never will."""
        self.dropped = self.superseded = 0
        self._row, self._kept, self._low, self._dead_below = row, kept, low, dead_below
        alive: set[int] = set()
        marked = {names.seen[column].family for column in row.cells if column.endswith(b":")}
        for column in row.cells:
            if column == ORIGIN_COLUMN:
                continue
            if names.seen[column].family in marked:  # a Java client deleted the family: left to Omid's own collector
                alive.update(start_of(version) for version, _ in row.cells[column])
            else:
                self._judge(column, alive)
        for version, _ in row.cells.get(ORIGIN_COLUMN, ()):
            start = start_of(version)
            commit_ts = row.commits[start]
            if start not in alive and (commit_ts <= low or (commit_ts == NEVER and start < dead_below)):
                self.dead.append((ORIGIN_COLUMN, version))

    def _judge(self, column: bytes, alive: set[int]) -> None:
        committed = []
        for version, stored in self._row.cells[column]:
            start = start_of(version)
            commit_ts = self._row.commits[start]
            if commit_ts != NEVER:
                committed.append((commit_ts, version, stored))
            elif start < self._dead_below:
                self.dead.append((column, version))
                self.unborn.add(start)
            else:
                alive.add(start)
        committed.sort(reverse=True)
        self.superseded += max(0, len(committed) - 1)
        going = [
            rank >= self._kept and committed[rank - 1][0] <= self._low if rank else False
            for rank in range(len(committed))
        ]
        if committed and all(going[1:]) and is_tombstone(committed[0][2]) and committed[0][0] <= self._low:
            going[0] = True  # it has nothing left to hide
        for (_, version, _), goes in zip(committed, going, strict=True):
            if goes:
                self.dead.append((column, version))
                self.dropped += 1
            else:
                alive.add(start_of(version))


def _delete(key: bytes, dead: Iterable[tuple[bytes, int]]) -> Any:
    """Return one atomic deletion of versions with their shadow cells."""
    columns = []
    for column, version in dead:
        family, _, qualifier = column.partition(b":")
        columns.append(TColumn(family, qualifier, version))
        columns.append(TColumn(family, shadow_qualifier(qualifier), version))
    return TDelete(row=key, columns=columns, deleteType=TDeleteType.DELETE_COLUMN)
