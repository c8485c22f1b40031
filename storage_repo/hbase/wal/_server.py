"""The TCP server that HBase ships edits to: HBase's RPC, of which only AdminService.ReplicateWALEntry is served.

A thread per connection reads and decodes. What a call brought waits in a queue for the one thread that publishes; that
one answers the calls, many at a time. An answer that HBase does not get costs a repetition.
"""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from messaging.headers import now_us
from storage_repo.hbase.wal import _frames as frames
from storage_repo.hbase.wal._cells import Batch
from storage_repo.hbase.wal._errors import ForeignEdits, WireError
from storage_repo.hbase.wal.proto import hbase_rpc_pb2 as rpc

METHOD = "ReplicateWALEntry"
_QUEUED_CALLS = 64
"""HBase has one call per region and peer under way; more than this waits in the sockets."""
_FULL_S = 0.5
"""How often a reader that waits for room looks whether all is over."""
_IO_EXCEPTION = "java.io.IOException"

Decode = Callable[[rpc.ReplicateWALEntryRequest, bytes, int], Batch]


@dataclass(slots=True)
class Call:
    """One call of a region server, decoded, that waits for its answer."""

    connection: Connection
    call_id: int
    batch: Batch
    arrived_us: int

    def acknowledge(self) -> None:
        """Say that all edits are safe: HBase does not send them again."""
        self.connection.send(frames.answer(self.call_id))

    def refuse(self, why: str) -> None:
        """Say that they are not: HBase sends them again."""
        self.connection.send(frames.refusal(self.call_id, _IO_EXCEPTION, why, retry=True))


class Server:
    """Listens, reads and decodes; `calls` is what waits for an answer."""

    def __init__(self, host: str, port: int, decode: Decode) -> None:
        """Listen on an address; port 0 takes a free one."""
        self._decode = decode
        self.calls: queue.Queue[Call] = queue.Queue(_QUEUED_CALLS)
        self._lock = threading.Lock()
        self._connections: set[Connection] = set()
        self._open = True
        self.refused = 0
        """Connections that were closed because of what came over them."""
        self.foreign = 0
        """Calls that were refused because they are another installation's."""
        self._listener = socket.create_server((host, port))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._accept, name="walproxy-accept", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Close the port and all connections."""
        with self._lock:
            self._open = False
            connections = list(self._connections)
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the accepting thread
        self._listener.close()
        for connection in connections:
            connection.close()
        for connection in connections:
            connection.thread.join()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                with self._lock:
                    if not self._open:
                        return
                continue  # a client that has gone already
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = Connection(accepted, self._serve)
            with self._lock:
                if self._open:
                    self._connections.add(connection)
                    connection.thread.start()
                else:
                    connection.close()

    def _serve(self, connection: Connection) -> None:
        log = structlog.get_logger()
        try:
            with connection.socket.makefile("rb") as stream:
                if frames.accept_connection(stream) is not None:
                    while self._open and (request := frames.read_request(stream)) is not None:
                        self._take(connection, request)
        except WireError as error:
            self.refused += 1
            log.error("wal_connection_refused", error=str(error))
        except (OSError, EOFError) as error:
            log.info("wal_connection_lost", error=str(error) or type(error).__name__)
        finally:
            connection.close()
            with self._lock:
                self._connections.discard(connection)

    def _take(self, connection: Connection, request: frames.Request) -> None:
        if request.method != METHOD:
            text = f"the WAL proxy serves {METHOD} only"
            connection.send(frames.refusal(request.call_id, _IO_EXCEPTION, text, retry=False))
            return
        arrived_us = now_us()
        parameter = frames.parse(rpc.ReplicateWALEntryRequest(), request.frame[request.parameter])
        try:
            batch = self._decode(parameter, request.frame, request.cells)
        except ForeignEdits as error:
            self.foreign += 1
            structlog.get_logger().error("wal_edits_refused", table=error.table.decode(errors="backslashreplace"))
            connection.send(frames.refusal(request.call_id, _IO_EXCEPTION, str(error), retry=True))
            return
        call = Call(connection, request.call_id, batch, arrived_us)
        while self._open:
            with suppress(queue.Full):
                self.calls.put(call, timeout=_FULL_S)
                return


class Connection:
    """One connection of a region server; answers are sent by any thread."""

    def __init__(self, accepted: socket.socket, serve: Callable[[Connection], None]) -> None:
        self.socket = accepted
        self._lock = threading.Lock()
        self.thread = threading.Thread(target=serve, args=(self,), name="walproxy-read", daemon=True)

    def send(self, answer: bytes) -> None:
        """Send an answer; one that cannot be sent makes HBase call again."""
        with self._lock, suppress(OSError):
            self.socket.sendall(answer)

    def close(self) -> None:
        """Close the connection; safe to call twice."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
