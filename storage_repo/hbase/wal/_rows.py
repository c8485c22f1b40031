"""Reads from HBase what one transaction left in its rows, and writes the shadow cells that it did not."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.thrift2 import TColumnValue, TGet, TPut, TTimeRange
from storage_repo.hbase.wal._cells import DATA, FAMILY, ORIGIN, SHADOW, RowEdits, RowKey, TableColumns
from storage_repo.omid import layout
from storage_repo.omid.layout import VERSIONS_PER_TRANSACTION as VERSIONS
from storage_repo.omid.layout import CommitEntry

Cell = tuple[bytes, bytes, int]
"""Family, qualifier of the data cell, version."""

_PER_CALL = 500
"""Rows per round trip: some 30 ms of the Thrift server's time."""


@dataclass(slots=True)
class StoredRow:
    """The cells of one transaction in a row, of all columns, as HBase has them now."""

    cells: set[Cell] = field(default_factory=set)
    shadows: dict[Cell, int] = field(default_factory=dict)
    """Data cell -> commit timestamp in its shadow cell. Some have no data cell (family deletes)."""
    origin: bytes | None = None

    @property
    def commit_ts(self) -> int | None:
        """Commit timestamp, if the row has any shadow cell of the transaction."""
        return next(iter(self.shadows.values()), None)

    def edits(self, columns: TableColumns) -> RowEdits:
        """Return the same as edits of watched columns."""
        edits = RowEdits(0)
        edits.commit_ts, edits.origin = self.commit_ts, self.origin
        for place, into in ((self.cells, edits.columns), (self.shadows, edits.shadows)):
            for family, qualifier, _ in place:
                role, name = columns.role(family, qualifier)
                if role in (DATA, FAMILY, SHADOW):
                    into.add(name)
        return edits


class Rows:
    """HBase's rows and commit table, in batches. Safe for threads; all errors are StoreUnavailable."""

    def __init__(self, connections: HbaseConnections, tables: Mapping[bytes, TableColumns]) -> None:
        self._connections, self._tables = connections, tables
        self._commit_table = CommitTable(connections)
        self.malformed = 0
        """Shadow cells and commit-table entries met that are none of Omid's; they count as not there."""

    def read(self, keys: Collection[RowKey]) -> dict[RowKey, StoredRow]:
        """Return what transactions left in rows; an empty row where there is nothing (any more)."""
        found: dict[RowKey, StoredRow] = {}
        for table, of_table in _by_table(keys).items():
            for at in range(0, len(of_table), _PER_CALL):
                part = of_table[at : at + _PER_CALL]
                gets = [
                    TGet(row=row, timeRange=TTimeRange(start, start + VERSIONS), maxVersions=VERSIONS)
                    for _, row, start in part
                ]
                for key, result in zip(part, self._connections.get(table, gets), strict=True):
                    found[key] = self._row(self._tables[table], result.columnValues or ())
        return found

    def commits(self, starts: Iterable[int]) -> dict[int, CommitEntry]:
        """Return what the commit table says of transactions; it knows only those that did not clean up."""
        return self._lookup(sorted(set(starts)))

    def forbid(self, starts: Iterable[int]) -> set[int]:
        """Forbid those transactions to commit that the TSO refuses by now, and return them; others may still commit.

        Omid's compaction does the same before it drops a cell. One of them may have been committed and finished since
        it was looked up: then it has shadow cells, which are what counts.
        """
        low = self._commit_table.low_watermark()
        return {start for start in set(starts) if start <= low and self._commit_table.invalidate(start)}

    def heal(self, commits: Mapping[RowKey, tuple[StoredRow, int]]) -> int:
        """Write the missing shadow cells of committed transactions, each row in one step; return how many cells."""
        puts: dict[bytes, list[object]] = {}
        cells = 0
        for (table, row, _), (stored, commit_ts) in commits.items():
            missing = sorted(stored.cells - stored.shadows.keys())
            if missing:
                cells += len(missing)
                value = layout.encode_timestamp(commit_ts)
                values = [
                    TColumnValue(family, layout.shadow_qualifier(qualifier), value, version)
                    for family, qualifier, version in missing
                ]
                puts.setdefault(table, []).append(TPut(row, values))
        for table, of_table in puts.items():
            for at in range(0, len(of_table), _PER_CALL):
                self._connections.put(table, of_table[at : at + _PER_CALL])
        return cells

    def _lookup(self, starts: list[int]) -> dict[int, CommitEntry]:
        """Look up all at once; where an entry is malformed, the halves, until it is alone."""
        try:
            return self._commit_table.lookup(starts)
        except layout.MalformedCell as error:
            if len(starts) == 1:
                self._met_malformed(error, starts[0])
                return {}
        middle = len(starts) // 2
        return self._lookup(starts[:middle]) | self._lookup(starts[middle:])

    def _met_malformed(self, error: layout.MalformedCell, start: int) -> None:
        self.malformed += 1
        structlog.get_logger().error("malformed_cell", start=start, error=str(error))

    def _row(self, columns: TableColumns, values: Sequence[object]) -> StoredRow:
        stored = StoredRow()
        for value in values:
            family, qualifier, version = value.family, value.qualifier, value.timestamp  # type: ignore[attr-defined]
            if layout.is_shadow(qualifier):
                try:
                    commit_ts = layout.decode_timestamp(value.value)  # type: ignore[attr-defined]
                except layout.MalformedCell as error:  # as if it were not there: it is written anew, at its version
                    self._met_malformed(error, layout.start_of(version))
                    continue
                stored.shadows[family, layout.data_qualifier(qualifier), version] = commit_ts
                continue
            stored.cells.add((family, qualifier, version))
            if columns.role(family, qualifier)[0] == ORIGIN:
                stored.origin = value.value  # type: ignore[attr-defined]
        return stored


def _by_table(keys: Iterable[RowKey]) -> dict[bytes, list[RowKey]]:
    grouped: dict[bytes, list[RowKey]] = {}
    for key in keys:
        grouped.setdefault(key[0], []).append(key)
    return grouped
