"""What the WAL proxy's tests need: own tables, a client that stops anywhere, proxies, and an independent count.

The client writes Omid's protocol step by step, so that a test can leave out steps, as a crash would.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from catalog import LaneName, load_catalog
from messaging import Log, open_embedded_log
from messaging.headers import leave, new_header
from messaging.home import Home
from messaging.kafka import open_kafka_log
from messaging.metrics import StageMetrics, read_metrics
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import LANE_OF, NOTIFICATIONS, ensure_topics
from storage_repo import Origin, RepoSchema
from storage_repo._origin import encode_origin
from storage_repo.hbase import HbaseRepo
from storage_repo.hbase.address import HbaseAddress
from storage_repo.hbase.connections import HbaseConnections
from storage_repo.hbase.names import ORIGIN_FAMILY, ORIGIN_QUALIFIER, HbaseNames
from storage_repo.hbase.thrift2 import (
    TColumn,
    TColumnFamilyDescriptor,
    TColumnValue,
    TDelete,
    TDeleteType,
    TPut,
    TScan,
    TTableDescriptor,
    TTableName,
)
from storage_repo.hbase.wal import WalProxySettings, run, walproxy_status
from storage_repo.omid import Aborted, Committed, TsoClient, ids, layout

ROOT = Path(__file__).resolve().parents[2]
CATALOG = load_catalog()
WATCHED = {"ad": frozenset({"control:status", "control:name"}), "pin": frozenset({"content:title"})}
FAMILIES = (("ad", ("control", "meta")), ("pin", ("content",)))
PATIENCE_S = 120.0
"""Far above what anything takes here; a loaded machine may need it."""

Found = dict[tuple[str, str, int], frozenset[str]]
"""(table, row, commit timestamp) -> columns."""


def origin(lane: LaneName = LaneName.HIGH, trace_id: str = "trace-1") -> Origin:
    """Make the origin of a commit by the Updater."""
    header = leave(leave(new_header(lane, 1_000, trace_id), "gateway", 2_000, 3_000), "updater", 4_000, 5_000)
    return Origin("updater", "ads_db", "v1", trace_id, header.lane, 1_000, header.SerializeToString())


class Store:
    """Tables of one test on a shared HBase."""

    def __init__(self, url: str, token: str) -> None:
        """Create the tables."""
        self.token, self.prefix = token, f"{token}_"
        self.url = f"{url}&prefix={self.prefix}"
        self.plain_url = url
        self.peer_id = token
        self.connections = HbaseConnections(HbaseAddress.parse(self.url))
        self.names = HbaseNames(RepoSchema.of(FAMILIES), self.prefix)
        for table, families in FAMILIES:
            self._create(self.names.hbase_table(table), [*map(str.encode, families), ORIGIN_FAMILY])
        self.tso = TsoClient.open(self.connections.address.tso)

    def _create(self, table: bytes, families: list[bytes]) -> None:
        name = TTableName(ns=b"default", qualifier=table)
        columns = [TColumnFamilyDescriptor(name=family, maxVersions=1_000_000, scope=1) for family in families]
        self.connections.admin("createTable", TTableDescriptor(tableName=name, columns=columns), [])

    def begin(self, by: Origin | None = None) -> Transaction:
        """Start a transaction."""
        return Transaction(self, self.tso.begin(), origin() if by is None else by)

    def commit(self, *cells: tuple[str, str, str], by: Origin | None = None) -> int:
        """Write and commit cells (table, row, column); return the commit timestamp."""
        transaction = self.begin(by)
        for cell in cells:
            transaction.put(*cell)
        transaction.write()
        commit_ts = transaction.commit()
        assert commit_ts is not None
        transaction.shadow()
        transaction.clean()
        return commit_ts

    def recount(self, watched: Mapping[str, frozenset[str]] = WATCHED) -> Found:
        """Count what is committed from the shadow cells of a full scan: it shares no code with the proxy."""
        found: dict[tuple[str, str, int], set[str]] = defaultdict(set)
        for table in watched:
            start = b""
            while results := self.connections.scan(
                self.names.hbase_table(table), TScan(startRow=start, maxVersions=1_000_000), 500
            ):
                for result in results:
                    for cell in result.columnValues:
                        if cell.qualifier[:3] == b"\x00\xc2\x80" and cell.qualifier[-2:] == b"\xc2\x80":
                            column = f"{cell.family.decode()}:{cell.qualifier[3:-2].decode()}"
                            commit_ts = int.from_bytes(cell.value, "big")
                            if column in watched[table]:
                                found[table, result.row.decode(), commit_ts].add(column.partition(":")[2])
                start = results[-1].row + b"\0"
        return {key: frozenset(columns) for key, columns in found.items()}

    def close(self) -> None:
        """Close the connections; the tables stay until the server goes."""
        self.tso.close()
        self.connections.close()


@dataclass
class Transaction:
    """One transaction, step by step."""

    store: Store
    start: int
    by: Origin
    cells: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=lambda: defaultdict(dict))
    commit_ts: int = 0

    def put(self, table: str, row: str, column: str, value: bytes = b"v") -> None:
        """Note a cell; an empty value is a tombstone."""
        self.cells[table, row][column] = value

    def write(self) -> None:
        """Flush the data cells, every row with its origin."""
        for (table, row), columns in self.cells.items():
            values = [TColumnValue(*_split(column), value, self.start) for column, value in columns.items()]
            if self.by.stage:
                values.append(TColumnValue(ORIGIN_FAMILY, ORIGIN_QUALIFIER, encode_origin(self.by), self.start))
            self.store.connections.put(self._table(table), [TPut(row.encode(), values)])

    def commit(self) -> int | None:
        """Ask the TSO; None when it refuses."""
        names = self.store.names
        cell_ids = [
            ids.cell_id(names.hbase_table(table), row.encode(), *_split(column))
            for (table, row), columns in self.cells.items()
            for column in columns
        ]
        table_ids = sorted({ids.table_id(names.hbase_table(table)) for table, _ in self.cells})
        outcome = self.store.tso.commit(self.start, cell_ids, table_ids)
        if isinstance(outcome, Aborted):
            return None
        assert isinstance(outcome, Committed)
        self.commit_ts = outcome.commit_ts
        return outcome.commit_ts

    def shadow(self, only: Callable[[str], bool] = lambda column: True, *, one_by_one: bool = False) -> None:
        """Write shadow cells, of a row in one step unless told otherwise (as Java clients do)."""
        stamp = layout.encode_timestamp(self.commit_ts)
        for (table, row), columns in self.cells.items():
            named = [_split(column) for column in columns if only(column)]
            if self.by.stage:
                named.append((ORIGIN_FAMILY, ORIGIN_QUALIFIER))
            values = [TColumnValue(f, layout.shadow_qualifier(q), stamp, self.start) for f, q in named]
            for part in ([value] for value in values) if one_by_one else [values]:
                self.store.connections.put(self._table(table), [TPut(row.encode(), part)])

    def clean(self) -> None:
        """Remove the commit table's entry."""
        key = layout.commit_key(self.start)
        self.store.connections.delete(layout.COMMIT_TABLE, [TDelete(row=key, timestamp=self.start)])

    def roll_back(self) -> None:
        """Delete the data cells at exactly their version."""
        for (table, row), columns in self.cells.items():
            named = [*map(_split, columns), *([(ORIGIN_FAMILY, ORIGIN_QUALIFIER)] if self.by.stage else [])]
            delete = TDelete(
                row=row.encode(), columns=[TColumn(*one, self.start) for one in named],
                deleteType=TDeleteType.DELETE_COLUMN,
            )  # fmt: skip
            self.store.connections.delete(self._table(table), [delete])

    def _table(self, table: str) -> bytes:
        return self.store.names.hbase_table(table)


