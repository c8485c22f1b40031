"""What a transaction wrote, found at a snapshot: cells with their version and commit timestamp."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from storage_repo.api import Row
from storage_repo.hbase.names import SeenColumns
from storage_repo.hbase.values import decode_value
from storage_repo.omid.layout import LEGACY_TOMBSTONE, VERSIONS_PER_TRANSACTION, decode_timestamp

NEVER = 1 << 63
"""Commit timestamp of what is not committed: later than every snapshot."""

RawCell = tuple[bytes, int, bytes]
"""("family:qualifier", version, stored value), as HBase gives it."""


class Visible(NamedTuple):
    """The version of a cell that a snapshot sees, tombstones included."""

    version: int
    commit_ts: int
    stored: bytes


VisibleRow = dict[str, Visible]
"""Column -> what is visible; a Java client's mark of a deleted family has the column "family:"."""


@dataclass(slots=True)
class Probe:
    """A version of a cell of which more has to be found out."""

    table: str
    key: bytes
    into: VisibleRow
    """Where the visible version goes."""
    column: bytes
    version: int
    stored: bytes
    commit_ts: int | None
    """None: to be located; else it is too new for the snapshot, and an older version is wanted."""
    depth: int = 2
    """How many versions to ask for when older ones are wanted."""


class KnownCommits(dict[int, int]):
    """Start -> commit timestamp of transactions that this process has learnt of; forgets when full."""

    def learn(self, start: int, commit_ts: int) -> None:
        """Remember a commit."""
        if len(self) >= _REMEMBERED:
            self.clear()  # they are found again in HBase
        self[start] = commit_ts


_REMEMBERED = 100_000
"""About 15 MB; a commit is looked up here only until its shadow cells are read."""


def sort_out(
    table: str,
    key: bytes,
    cells: Iterable[RawCell],
    ts: int,
    known: Mapping[int, int],
    seen: SeenColumns,
) -> tuple[VisibleRow, list[Probe]]:
    """Return what is visible at `ts` of a row's cells, one version per column, and what is still to be found out.

    A shadow cell anywhere in the row tells the commit timestamp of all cells that its transaction wrote there.
    """
    row: VisibleRow = {}
    data: list[tuple[str, bytes, int, bytes]] = []
    commits: dict[int, int] = {}
    for column, version, value in cells:
        name, is_shadow, _ = seen[column]
        if is_shadow:
            commits[version - version % VERSIONS_PER_TRANSACTION] = decode_timestamp(value)
        else:
            data.append((name, column, version, value))
    probes = []
    for name, column, version, value in data:
        start = version - version % VERSIONS_PER_TRANSACTION
        commit_ts = commits.get(start)
        if commit_ts is None:
            commit_ts = known.get(start)
        if commit_ts is not None and commit_ts <= ts:
            row[name] = Visible(version, commit_ts, value)
        else:
            probes.append(Probe(table, key, row, column, version, value, commit_ts))
    return row, probes


def values_of(visible: VisibleRow) -> Row:
    """Return the values of a row's cells: without tombstones, and without what a deleted family hides."""
    row: Row = {}
    hidden: dict[str, int] | None = None
    for name in visible:
        if name[-1] == ":":
            hidden = {n[:-1]: cell.commit_ts for n, cell in visible.items() if n[-1] == ":"}
            break
    for name, (version, _, stored) in visible.items():
        if not stored or stored == LEGACY_TOMBSTONE:
            continue
        if hidden is not None and version <= hidden.get(name.partition(":")[0], -1):
            continue
        row[name] = decode_value(stored)
    return row
