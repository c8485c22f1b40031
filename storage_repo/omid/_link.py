"""One TCP connection to a TSO, from the handshake to its loss."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from storage_repo.omid import protocol
from storage_repo.omid._errors import TsoUnavailable
from storage_repo.omid._locate import Address
from storage_repo.omid.proto import omid_pb2 as pb

_RECEIVE_BYTES = 1 << 18
TICK_S = 0.25
"""How often a silent connection is looked at, to see whether an answer is overdue."""


class LinkLost(Exception):
    """Raised when the connection is at an end; says why."""


class Link:
    """Sends from any thread, in order and in as few writes as there is contention; one thread receives.

    After the first error it is useless: its owner closes it and opens another.
    """

    def __init__(self, address: Address, timeout_s: float, fill: Callable[[Link, int], bytes] | None = None) -> None:
        """Connect and shake hands. Raises TsoUnavailable, TsoIncompatible.

        `fill` is told how many requests a write has, and gives what is to be sent after them.
        """
        self.address = address
        self.writes = 0
        self._fill = fill
        self._reader = protocol.ResponseReader()
        self._lock = threading.Lock()
        self._outgoing: list[bytes] = []
        self._requests = 0
        self._is_sending = False
        try:
            self._socket = socket.create_connection((address.host, address.port), timeout_s)
        except OSError as error:
            raise TsoUnavailable(f"the TSO at {address} cannot be reached: {error}") from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._incoming = self._socket.dup()  # has a time limit of its own
            self._shake_hands(timeout_s)
        except BaseException:
            self._socket.close()
            raise

    def send(self, data: bytes, requests: int = 0) -> None:
        """Send requests, or leave it to the thread that is sending now. A loss shows where responses are received."""
        with self._lock:
            self._outgoing.append(data)
            self._requests += requests
            if self._is_sending:
                return
            self._is_sending = True
        while True:
            with self._lock:
                if not self._outgoing:
                    self._is_sending = False
                    return
                batch = b"".join(self._outgoing)
                requests, self._requests = self._requests, 0
                self._outgoing.clear()
            more = self._fill(self, requests) if self._fill is not None else b""
            try:
                self._socket.sendall(batch + more)
            except OSError:
                self.shutdown()
                return  # still "sending": whatever comes later is lost with the link
            self.writes += 1

    def receive(self) -> list[pb.Response]:
        """Wait for responses, at most for TICK_S. Raises LinkLost, TsoIncompatible."""
        try:
            data = self._incoming.recv(_RECEIVE_BYTES)
        except TimeoutError:
            return []
        except OSError as error:
            raise LinkLost(f"reading from {self.address} failed: {error}") from error
        if not data:
            raise LinkLost(f"{self.address} closed the connection")
        return self._reader.feed(data)

    def shutdown(self) -> None:
        """End the connection, so that `receive` raises. For any thread."""
        with suppress(OSError):  # it is over already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the sockets back; for the thread that receives."""
        self.shutdown()
        self._incoming.close()
        self._socket.close()

    def _shake_hands(self, timeout_s: float) -> None:
        try:
            self._incoming.settimeout(timeout_s)
            self._socket.sendall(protocol.HANDSHAKE)
            deadline = time.monotonic() + timeout_s
            while not (responses := self.receive()):
                if time.monotonic() >= deadline:
                    raise LinkLost(f"{self.address} said nothing for {timeout_s} s")
        except (OSError, LinkLost) as error:
            raise TsoUnavailable(f"the TSO did not complete the handshake: {error}") from error
        protocol.check_handshake(responses[0])
        self._incoming.settimeout(TICK_S)
