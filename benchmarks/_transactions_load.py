"""The transactions that are measured, by our client: with the Repo, and the same cells without transactions."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from benchmarks._exceptions import BenchmarkFailed
from storage_repo import Origin, Repo, RepoSchema, TableLayout
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.thrift2 import TColumnValue, TPut

TABLE, FAMILY = "docs", "f"
SCHEMA = RepoSchema.of([(TABLE, (FAMILY,))], layouts={TABLE: TableLayout(family_deletes=False)})
COLUMNS = (f"{FAMILY}:name", f"{FAMILY}:bid")
ROWS_EACH = 5
"""Rows of one transaction; with two columns each, 10 cells."""
VALUE_BYTES = 64
ORIGIN = Origin("bench", "transactions")

Rows = list[str]


@dataclass(frozen=True, slots=True)
class Load:
    """How many transactions, and how many of them at the same time.

    `batched`: those that are in flight together are one call of one thread, as the Updater does it.
    """

    in_flight: int
    count: int
    batched: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """What a load took: in all, and each transaction (of a batch: each batch)."""

    seconds: float
    latencies_ms: list[float]
    count: int
    """Transactions."""

    @property
    def rate(self) -> float:
        """Transactions a second."""
        return self.count / self.seconds


def row_name(number: int) -> str:
    """Name a row as the Java client does."""
    return f"row{number:07d}"


class Ours:
    """The Repo, and HBase under it without transactions."""

    def __init__(self, repo: Repo, raw: HbaseConnections, table: bytes, raw_table: bytes, rows: int) -> None:
        """Take HBase's names of the Repo's table and of one for writes without transactions."""
        self._repo, self._raw, self._rows = repo, raw, rows
        self._table, self._raw_table = table, raw_table

    def fill(self) -> None:
        """Write every row once, in transactions and without."""
        chance = random.Random(0)
        names = [row_name(number) for number in range(self._rows)]
        for at in range(0, len(names), 500):
            self._write([names[at : at + 500]], chance)
            self._raw_write([names[at : at + 500]], chance)

    def run(self, kind: str, load: Load) -> Measured:
        """Run transactions (update, write, read), or the same cells without any (raw-write, raw-read).

        "... again" reads the same few rows, which nobody changes.
        """
        act = {
            "update": self._update, "write": self._write, "read": self._read, "read again": self._read,
            "raw-write": self._raw_write, "raw-read": self._raw_read, "raw-read again": self._raw_read,
        }[kind]  # fmt: skip
        rows = max(self._rows // 10, ROWS_EACH * load.in_flight) if kind.endswith("again") else self._rows
        together = load.in_flight if load.batched else 1
        threads = 1 if load.batched else load.in_flight
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            running = [
                pool.submit(self._work, act, rows, thread, threads, together, load.count // (threads * together))
                for thread in range(threads)
            ]
            latencies = [each for future in running for each in future.result()]
            return Measured(time.perf_counter() - started, latencies, len(latencies) * together)

    def read_once(self) -> None:
        """Read the rows that "read again" will read, so that their commits are remembered."""
        names = [row_name(number) for number in range(max(self._rows // 10, 1))]
        for at in (*range(0, len(names), ROWS_EACH), *range(0, len(names), ROWS_EACH)):
            self._read([names[at : at + ROWS_EACH]], random.Random(0))

    def _work(
        self, act: Callable[[list[Rows], random.Random], None], rows: int, thread: int, threads: int, together: int,
        calls: int,
    ) -> list[float]:  # fmt: skip
        chance = random.Random(thread)
        took = []
        for _ in range(calls):
            chosen = chance.sample(range(rows // threads), ROWS_EACH * together)
            names = [row_name(number * threads + thread) for number in chosen]
            groups = [names[at : at + ROWS_EACH] for at in range(0, len(names), ROWS_EACH)]
            started = time.perf_counter()
            act(groups, chance)
            took.append((time.perf_counter() - started) * 1e3)
        return took

    def _update(self, groups: list[Rows], chance: random.Random) -> None:
        """Read the cells of each transaction and write them anew."""
        if len(groups) == 1:
            transaction = self._repo.begin(ORIGIN)
            _check(transaction.get_many([(TABLE, row) for row in groups[0]], {TABLE: COLUMNS}))
            for row in groups[0]:
                for column in COLUMNS:
                    transaction.put(TABLE, row, column, chance.randbytes(VALUE_BYTES))
            transaction.commit()
            return
        snapshot = self._repo.snapshot(transactions=len(groups))  # as the Updater and Argus announce theirs
        _check(snapshot.get_many([(TABLE, row) for group in groups for row in group], {TABLE: COLUMNS}))
        self._commit(groups, chance, snapshot.ts)

    def _write(self, groups: list[Rows], chance: random.Random) -> None:
        self._commit(groups, chance, self._repo.snapshot(transactions=len(groups)).ts if len(groups) > 1 else None)

    def _commit(self, groups: list[Rows], chance: random.Random, ts: int | None) -> None:
        transactions = []
        for group in groups:
            transaction = self._repo.begin(ORIGIN, ts)
            transactions.append(transaction)
            for row in group:
                for column in COLUMNS:
                    transaction.put(TABLE, row, column, chance.randbytes(VALUE_BYTES))
        for outcome in self._repo.commit_many(transactions):
            if isinstance(outcome, Exception):
                raise BenchmarkFailed(f"a transaction that nobody disturbs was refused: {outcome}") from outcome

    def _read(self, groups: list[Rows], chance: random.Random) -> None:
        _check(self._repo.snapshot().get_many([(TABLE, row) for group in groups for row in group], {TABLE: COLUMNS}))

    def _raw_write(self, groups: list[Rows], chance: random.Random) -> None:
        columns = [column.encode().split(b":") for column in COLUMNS]
        puts = [
            TPut(row=row.encode(), columnValues=[TColumnValue(f, q, chance.randbytes(VALUE_BYTES)) for f, q in columns])
            for group in groups
            for row in group
        ]
        self._raw.put(self._raw_table, puts)

    def _raw_read(self, groups: list[Rows], chance: random.Random) -> None:
        keys = [row.encode() for group in groups for row in group]
        # The very cells that transactions read, with as many older versions under them.
        found = self._raw.rows(self._table, keys, [column.encode() for column in COLUMNS], _FOR_EVER)
        if len(found) != len(keys) or not all(len(row.columns) == len(COLUMNS) for row in found):
            raise BenchmarkFailed("a row is missing")


_FOR_EVER = (1 << 63) - 1


def _check(found: dict[tuple[str, str], dict[str, bytes]]) -> None:
    if not all(len(row) == len(COLUMNS) for row in found.values()):
        raise BenchmarkFailed("a row is missing")


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share of the values is."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
