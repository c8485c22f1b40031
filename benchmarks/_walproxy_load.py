"""The tables, the writers and the reader of `bench walproxy`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

from catalog import Catalog, LaneName, load_catalog
from messaging.api import Log
from messaging.headers import new_header, now_us
from messaging.kafka import open_kafka_log
from messaging.proto import adsindex_pb2 as pb
from messaging.topics import NOTIFICATIONS
from storage_repo import Origin, RepoSchema
from storage_repo._origin import encode_origin
from storage_repo.hbase import HbaseAddress, HbaseRepo
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import ORIGIN_FAMILY, ORIGIN_QUALIFIER, HbaseNames
from storage_repo.hbase.thrift2 import TColumnValue, TPut
from storage_repo.omid import layout

PEER_ID = "adsindex_bench"
"""Of its own: the HBase may be somebody's, who has a WAL proxy already."""
TABLE, FAMILY = "ad", "control"
COLUMNS_EACH = 5
"""Columns of one row's change: with its origin and the shadow cells it is 12 cells in HBase's log."""
CELLS_EACH = 2 * (COLUMNS_EACH + 1)
VALUE = bytes(48)
_IN_FLIGHT = 16
"""Clients that commit at the same time, so that a slow one does not slow the pace."""
_ROWS_PER_PUT = 250


def catalog_of() -> Catalog:
    """Return the catalogue whose columns are written."""
    return load_catalog()


def columns_of(catalog: Catalog) -> tuple[str, ...]:
    """Return the columns ("family:name") that every change writes."""
    cells = sorted(c.cell for c in catalog.tables[TABLE].columns.values() if c.family.value == FAMILY)
    return tuple(cells[:COLUMNS_EACH])


def schema_of(catalog: Catalog) -> RepoSchema:
    """Return the one table."""
    return RepoSchema.of([(table, families) for table, families in catalog.repo_tables() if table == TABLE])


class Writers:
    """Commits through the Repo, and puts what a committed transaction leaves in HBase without one."""

    def __init__(self, url: str, catalog: Catalog) -> None:
        self._schema, self._columns = schema_of(catalog), columns_of(catalog)
        self.repo = HbaseRepo.open(url, self._schema)
        address = HbaseAddress.parse(url)
        self._connections = HbaseConnections(address)
        self._table = HbaseNames(self._schema, address.prefix).hbase_table(TABLE)
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, "bench-write")
        self._lock = threading.Lock()
        self._last = 0

    def commit(self, row: str) -> tuple[float, float]:
        """Change a row in a transaction; return when the commit was asked for and when it was answered (monotonic)."""
        transaction = self.repo.begin(_origin())
        for column in self._columns:
            transaction.put(TABLE, row, column, VALUE)
        asked = time.perf_counter()
        transaction.commit()
        return asked, time.perf_counter()

    def put(self, row: str) -> tuple[float, float]:
        """Put data cells, then shadow cells; return when the latter were asked for and answered (monotonic)."""
        start = self._timestamps(1)[0]
        data, shadows = self._cells(start)
        self._connections.put(self._table, [TPut(row.encode(), data)])
        asked = time.perf_counter()
        self._connections.put(self._table, [TPut(row.encode(), shadows)])
        return asked, time.perf_counter()

    def put_many(self, rows: Sequence[str]) -> None:
        """Put data and shadow cells of many rows, each a transaction, in the order of a log: data, then shadows."""
        for at in range(0, len(rows), _ROWS_PER_PUT):
            part = rows[at : at + _ROWS_PER_PUT]
            made = [self._cells(start) for start in self._timestamps(len(part))]
            for kind in (0, 1):
                puts = [TPut(row.encode(), cells[kind]) for row, cells in zip(part, made, strict=True)]
                self._connections.put(self._table, puts)

    def at_rate(
        self, write: Callable[[str], tuple[float, float]], rows: Sequence[str], rate: float
    ) -> dict[str, tuple[float, float]]:
        """Write rows at a steady rate (per second); return what `write` did by row."""
        started = time.perf_counter()
        futures = {}
        for number, row in enumerate(rows):
            if (ahead := started + number / rate - time.perf_counter()) > 0:
                time.sleep(ahead)
            futures[row] = self._pool.submit(write, row)
        return {row: future.result() for row, future in futures.items()}

    def close(self) -> None:
        """Close all connections."""
        self._pool.shutdown()
        self.repo.close()
        self._connections.close()

    def _cells(self, start: int) -> tuple[list[object], list[object]]:
        stamp = layout.encode_timestamp(start + layout.VERSIONS_PER_TRANSACTION)
        names = [(FAMILY.encode(), column.partition(":")[2].encode()) for column in self._columns]
        data = [TColumnValue(family, qualifier, VALUE, start) for family, qualifier in names]
        data.append(TColumnValue(ORIGIN_FAMILY, ORIGIN_QUALIFIER, encode_origin(_origin()), start))
        names.append((ORIGIN_FAMILY, ORIGIN_QUALIFIER))
        shadows = [TColumnValue(family, layout.shadow_qualifier(q), stamp, start) for family, q in names]
        return data, shadows

    def _timestamps(self, count: int) -> list[int]:
        """Return timestamps like Omid's, from a clock."""
        step = 2 * layout.VERSIONS_PER_TRANSACTION
        with self._lock:
            first = max(self._last + step, time.time_ns() // 1_000_000 * 1_000_000)
            self._last = first + (count - 1) * step
        return list(range(first, self._last + 1, step))


def _origin() -> Origin:
    at_us = now_us()
    header = new_header(LaneName.HIGH, at_us)
    return Origin("bench", "walproxy", "", header.trace_id, header.lane, at_us, header.SerializeToString())


class Reader:
    """Follows the notifications as a consumer does, in a thread, and notes when each row's first one came."""

    def __init__(self, url: str) -> None:
        self._log: Log = open_kafka_log(url)
        self._topic = NOTIFICATIONS[LaneName.HIGH]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="bench-read")
        self.seen: dict[str, float] = {}
        """Row -> monotonic seconds."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._log.close()

    def wait_for(self, count: int, seconds: float) -> bool:
        """Wait until so many rows were seen."""
        deadline = time.monotonic() + seconds
        while len(self.seen) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        return len(self.seen) >= count

    def _follow(self) -> None:
        positions = {(self._topic, number): end for number, end in self._log.end_offsets(self._topic).items()}
        while not self._stop.is_set():
            if not self._log.wait([self._topic], positions, 0.25):
                continue
            for (topic, partition), position in list(positions.items()):
                for record in self._log.read(topic, partition, position, 10_000):
                    self.seen.setdefault(pb.Notification.FromString(record.value).row, time.perf_counter())
                    positions[topic, partition] = record.offset + 1
