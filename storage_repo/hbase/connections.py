"""Calls to HBase's two Thrift servers: pooled connections, reopened after a loss, every round trip counted.

Every call of ours may be made twice: cells are written, and deleted, at fixed versions, so the second time changes
nothing. That holds as well when a Thrift server goes on trying a call that we have given up. Only check_and_put
answers differently the second time; its callers look again when they hear no.

Which server for what: Thrift1 (happybase) names the columns of a batch of rows once, so it reads; Thrift2 has a version
per cell, which batches of transactions and exact deletes need, several versions per row, one call per piece of a scan,
and tables with all their attributes.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeVar

import happybase
from Hbase_thrift import BatchMutation, Mutation
from Hbase_thrift import IOError as Thrift1IOError
from thriftpy2.protocol import TCyBinaryProtocol
from thriftpy2.thrift import TApplicationException, TClient, TException
from thriftpy2.transport import TCyBufferedTransport, TSocket

from storage_repo._exceptions import StoreUnavailable
from storage_repo.hbase.address import HbaseAddress, HostPort
from storage_repo.hbase.thrift2 import THBaseService, TIOError

T = TypeVar("T")
R = TypeVar("R")

_IDLE_SECONDS = 40.0
"""Thrift servers close what has been idle for 60 s; a connection older than this is not trusted any more."""

_PARALLEL = 16
"""Calls at the same time to one server; a region server of the default size has 30 handlers."""

_FINAL = ("DoNotRetry", "TableNotFound", "TableExists", "TableNotEnabled", "NoSuchColumnFamily", "NamespaceExist")
"""Errors that trying again does not cure, by the names in HBase's text (Thrift1 has no flag for it)."""


_UNKNOWN_CALL = frozenset(
    (
        TApplicationException.UNKNOWN_METHOD,
        TApplicationException.INVALID_MESSAGE_TYPE,
        TApplicationException.WRONG_METHOD_NAME,
        TApplicationException.MISSING_RESULT,
    )
)
"""The server does not know the call: another version of it."""


class HbaseRefused(StoreUnavailable):
    """HBase will not do this however often it is asked: a table or family is missing, or already there."""