def _split(column: str) -> tuple[bytes, bytes]:
    family, _, qualifier = column.encode().partition(b":")
    return family, qualifier


def open_log(home: Home, kafka: str, prefix: str) -> Log:
    """Open the embedded log of a home, or Kafka's with a prefix."""
    return open_kafka_log(kafka, prefix=prefix) if kafka else open_embedded_log(home.log, home.wake)


class Notified:
    """What lies in the notification topics."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self.messages: list[pb.Notification] = []
        self._at: dict[tuple[str, int], int] = {}

    def read(self) -> list[pb.Notification]:
        """Read what has come; return everything read so far."""
        for lane, topic in NOTIFICATIONS.items():
            for partition in range(self._log.topics()[topic]):
                while records := self._log.read(topic, partition, self._at.get((topic, partition), 0), 10_000):
                    for record in records:
                        message = pb.Notification.FromString(record.value)
                        assert LANE_OF[message.header.lane] is lane
                        assert record.key == f"{message.table}/{message.row}"
                        self.messages.append(message)
                    self._at[topic, partition] = records[-1].offset + 1
        return self.messages

    def found(self) -> Found:
        """Return all columns that were notified, of repeated notifications together."""
        found: dict[tuple[str, str, int], set[str]] = defaultdict(set)
        for message in self.read():
            found[message.table, message.row, message.commit_ts] |= set(message.columns)
        return {key: frozenset(columns) for key, columns in found.items()}

    def wait_for(self, wanted: Found, seconds: float = PATIENCE_S) -> None:
        """Wait until everything wanted has been notified; what comes beside it is for the caller to judge."""
        wait_until(lambda: self.found().items() >= wanted.items(), seconds, lambda: self._missing(wanted))

    def _missing(self, wanted: Found) -> str:
        found = self.found()
        missing = {key: columns for key, columns in wanted.items() if found.get(key) != columns}
        return f"{len(missing)} of {len(wanted)} not notified as they should: {list(missing.items())[:5]}"


def wait_until(true: Callable[[], bool], seconds: float = PATIENCE_S, why: Callable[[], str] = lambda: "") -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    tick = threading.Event()
    while not true():
        assert time.monotonic() < deadline, f"not so after {seconds} s: {why()}"
        tick.wait(0.02)


def stage_context(home: Home, log: Log, worker: int, ready: Callable[[int], None]) -> StageContext:
    """Return what the stage is given."""
    metrics = StageMetrics(home.metrics, f"wal_proxy-{worker}")
    return StageContext("wal_proxy", worker, home, CATALOG, log, metrics, threading.Event(), ready)


class ProxyThread:
    """A proxy in this process."""

    def __init__(
        self, store: Store, home: Home, log: Log, *, worker: int = 0,
        open_repo: Callable[[], HbaseRepo] | None = None, **settings: Any,
    ) -> None:  # fmt: skip
        self._ready = threading.Event()
        self._open_repo = open_repo
        self.context = stage_context(home, log, worker, lambda port: self._ready.set())
        self._settings = WalProxySettings(peer_id=store.peer_id, **settings)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(store,))

    def _run(self, store: Store) -> None:
        try:
            run(self.context, store.url, store.names, WATCHED, self._settings, self._open_repo)
        except BaseException as error:
            self._error = error
            self._ready.set()
            raise

    def __enter__(self) -> ProxyThread:
        self._thread.start()
        assert self._ready.wait(PATIENCE_S)
        assert self._error is None, self._error
        return self

    def __exit__(self, *exc: object) -> None:
        self.context.stop.set()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()
        assert self._error is None, self._error

    def wait(self) -> None:
        """Wait for its end by itself."""
        self._thread.join(PATIENCE_S)

    def counter(self, name: str) -> int:
        """Return a counter of the stage."""
        return self.context.metrics.counters[name]


class ProxyProcess:
    """A proxy in a process of its own, to be killed."""

    def __init__(self, store: Store, home: Home, kafka: str, *, worker: int = 0, **options: Any) -> None:
        arguments = json.dumps({"url": store.plain_url, "token": store.token, "home": str(home.root), "kafka": kafka,
                                "worker": worker, **options})  # fmt: skip
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__)), arguments],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def wait_for(self, word: str) -> None:
        """Wait until the process has printed a line."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline().decode().strip() == word

    def kill(self) -> None:
        """End it by SIGKILL; nothing is left to do if it has ended."""
        self._process.kill()
        self._process.wait(PATIENCE_S)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def wait(self) -> int:
        """Wait for its end by itself; return its exit code."""
        return self._process.wait(PATIENCE_S)


