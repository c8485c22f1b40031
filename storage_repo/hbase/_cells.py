"""What a transaction wrote, found at a snapshot: cells with their version and commit timestamp."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
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
    """Start -> commit timestamp of transactions that this process has learnt of; a commit never changes."""

    def learn(self, start: int, commit_ts: int) -> None:
        """Remember a commit, and forget the half learnt first when there are too many: HBase still tells of them."""
        if len(self) >= _REMEMBERED:
            for oldest in list(islice(self, _REMEMBERED // 2)):
                self.pop(oldest, None)
        self[start] = commit_ts

    def learn_all(self, commits: Mapping[int, int]) -> bool:
        """Remember commits; tell whether one of them was new."""
        new = [start for start in commits if start not in self]
        for start in new:
            self.learn(start, commits[start])
        return bool(new)


_REMEMBERED = 100_000
"""About 15 MB."""


class Recall:
    """Is it worth asking for cells without their shadow cells, because their commits are remembered? One per table.

    Asking so spares HBase a tenth to two fifths of its work, and takes a second call if a commit was not remembered: so
    only where most calls would have done without shadow cells. That is so for rows that are read often and seldom
    change, and for rows that only this process changes.
    """

    def __init__(self) -> None:
        self._share = 0.0

    def is_likely(self) -> bool:
        """Tell whether all commits of the next call's cells are probably remembered."""
        return self._share >= _LIKELY

    def note(self, remembered: bool) -> None:
        """Take note of whether all commits of a call's cells were. Of two notes at the same time one may get lost."""
        self._share += (remembered - self._share) / _CALLS_NOTED


_LIKELY = 0.8
"""A second call in vain costs more than what a few calls save, above all in waiting."""

_CALLS_NOTED = 16
"""Calls whose average decides, about: it changes its mind within some tens of calls."""


def sort_out(
    table: str,
    key: bytes,
    cells: Iterable[RawCell],
    ts: int,
    known: Mapping[int, int],
    seen: SeenColumns,
) -> tuple[VisibleRow, list[Probe], dict[int, int]]:
    """Return what is visible at `ts` of a row's cells, one version per column, and what is still to be found out.

    Third come the commits (start -> commit timestamp) that its shadow cells tell: one anywhere in the row tells the
    commit timestamp of all cells that its transaction wrote there.
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
    probes: list[Probe] = []
    for name, column, version, value in data:
        start = version - version % VERSIONS_PER_TRANSACTION
        commit_ts = commits.get(start)
        if commit_ts is None:
            commit_ts = known.get(start) if start < ts else NEVER  # begun later: whether it commits does not matter
        if commit_ts is not None and commit_ts <= ts:
            row[name] = Visible(version, commit_ts, value)
        else:
            probes.append(Probe(table, key, row, column, version, value, commit_ts))
    return row, probes, commits


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
