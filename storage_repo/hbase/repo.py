"""The Repo on HBase with Apache Omid."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from storage_repo._exceptions import SnapshotTooOld, StoreUnavailable
from storage_repo.api import CellVersion, CommitOutcome, Origin, RepoSchema, RowId, Transaction
from storage_repo.hbase._background import Background
from storage_repo.hbase._collector import Collector
from storage_repo.hbase._commit import Committer, Prepared
from storage_repo.hbase._commit_table import CommitTable
from storage_repo.hbase._group import GroupCommit
from storage_repo.hbase._history import Historian
from storage_repo.hbase._read import Reader
from storage_repo.hbase._schema import Difference, SchemaKeeper
from storage_repo.hbase._state import STATE_TABLE, Pin, State, StateRow, Watermark, max_age_us
from storage_repo.hbase._time import Oracle, Timeline, WorldTime
from storage_repo.hbase._view import HbaseSnapshot, HbaseTransaction
from storage_repo.hbase.address import HbaseAddress
from storage_repo.hbase.connections import HbaseConnections, HbaseRefused
from storage_repo.hbase.names import HbaseNames
from storage_repo.omid import TsoClient

_COUNTERS = (
    "commits",
    "conflicts",
    "false_aborts",
    "false_aborts_given_up",
    "groups",
    "cells_read",
    "rows_read",
    "cells_written",
    "slow_reads",
    "recalled_reads",
    "recalled_in_vain",
    "healed_cells",
)


def _no_fault(_: str) -> None:
    """Do nothing at a step of the protocol; tests bring what stops there."""


class HbaseRepo:
    """A versioned column store on HBase, with transactions that Java clients of Apache Omid take part in.

    Timestamps are the TSO's. Committed means: in Omid's commit table. A process that is killed leaves cells that nobody
    sees, or a commit that readers finish. When HBase or the TSO are away calls wait for some seconds and then raise
    StoreUnavailable.
    """

    def __init__(
        self,
        address: HbaseAddress,
        schema: RepoSchema,
        connections: HbaseConnections,
        tso: TsoClient,
        timeline: Timeline,
        faults: Callable[[str], None],
    ) -> None:
        """For open() only."""
        self._limits = schema.limits
        self._names = names = HbaseNames(schema, address.prefix)
        self._connections, self._tso = connections, tso
        self._oracle = oracle = Oracle(tso, timeline)
        self._state = state = StateRow(connections, (address.prefix + STATE_TABLE).encode())
        commit_table = CommitTable(connections)
        self._watermark = watermark = Watermark(state, oracle, commit_table, names, max_age_us(schema.limits))
        self._background = background = Background(connections, commit_table, faults)
        self._reader = reader = Reader(connections, names, commit_table, background, lambda: tso.epoch)
        self._committer = Committer(connections, names, oracle, reader, commit_table, background, watermark, faults)
        self._group = GroupCommit(self._committer.apply)
        self._historian = Historian(connections, names, reader, oracle)
        self._collector = Collector(connections, names, reader, commit_table, oracle, state, watermark, schema.limits)
        self._closed = False

    @classmethod
    def open(
        cls,
        url: str,
        schema: RepoSchema,
        *,
        timeline: Timeline | None = None,
        faults: Callable[[str], None] = _no_fault,
    ) -> HbaseRepo:
        """Open the store at an hbase:// URL; its tables must be there (`apply_schema`).

        Raises ValueError for a URL or schema that cannot be, StoreUnavailable when a server is away. `timeline` tells
        ages if the TSO is not set to WORLD_TIME; `faults` is called by name at every step of the commit (tests).
        """
        if schema.limits.versions_kept < 1:
            raise ValueError(f"versions_kept is {schema.limits.versions_kept}; keep at least the newest version")
        address = HbaseAddress.parse(url)
        with contextlib.ExitStack() as opened:
            connections = opened.enter_context(contextlib.closing(HbaseConnections(address)))
            tso = opened.enter_context(contextlib.closing(TsoClient.open(address.tso)))
            try:
                repo = cls(address, schema, connections, tso, timeline or WorldTime(), faults)
            except HbaseRefused as error:
                raise StoreUnavailable(f"{error}; create the tables with `./adsindex repo apply`") from error
            opened.pop_all()
        return repo

    def snapshot(self, ts: int | None = None, *, transactions: int = 0) -> HbaseSnapshot:
        """Open a view at `ts`, or of now: one question to the TSO, which concurrent callers share.

        Transactions begun on a view of now that announced them commit in two round trips less.
        Raises SnapshotTooOld, ValueError for a `ts` yet to come.
        """
        if ts is None:
            self._check_open()
            readable = self._oracle.begin_shared(transactions) if transactions else self._oracle.view()
        else:
            readable = self._readable_ts(ts)
        return HbaseSnapshot(self._reader, self._names, self._watermark, readable)

    def begin(self, origin: Origin, ts: int | None = None) -> HbaseTransaction:
        """Start a transaction on the newest snapshot, or on the snapshot `ts` that its reads were made at.

        Raises SnapshotTooOld, ValueError for a `ts` yet to come.
        """
        readable = self._readable_ts(ts)
        return HbaseTransaction(
            self._reader,
            self._names,
            self._watermark,
            readable,
            start=readable if ts is None else self._oracle.take_reserved(ts),
            origin=origin,
            limits=self._limits,
            commit=self._commit_one,
        )

    def commit_many(self, transactions: Sequence[Transaction]) -> list[CommitOutcome]:
        """Commit independent transactions in order in one group; each is checked against those before it.

        Raises TransactionClosed (before anything is written) and StoreUnavailable (none is visible then). When HBase
        goes away in the midst, outcomes may be OutcomeUnknown, or StoreUnavailable for what is surely not visible.
        """
        mine = [self._own(transaction) for transaction in transactions]
        for transaction in mine:
            transaction.check_open()
        outcomes: list[CommitOutcome] = [transaction.ts for transaction in mine]
        places: list[int] = []
        batch: list[Prepared] = []
        for place, transaction in enumerate(mine):
            if (prepared := transaction.prepare()) is not None:
                places.append(place)
                batch.append(prepared)
        if batch:
            for place, outcome in zip(places, self._group.submit(batch), strict=True):
                outcomes[place] = outcome
        return outcomes

    def store_id(self) -> str:
        """Return the random id of the store, given when it was first asked for."""
        self._check_open()
        return self._state.store_id()

    def history(self, table: str, row: str, column: str | None = None) -> dict[str, list[CellVersion]]:
        """Return all readable versions per column, newest first, with who wrote them."""
        self._check_open()
        return self._historian.history(table, row, column)

    def changed_since(self, rows: Sequence[RowId], columns: Mapping[str, Sequence[str]], since_us: int) -> set[RowId]:
        """Return the rows of which a version of one of the columns was committed at a time or later."""
        self._check_open()
        return self._historian.changed_since(rows, columns, since_us)

    def pin(self, name: str, ts: int, ttl_s: float) -> None:
        """Keep snapshot `ts` readable for `ttl_s` seconds, durably; the same name again renews or moves the pin.

        Tables without history are not held: Omid's compaction looks at its own watermark only, which knows no pins.
        Raises SnapshotTooOld when it is too late, ValueError for a `ts` yet to come or a `ttl_s` that is not positive.
        """
        if not (ttl_s > 0 and math.isfinite(ttl_s)):
            raise ValueError(f"pin {name!r}: ttl_s is {ttl_s}; give a positive number of seconds")
        self._check_open()
        newest = self._oracle.begin()
        if ts > newest:
            raise ValueError(f"cannot pin {ts}: the newest timestamp is {newest}")
        pin = Pin(ts, self._oracle.timeline.us(newest) + round(ttl_s * 1e6))

        def decide(state: State) -> State:
            if ts < state.low_watermark:
                raise SnapshotTooOld(ts, state.low_watermark)
            return msgspec.structs.replace(state, pins={**state.pins, name: pin})

        self._state.change(decide)

    def unpin(self, name: str) -> None:
        """Release a pin; unknown names are fine."""
        self._check_open()

        def decide(state: State) -> State:
            if name not in state.pins:
                return state
            return msgspec.structs.replace(state, pins={n: pin for n, pin in state.pins.items() if n != name})

        self._state.change(decide)

    def collect_garbage(self, max_cells: int | None = None, *, max_rows: int | None = None) -> int:
        """Advance the low watermark and drop versions that neither history nor a live snapshot needs; return count.

        Reads all tables with history, so unbounded it belongs into a workflow. `max_cells` bounds the superseded
        versions looked at, `max_rows` the rows; the next call goes on from there. Also removes cells of transactions
        that can never commit any more.
        """
        self._check_open()
        return self._collector.collect(max_cells, max_rows)

    def bulk_read(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: scans of region servers read ahead by themselves."""
        return contextlib.nullcontext()

    def statistics(self) -> Mapping[str, int]:
        """Return counters of this process since open, and sizes.

        Counters: commits, conflicts, false_aborts (refused by the TSO, yet nobody had changed a cell; tried again),
        false_aborts_given_up (after several tries: FalseConflict, no conflict), groups, snapshots_too_old, cells_read,
        rows_read, cells_written, versions_dropped; slow_reads (more than one round trip), healed_cells; recalled_reads
        (calls that asked for no shadow cells, because the commits are remembered), recalled_in_vain (of these, those
        that took a second call because one was not); round_trips in all and round_trips_get, _put, …; tso_begins and so
        on from the TSO client.
        Sizes: pins, low_watermark.
        """
        self._check_open()
        state = self._state.read()
        found = dict.fromkeys(_COUNTERS, 0)
        for counters in (self._committer.counters, self._reader.counters, self._background.counters):
            found.update(counters)
        trips = self._connections.round_trips
        return {
            **found,
            "versions_dropped": self._collector.dropped,
            "snapshots_too_old": self._watermark.refused,
            "round_trips": sum(count for name, count in trips.items() if not name.endswith("_retries")),
            **{f"round_trips_{name}": count for name, count in trips.items()},
            **{f"tso_{name}": count for name, count in self._tso.statistics().items()},
            "pins": len(state.pins),
            "low_watermark": state.low_watermark,
        }

    def flush(self) -> bool:
        """Wait until what commits left for later is done; False if HBase does not let it happen in 10 s."""
        return self._background.flush()

    def close(self) -> None:
        """Finish what commits left for later, and close all connections; safe to call twice."""
        if not self._closed:
            self._closed = True
            self._background.close()
            self._tso.close()
            self._connections.close()

    def _readable_ts(self, ts: int | None) -> int:
        self._check_open()
        if ts is None:
            return self._oracle.begin()
        newest = self._oracle.newest(at_least=ts)
        if not 0 <= ts <= newest:
            raise ValueError(f"no snapshot at {ts}: the newest timestamp is {newest}")
        self._watermark.check(ts)
        return ts

    def _commit_one(self, transaction: HbaseTransaction) -> int:
        prepared = transaction.prepare()
        if prepared is None:
            return transaction.ts
        outcome = self._group.submit((prepared,))[0]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _own(self, transaction: Transaction) -> HbaseTransaction:
        if not isinstance(transaction, HbaseTransaction) or not transaction.belongs_to(self._reader):
            raise TypeError("commit_many takes transactions that were begun on this repo")
        return transaction

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the repo on HBase has been closed")


def check_schema(url: str, schema: RepoSchema) -> list[Difference]:
    """Return how the tables in HBase differ from the schema. Raises ValueError, StoreUnavailable."""
    return _with_keeper(url, schema, SchemaKeeper.check)


def apply_schema(url: str, schema: RepoSchema) -> list[Difference]:
    """Create what is missing and put right what can be; return what was done. Raises ValueError, StoreUnavailable."""
    return _with_keeper(url, schema, SchemaKeeper.apply)


def _with_keeper(url: str, schema: RepoSchema, work: Callable[[SchemaKeeper], list[Difference]]) -> list[Difference]:
    address = HbaseAddress.parse(url)
    connections = HbaseConnections(address, timeout_s=60.0, patience_s=90.0)  # creating a table takes seconds
    try:
        return work(SchemaKeeper(connections, schema, address.prefix))
    finally:
        connections.close()