def main(arguments: str) -> None:
    """Run a proxy until somebody kills this process; with "die_before_ack" it dies at that batch's acknowledgement."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for the test
    options = json.loads(arguments)
    home = Home.open(Path(options["home"]))
    log = open_log(home, options["kafka"], f"{options['token']}.")
    names = HbaseNames(RepoSchema.of(FAMILIES), f"{options['token']}_")
    if dies := options.get("die_before_ack"):
        from storage_repo.hbase.wal._server import Call

        def die(call: Call) -> None:
            if call.batch.cells and any(edits.commit_ts for edits in call.batch.rows.values()):
                print("dying", flush=True)
                os._exit(9)
            acknowledge(call)

        acknowledge = Call.acknowledge
        assert dies
        Call.acknowledge = die  # type: ignore[method-assign,assignment]
    context = stage_context(home, log, options["worker"], lambda port: print("ready", flush=True))
    settings = WalProxySettings(peer_id=options["token"], grace_s=options.get("grace_s", 5.0))
    run(context, f"{options['url']}&prefix={options['token']}_", names, WATCHED, settings)


@contextmanager
def prepared_log(home: Home, kafka: str, token: str) -> Iterator[Log]:
    """Open a log with all topics."""
    with open_log(home, kafka, f"{token}.") as log:
        ensure_topics(log)
        yield log


def batches_of(home: Home, worker: int) -> int:
    """Return how many batches a proxy has acknowledged, by its metrics file."""
    found = [metrics for metrics in read_metrics(home.metrics) if metrics["process"] == f"wal_proxy-{worker}"]
    return sum(int(metrics["counters"].get("batches", 0)) for metrics in found)


def is_registered(store: Store, instances: int) -> bool:
    """Tell whether HBase sees so many proxies."""
    return any(
        peer.id == store.peer_id and len(peer.instances) == instances for peer in walproxy_status(store.url).peers
    )


if __name__ == "__main__":
    main(sys.argv[1])