class HbaseConnections:
    """All connections of one process to one HBase; may be used by several threads.

    `timeout_s` bounds one attempt, `patience_s` all attempts of one call: then StoreUnavailable.
    """

    def __init__(self, address: HbaseAddress, *, timeout_s: float = 10.0, patience_s: float = 15.0) -> None:
        self.address = address
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self.round_trips: Counter[str] = Counter()
        """Answered calls by name."""
        self._thrift1 = _Pool("Thrift", address.thrift1, lambda: _Thrift1(address.thrift1, timeout_s))
        self._thrift2 = _Pool("Thrift2", address.thrift2, lambda: _Thrift2(address.thrift2, timeout_s))
        self._threads = ThreadPoolExecutor(_PARALLEL, "hbase")

    def rows(self, table: bytes, rows: Sequence[bytes], columns: Sequence[bytes], before_ts: int) -> Any:
        """Return the newest version below `before_ts` of the columns ("family:qualifier", "family") of many rows."""
        return self._call(
            self._thrift1, "get", table, lambda c: c.getRowsWithColumnsTs(table, rows, columns, before_ts, {})
        )

    def remove(self, table: bytes, rows: Sequence[bytes], column: bytes, upto_ts: int) -> None:
        """Delete all versions <= `upto_ts` of a column of many rows."""
        batches = [_row_mutation(row, column) for row in rows]
        self._call(self._thrift1, "delete", table, lambda c: c.mutateRowsTs(table, batches, upto_ts, {}))

    def get(self, table: bytes, gets: Sequence[Any]) -> Any:
        """Return a TResult per TGet, in order; an empty one where there is nothing."""
        return self._call(self._thrift2, "get", table, lambda c: c.getMultiple(table, gets))

    def put(self, table: bytes, puts: Sequence[Any]) -> None:
        """Write TPuts; each is atomic, together they are not."""
        self._call(self._thrift2, "put", table, lambda c: c.putMultiple(table, puts))

    def delete(self, table: bytes, deletes: Sequence[Any]) -> None:
        """Apply TDeletes; each is atomic, together they are not."""
        self._call(self._thrift2, "delete", table, lambda c: c.deleteMultiple(table, deletes))

    def scan(self, table: bytes, scan: Any, rows: int) -> Any:
        """Return the first rows of a scan; nothing stays open on the server."""
        return self._call(self._thrift2, "scan", table, lambda c: c.getScannerResults(table, scan, rows))

    def check_and_put(
        self, table: bytes, row: bytes, column: tuple[bytes, bytes], put: Any, expected: bytes | None = None
    ) -> bool:
        """Put if the column has the expected value (None: does not exist); tell whether it was put.

        No may also mean that an earlier attempt, whose answer was lost, has put it.
        """
        call: Callable[[Any], Any] = lambda c: c.checkAndPut(table, row, *column, expected, put)  # noqa: E731
        return bool(self._call(self._thrift2, "check", table, call))

    def admin(self, name: str, *arguments: Any) -> Any:
        """Call a method of Thrift2 on tables and namespaces. Raises HbaseRefused, StoreUnavailable."""
        return self._call(self._thrift2, "admin", b"", lambda c: getattr(c, name)(*arguments))

    def in_parallel(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Do the work for all items at the same time; raises the first error once all have ended."""
        if len(items) == 1:
            return [work(items[0])]
        futures = [self._threads.submit(work, item) for item in items[1:]]
        try:
            results = [work(items[0])]
        finally:
            errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error
        return results + [future.result() for future in futures]

    def close(self) -> None:
        """Close all connections; safe to call twice."""
        self._threads.shutdown()
        self._thrift1.close()
        self._thrift2.close()

    def _call(self, pool: _Pool[Any], name: str, table: bytes, call: Callable[[Any], R]) -> R:
        deadline, pause = time.monotonic() + self._patience_s, 0.02
        while True:
            try:
                answer = pool.use(call)
            except (TException, OSError) as error:
                if _is_final(error):
                    raise HbaseRefused(f"HBase refuses {name} on {table.decode()!r}: {_text(error)}") from error
                if time.monotonic() + pause > deadline:
                    raise StoreUnavailable(
                        f"{pool.name} server at {pool.where} or the HBase behind it does not do {name} on "
                        f"{table.decode()!r}: {_text(error)}; see that both are up"
                    ) from error
                self._count(f"{name}_retries")
                time.sleep(pause)
                pause = min(2 * pause, 1.0)
            else:
                self._count(name)
                return answer

    def _count(self, name: str) -> None:
        with self._lock:
            self.round_trips[name] += 1


class _Thrift1:
    """One happybase connection."""

    def __init__(self, where: HostPort, timeout_s: float) -> None:
        self._connection = happybase.Connection(*where, timeout=round(timeout_s * 1000))
        self.client = self._connection.client
        self.close = self._connection.close


class _Thrift2:
    """One connection of thriftpy2, with its compiled protocol."""

    def __init__(self, where: HostPort, timeout_s: float) -> None:
        socket: Any = TSocket(*where, socket_timeout=round(timeout_s * 1000))  # type: ignore[no-untyped-call]
        transport = TCyBufferedTransport(socket)
        transport.open()
        protocol = TCyBinaryProtocol(transport, decode_response=False)  # type: ignore[no-untyped-call]
        self.client = TClient(THBaseService, protocol)
        self.close = transport.close


Connection = TypeVar("Connection", bound=_Thrift1 | _Thrift2)


class _Pool(Generic[Connection]):
    """Idle connections to one server; the most recently used goes first."""

    def __init__(self, name: str, where: HostPort, connect: Callable[[], Connection]) -> None:
        self.name, self.where = name, "{}:{}".format(*where)
        self._connect = connect
        self._lock = threading.Lock()
        self._idle: list[tuple[float, Connection]] = []
        self._room = threading.BoundedSemaphore(_PARALLEL)
        self._closed = False

    def use(self, call: Callable[[Any], R]) -> R:
        """Call with a connection, which is given up when that fails. Raises what the call raises."""
        with self._room:
            connection = self._take()
            healthy = False
            try:
                answer = call(connection.client)
                healthy = True
            except (Thrift1IOError, TIOError):
                healthy = True  # the server's answer
                raise
            finally:
                self._give_back(connection, healthy)
            return answer

    def close(self) -> None:
        """Close what is idle; what is in use closes when given back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        _close_all(connection for _, connection in idle)

    def _take(self) -> Connection:
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the repo on HBase has been closed")
            now = time.monotonic()
            fresh = self._idle.pop() if self._idle and self._idle[-1][0] > now - _IDLE_SECONDS else None
            stale = []
            if fresh is None:
                stale, self._idle = self._idle, []
        _close_all(connection for _, connection in stale)
        return fresh[1] if fresh is not None else self._connect()

    def _give_back(self, connection: Connection, healthy: bool) -> None:
        """Keep a connection; at the first that is lost give up all idle ones, which lead to the same dead server."""
        lost: list[Connection] = []
        with self._lock:
            if healthy and not self._closed:
                self._idle.append((time.monotonic(), connection))
                return
            if not self._closed:
                lost = [idle for _, idle in self._idle]
                self._idle = []
        _close_all([connection, *lost])


def _close_all(connections: Iterable[Any]) -> None:
    for connection in connections:
        connection.close()


def _row_mutation(row: bytes, column: bytes) -> Any:
    return BatchMutation(row=row, mutations=[Mutation(isDelete=True, column=column)])


def _is_final(error: Exception) -> bool:
    if isinstance(error, TIOError) and error.canRetry is False:
        return True
    if isinstance(error, TApplicationException):  # not INTERNAL_ERROR: any exception in the server's own code is that
        return error.type in _UNKNOWN_CALL
    return isinstance(error, (TIOError, Thrift1IOError)) and any(name in _text(error) for name in _FINAL)


def _text(error: Exception) -> str:
    message = getattr(error, "message", None) or str(error) or type(error).__name__
    text = message.decode(errors="replace") if isinstance(message, bytes) else str(message)
    return text.splitlines()[0][:300]
