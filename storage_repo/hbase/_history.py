"""All versions of a row's cells: what the debug UI shows, and what the sweep judges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from storage_repo._origin import decode_origin
from storage_repo.api import CellVersion, Origin, RowId
from storage_repo.hbase._cells import NEVER, Probe, RawCell
from storage_repo.hbase._read import Reader, raw_cells
from storage_repo.hbase._schema import ALL_VERSIONS
from storage_repo.hbase._time import Oracle
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import ORIGIN_COLUMN, ORIGIN_FAMILY, ORIGIN_QUALIFIER, HbaseNames
from storage_repo.hbase.thrift2 import TColumn, TGet, TTimeRange
from storage_repo.hbase.values import decode_value
from storage_repo.omid.layout import decode_timestamp, is_tombstone, shadow_qualifier, start_of

_ROWS_PER_CALL = 500
"""Rows of one call: some cells of a few bytes each, with the versions that are kept."""


@dataclass(slots=True)
class Versions:
    """Every version of every data cell of a row."""

    table: str
    key: bytes
    cells: dict[bytes, list[tuple[int, bytes]]] = field(default_factory=lambda: defaultdict(list))
    """Column -> (version, stored value), newest first."""
    commits: dict[int, int] = field(default_factory=dict)
    """Start -> commit timestamp, as far as shadow cells tell."""


def versions_of(table: str, key: bytes, cells: Iterable[RawCell], reader: Reader, names: HbaseNames) -> Versions:
    """Sort a row's cells."""
    found = Versions(table, key)
    for column, version, value in cells:
        if names.seen[column].is_shadow:
            found.commits[start_of(version)] = decode_timestamp(value)
        else:
            found.cells[column].append((version, value))
    for versions in found.cells.values():
        for version, _ in versions:
            if (start := start_of(version)) not in found.commits and start in reader.known:
                found.commits[start] = reader.known[start]
    return found


def locate_commits(rows: Sequence[Versions], reader: Reader) -> None:
    """Find out about the transactions that shadow cells do not tell of; NEVER for those not committed (yet)."""
    probes = [
        Probe(row.table, row.key, {}, column, version, stored, None)
        for row in rows
        for column, versions in row.cells.items()
        for version, stored in versions
        if start_of(version) not in row.commits
    ]
    if probes:
        commits = reader.locate(probes)
        for row in rows:
            for versions in row.cells.values():
                for version, _ in versions:
                    row.commits.setdefault(start_of(version), commits.get(start_of(version), NEVER))


class Historian:
    """Reads histories."""

    def __init__(self, connections: HbaseConnections, names: HbaseNames, reader: Reader, oracle: Oracle) -> None:
        self._connections, self._names, self._reader, self._oracle = connections, names, reader, oracle

    def history(self, table: str, row: str, column: str | None) -> dict[str, list[CellVersion]]:
        """Return the versions per column, newest first."""
        names = self._names
        key = names.row_key(table, row)
        if column is None:
            wanted = [TColumn(family.encode()) for family in names.families(table)]
        else:
            wanted = self._of_columns(table, [column])
        wanted += [TColumn(ORIGIN_FAMILY, ORIGIN_QUALIFIER)]
        get = TGet(row=key, columns=wanted, timeRange=TTimeRange(0, self._oracle.begin()), maxVersions=ALL_VERSIONS)
        result = self._connections.get(names.hbase_table(table), [get])[0]
        found = versions_of(table, key, raw_cells(result), self._reader, names)
        origins = {start_of(v): decode_origin(stored) for v, stored in found.cells.pop(ORIGIN_COLUMN, ())}
        locate_commits([found], self._reader)
        history = {}
        deleted: dict[str, list[int]] = {}
        for encoded, versions in found.cells.items():
            seen = names.seen[encoded]
            if seen.name[-1] == ":":
                deleted[seen.family] = [v for v, _ in versions if found.commits[start_of(v)] != NEVER]
        for encoded, versions in found.cells.items():
            seen = names.seen[encoded]
            if seen.name[-1] != ":":
                rows = [*versions, *((v, b"") for v in deleted.get(seen.family, ()) if v > versions[-1][0])]
                if listed := self._listed(rows, found.commits, origins):
                    history[seen.name] = listed
        return history

    def changed_since(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]], since_us: int) -> set[RowId]:
        """Return the rows that were changed in some columns, by one read per table and some hundred rows.

        All versions of these cells are read: they bear the time at which their writer began, and nothing bounds how
        long it took from there to its commit, so that a range of times would leave some out.
        """
        names, before, found = self._names, TTimeRange(0, self._oracle.begin()), list[tuple[RowId, Versions]]()
        by_table: defaultdict[str, list[str]] = defaultdict(list)
        for table, row in rows:
            by_table[table].append(row)
        for table, its_rows in by_table.items():
            wanted = self._of_columns(table, columns[table])
            for at in range(0, len(its_rows), _ROWS_PER_CALL):
                some = its_rows[at : at + _ROWS_PER_CALL]
                keys = [names.row_key(table, row) for row in some]
                gets = [TGet(row=key, columns=wanted, timeRange=before, maxVersions=ALL_VERSIONS) for key in keys]
                results = self._connections.get(names.hbase_table(table), gets)
                for row, key, result in zip(some, keys, results, strict=True):
                    found.append(((table, row), versions_of(table, key, raw_cells(result), self._reader, names)))
        locate_commits([versions for _, versions in found], self._reader)
        return {row_id for row_id, versions in found if self._newest_us(versions) >= since_us}

    def _of_columns(self, table: str, columns: Iterable[str]) -> list[TColumn]:
        """Return what is asked of HBase for columns: cells, shadow cells, and the marks of families' deletes."""
        asked = [self._names.column(table, column) for column in columns]
        cells = {(column.family, part): None for column in asked for part in (column.qualifier, column.shadow)}
        cells |= {(column.family, mark): None for column in asked for mark in (b"", shadow_qualifier(b""))}
        return [TColumn(family, qualifier) for family, qualifier in cells]

    def _newest_us(self, found: Versions) -> int:
        """Return when the newest version of a row was committed; -1 if there is none."""
        committed = [found.commits[start_of(version)] for versions in found.cells.values() for version, _ in versions]
        newest = max((commit for commit in committed if commit != NEVER), default=None)
        return -1 if newest is None else self._oracle.timeline.us(newest)

    def _listed(
        self, versions: Iterable[tuple[int, bytes]], commits: Mapping[int, int], origins: Mapping[int, Origin]
    ) -> list[CellVersion]:
        committed = sorted(
            ((commits[start_of(version)], start_of(version), stored) for version, stored in versions), reverse=True
        )
        return [
            CellVersion(
                commit_ts,
                None if is_tombstone(stored) else decode_value(stored),
                self._oracle.timeline.us(commit_ts),
                origins.get(start),
            )
            for commit_ts, start, stored in committed
            if commit_ts != NEVER
        ]
