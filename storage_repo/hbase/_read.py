"""Snapshot reads of many rows (Omid's algorithm): the common case is one round trip per table.

1. Read the newest version of every wanted cell, with its shadow cell. A cell whose shadow cell is there, and old enough
   for the snapshot, is done: that is nearly all of them. Where this process remembers the commits of most of what it
   reads, it asks for the cells alone, and with shadow cells only for rows with a commit that it does not remember.
2. For the rest, one batch each: ask the commit table; then for the shadow cell at exactly that version, because its
   writer may just have finished (it writes shadow cells first and then removes the entry); then, for transactions of
   an earlier TSO, forbid them to commit. Whoever is found in none of these was not committed when this snapshot was
   taken: the TSO gives out a timestamp only after all smaller commits are in the table.
3. Cells too new for the snapshot (committed or even begun after it): the next older versions, again in one batch,
   until one is visible.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from storage_repo.hbase._background import Background
from storage_repo.hbase._cells import NEVER, KnownCommits, Probe, RawCell, Recall, Visible, VisibleRow, sort_out
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase._shared_reads import SharedReads
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import HbaseNames, KeyRange
from storage_repo.hbase.thrift2 import TColumn, TColumnValue, TGet, TPut, TScan, TTimeRange
from storage_repo.omid.layout import (
    decode_timestamp,
    encode_timestamp,
    shadow_qualifier,
    start_of,
)

_ROWS_PER_CALL = 500
"""Rows in one call: some megabytes at most with servable documents of some KB."""

_DEEPEST = 64
"""Versions asked for at once at most, when many in a row are too new."""

Asked = Mapping[bytes, VisibleRow]
"""Row key -> where its visible cells go."""


class Reader:
    """Reads at snapshots; shared by all snapshots of a repo."""

    def __init__(
        self,
        connections: HbaseConnections,
        names: HbaseNames,
        commit_table: CommitTable,
        background: Background,
        epoch: Callable[[], int],
    ) -> None:
        self._connections, self._names, self._commit_table = connections, names, commit_table
        self._background, self._epoch = background, epoch
        self._shared = SharedReads(connections)
        self.known = KnownCommits()
        self._recalls: defaultdict[str, Recall] = defaultdict(Recall)
        self._lock = threading.Lock()
        self.counters: Counter[str] = Counter()

    @property
    def epoch(self) -> int:
        """Transactions begun before this cannot commit any more; -1 if nobody knows."""
        return self._epoch()

    def rows(self, ts: int, asked: Mapping[str, Asked], columns: Mapping[str, Collection[str] | None]) -> None:
        """Fill in what is visible at `ts` of the rows of several tables; `columns` has None for whole rows."""
        jobs = [
            (table, keys[at : at + _ROWS_PER_CALL])
            for table, rows in asked.items()
            for keys in [list(rows)]
            for at in range(0, len(keys), _ROWS_PER_CALL)
            if columns[table] is None or columns[table]
        ]
        if not jobs:
            return
        wanted = {table: self._wanted(table, columns[table]) for table in asked}

        def read(job: tuple[str, list[bytes]]) -> list[Probe]:
            table, keys = job
            recall = self._recalls[table]
            if columns[table] is None or not recall.is_likely():
                probes, remembered = self._fetch(ts, table, keys, wanted[table], asked[table])
                recall.note(remembered)
                return probes
            without = [key for key in wanted[table] if not self._names.seen[key].is_shadow]
            probes, _ = self._fetch(ts, table, keys, without, asked[table])
            forgotten = {probe.key for probe in probes if probe.commit_ts is None}
            recall.note(not forgotten)
            self.count(recalled_reads=1, recalled_in_vain=bool(forgotten))
            if forgotten:
                again, _ = self._fetch(ts, table, list(forgotten), wanted[table], asked[table])
                probes = [probe for probe in probes if probe.key not in forgotten] + again
            return probes

        self.settle(ts, [probe for probes in self._connections.in_parallel(read, jobs) for probe in probes])

    def _fetch(
        self, ts: int, table: str, keys: Sequence[bytes], columns: Sequence[bytes], rows: Asked
    ) -> tuple[list[Probe], bool]:
        """Fill in what is visible at first sight; return what is not, and whether all commits were remembered."""
        found = self._shared.rows(self._names.hbase_table(table), keys, columns, ts + 1)
        seen, known = self._names.seen, self.known
        probes: list[Probe] = []
        remembered = True
        for result in found:
            cells = ((column, cell.timestamp, cell.value) for column, cell in result.columns.items())
            row, more, commits = sort_out(table, result.row, cells, ts, known, seen)
            if known.learn_all(commits) or any(probe.commit_ts is None for probe in more):
                remembered = False
            into = rows[result.row]
            into.update(row)
            for probe in more:
                probe.into = into
            probes += more
        return probes, remembered

    def scan(
        self, ts: int, table: str, over: KeyRange, columns: Collection[str] | None, rows: int
    ) -> tuple[list[tuple[bytes, VisibleRow]], bytes | None]:
        """Return what is visible in the first `rows` rows of a range, and the key to go on from (None: at the end)."""
        scan = TScan(
            startRow=over.start,
            stopRow=over.stop,
            columns=[_thrift2_column(c) for c in self._wanted(table, columns)],
            timeRange=TTimeRange(0, ts + 1),
            maxVersions=1,
            caching=rows,
            limit=rows,
        )
        results = self._connections.scan(self._names.hbase_table(table), scan, rows)
        found: list[tuple[bytes, VisibleRow]] = []
        probes: list[Probe] = []
        for result in results:
            row, more, _ = sort_out(table, result.row, raw_cells(result), ts, self.known, self._names.seen)
            found.append((result.row, row))
            probes += more
        self.settle(ts, probes)
        return found, results[-1].row + b"\0" if len(results) == rows else None

    def settle(self, ts: int, probes: list[Probe]) -> None:
        """Find out about all versions left open, and fill in the visible ones."""
        if probes:
            self.count(slow_reads=1, slow_cells=len(probes))
        while probes:
            commits = self.locate([probe for probe in probes if probe.commit_ts is None])
            older = []
            for probe in probes:
                commit_ts = probe.commit_ts
                if commit_ts is None:
                    commit_ts = commits[start_of(probe.version)]
                if commit_ts <= ts:
                    name = self._names.seen[probe.column].name
                    probe.into[name] = Visible(probe.version, commit_ts, probe.stored)
                else:
                    older.append(probe)
            probes = self._older(ts, older)

    def locate(self, probes: Sequence[Probe]) -> dict[int, int]:
        """Return start -> commit timestamp of the transactions of these cells; NEVER for those not committed (yet)."""
        commits: dict[int, int] = {}
        open_: dict[int, list[Probe]] = defaultdict(list)
        for probe in probes:
            open_[start_of(probe.version)].append(probe)
        self._from_table(open_, commits)
        self._from_shadow_cells(open_, commits)
        epoch = self._epoch() if open_ else -1
        if old := [start for start in open_ if start < epoch]:
            for start in old:  # rare: crashed clients of a TSO that is gone
                if self._commit_table.invalidate(start):
                    self.count(invalidated=1)
            # Look again. The shadow cell first: a mark in the table says nothing of a transaction that had finished,
            # its entry removed, before the mark came. Then as before, for one that committed before we forbade it.
            again = {start: open_[start] for start in old}
            self._from_shadow_cells(again, commits)
            self._from_table(again, commits)
            self._from_shadow_cells(again, commits)
        for start in open_:
            commits.setdefault(start, NEVER)
        return commits

    def count(self, **increments: int) -> None:
        """Add to the counters."""
        with self._lock:
            for name, increment in increments.items():
                self.counters[name] += increment

    def _from_table(self, open_: dict[int, list[Probe]], commits: dict[int, int]) -> None:
        for start, entry in self._commit_table.lookup(open_.keys()).items():
            probes = open_.pop(start)
            if entry.commit_ts is None:
                commits[start] = NEVER
                continue
            commits[start] = entry.commit_ts
            self.known.learn(start, entry.commit_ts)
            self._heal(probes, entry.commit_ts)

    def _from_shadow_cells(self, open_: dict[int, list[Probe]], commits: dict[int, int]) -> None:
        gets: defaultdict[str, list[Any]] = defaultdict(list)
        for probes in open_.values():
            for table, key, version, columns in _by_version(probes):
                wanted = [TColumn(family, shadow_qualifier(qualifier)) for family, qualifier in columns]
                gets[table].append(TGet(row=key, columns=wanted, timestamp=version, maxVersions=1))
        for result in self._get(gets):
            for _, version, value in raw_cells(result):
                start = start_of(version)
                if open_.pop(start, None) is not None:
                    commits[start] = decode_timestamp(value)
                    self.known.learn(start, commits[start])

    def _heal(self, probes: Sequence[Probe], commit_ts: int) -> None:
        """Have the shadow cells written that their transaction's client has not written (yet)."""
        value = encode_timestamp(commit_ts)
        for table, key, version, columns in _by_version(probes):
            cells = [TColumnValue(family, shadow_qualifier(q), value, version) for family, q in columns]
            self._background.write_shadow_cells({self._names.hbase_table(table): [TPut(row=key, columnValues=cells)]})
            self.count(healed_cells=len(cells))

    def _older(self, ts: int, probes: Sequence[Probe]) -> list[Probe]:
        """Fill in what is visible of the next older versions; return probes for what is still open."""
        grouped: defaultdict[tuple[str, bytes, int, int], list[Probe]] = defaultdict(list)
        for probe in probes:
            grouped[probe.table, probe.key, start_of(probe.version), probe.depth].append(probe)
        gets: defaultdict[str, list[Any]] = defaultdict(list)
        askers: defaultdict[str, list[list[Probe]]] = defaultdict(list)
        for (table, key, below, depth), group in grouped.items():
            wanted = []
            for probe in group:
                family, _, qualifier = probe.column.partition(b":")
                wanted += [TColumn(family, qualifier), TColumn(family, shadow_qualifier(qualifier))]
            gets[table].append(TGet(row=key, columns=wanted, timeRange=TTimeRange(0, below), maxVersions=depth))
            askers[table].append(group)
        self.count(older_versions=len(probes))
        following: list[Probe] = []
        in_order = [group for groups in askers.values() for group in groups]
        for result, group in zip(self._get(gets), in_order, strict=True):
            cells = list(raw_cells(result))
            commits = {start_of(v): decode_timestamp(x) for c, v, x in cells if self._names.seen[c].is_shadow}
            for probe in group:
                versions = [(v, x) for c, v, x in cells if c == probe.column]
                following += self._next(ts, probe, versions, commits)
        return following

    def _next(
        self, ts: int, probe: Probe, versions: Sequence[tuple[int, bytes]], commits: Mapping[int, int]
    ) -> Iterator[Probe]:
        depth = min(2 * probe.depth, _DEEPEST)
        for version, stored in versions:
            commit_ts = commits.get(start_of(version), self.known.get(start_of(version)))
            if commit_ts is not None and commit_ts <= ts:
                probe.into[self._names.seen[probe.column].name] = Visible(version, commit_ts, stored)
                return
            if commit_ts is None:
                yield Probe(probe.table, probe.key, probe.into, probe.column, version, stored, None, depth)
                return
        if len(versions) == probe.depth:
            version, stored = versions[-1]
            yield Probe(probe.table, probe.key, probe.into, probe.column, version, stored, NEVER, depth)

    def _get(self, gets: Mapping[str, list[Any]]) -> Iterable[Any]:
        """Return the results of gets on several tables, table by table."""
        tables = list(gets)
        if not tables:
            return ()
        found = self._connections.in_parallel(
            lambda table: self._connections.get(self._names.hbase_table(table), gets[table]), tables
        )
        return (result for results in found for result in results)

    def _wanted(self, table: str, columns: Collection[str] | None) -> list[bytes]:
        if columns is None:
            return [family.encode() for family in self._names.families(table)]
        wanted: dict[bytes, None] = {}
        for name in columns:
            column = self._names.column(table, name)
            wanted[column.key] = wanted[column.shadow_key] = None
            if table in self._names.may_have_marks:
                wanted[column.family + b":"] = None  # a deleted family's: rare, its shadow cell is asked for when met
        return list(wanted)


def raw_cells(result: Any) -> Iterator[RawCell]:
    """Yield the cells of a TResult."""
    for cell in result.columnValues:
        yield cell.family + b":" + cell.qualifier, cell.timestamp, cell.value


def _thrift2_column(column: bytes) -> Any:
    family, colon, qualifier = column.partition(b":")
    return TColumn(family, qualifier) if colon else TColumn(family)


def _by_version(probes: Iterable[Probe]) -> Iterator[tuple[str, bytes, int, list[tuple[bytes, bytes]]]]:
    """Yield (table, key, version, (family, qualifier)s) of cells."""
    grouped: defaultdict[tuple[str, bytes, int], list[tuple[bytes, bytes]]] = defaultdict(list)
    for probe in probes:
        family, _, qualifier = probe.column.partition(b":")
        grouped[probe.table, probe.key, probe.version].append((family, qualifier))
    for (table, key, version), columns in grouped.items():
        yield table, key, version, columns
