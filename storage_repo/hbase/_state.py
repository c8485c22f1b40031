"""What a store knows of itself, in one cell of the table `_repo`: its id, its low watermark, its pins.

One cell, so that a change is one compare-and-set: a pin never misses a watermark that moves at the same time, and the
watermark never misses a pin.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable

import msgspec

from storage_repo._exceptions import SnapshotTooOld, StoreUnavailable
from storage_repo.api import Limits
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase._time import Oracle
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import HbaseNames
from storage_repo.hbase.thrift2 import TColumnValue, TGet, TPut

STATE_TABLE = "_repo"
STATE_FAMILY = b"m"
_ROW, _QUALIFIER = b"state", b"state"
_ATTEMPTS = 50
"""Compare-and-sets that may be lost to others in a row; changes are rare, so this is for ever."""


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """A snapshot that stays readable until a time of the TSO's clock."""

    ts: int
    until_us: int


class State(msgspec.Struct, frozen=True, array_like=True):
    """What the cell holds."""

    id: str = ""
    low_watermark: int = 0
    pins: dict[str, Pin] = {}
    max_age_us: int = 0
    """The largest max_transaction_age_s that anybody has opened the store with: the watermark stays as far behind."""
    writer: str = ""
    """Different in every change: whoever lost the answer to its own change knows it again."""


_decode = msgspec.msgpack.Decoder(State).decode


def max_age_us(limits: Limits) -> int:
    """Return the limit's age in microseconds."""
    return round(limits.max_transaction_age_s * 1e6)


class StateRow:
    """Reads and changes the cell."""

    def __init__(self, connections: HbaseConnections, table: bytes) -> None:
        self._connections, self._table = connections, table

    def read(self) -> State:
        """Return the newest state."""
        return self._read()[1]

    def change(self, decide: Callable[[State], State]) -> State:
        """Change the state atomically; `decide` may be called several times. Returns what is stored then."""
        for _ in range(_ATTEMPTS):
            stored, state = self._read()
            wanted = decide(state)
            if wanted is state:
                return state
            wanted = msgspec.structs.replace(wanted, writer=uuid.uuid4().hex)
            put = TPut(row=_ROW, columnValues=[TColumnValue(STATE_FAMILY, _QUALIFIER, msgspec.msgpack.encode(wanted))])
            if (
                self._connections.check_and_put(self._table, _ROW, (STATE_FAMILY, _QUALIFIER), put, stored)
                or self.read().writer == wanted.writer
            ):
                return wanted
        raise StoreUnavailable(f"the store's state is changed by others all the time ({_ATTEMPTS} times in a row)")

    def store_id(self) -> str:
        """Return the store's id, given at the first call ever."""

        def decide(state: State) -> State:
            return state if state.id else msgspec.structs.replace(state, id=uuid.uuid4().hex)

        return self.change(decide).id

    def open(self, max_age_us: int) -> State:
        """Return the state, after having everybody's watermark stay behind by `max_age_us` at least.

        Readers rely on that distance: they need not look at the watermark for snapshots younger than half of it.
        """

        def decide(state: State) -> State:
            return state if state.max_age_us >= max_age_us else msgspec.structs.replace(state, max_age_us=max_age_us)

        return self.change(decide)

    def _read(self) -> tuple[bytes | None, State]:
        cells = self._connections.get(self._table, [TGet(row=_ROW, maxVersions=1)])[0].columnValues
        if not cells:
            return None, State()
        return cells[0].value, _decode(cells[0].value)


_YOUNG_US = 1_000_000
"""Omid's watermark follows the newest commits at the distance of its conflict map: more than a second's writes."""


class Watermark:
    """Refuses what is older than the low watermark, reading it again only where it can have passed."""

    def __init__(
        self, row: StateRow, oracle: Oracle, commit_table: CommitTable, names: HbaseNames, max_age_us: int
    ) -> None:
        self._row, self._oracle, self._commit_table = row, oracle, commit_table
        self._compacted = frozenset(table for table in names.tables if not names.schema_of(table).layout.history)
        # The watermark is never younger than the maximal age; half of it leaves room for clocks that drift apart.
        self._young_us = max_age_us // 2
        self._low = row.open(max_age_us).low_watermark
        self._omids = 0
        self.refused = 0

    def check(self, ts: int, tables: Iterable[str] = ()) -> None:
        """Raise SnapshotTooOld if versions that a snapshot at `ts` needs may be gone by now: call it after reading.

        `tables` are those read; where Omid's compaction collects, its low watermark counts too.
        """
        if ts >= self._low and self._oracle.age_us(ts) > self._young_us:
            self.moved_to(self._row.read().low_watermark)
        self._refuse_below(ts, self._low)
        if not self._compacted.isdisjoint(tables):
            if self._oracle.age_us(ts) > _YOUNG_US:
                self._omids = max(self._omids, self._commit_table.low_watermark())
            self._refuse_below(ts, max(self._omids, self._oracle.tso.epoch) + 1)

    def moved_to(self, low: int) -> None:
        """Take note of the watermark."""
        self._low = max(self._low, low)

    def _refuse_below(self, ts: int, low: int) -> None:
        if ts < low:
            self.refused += 1
            raise SnapshotTooOld(ts, low)
