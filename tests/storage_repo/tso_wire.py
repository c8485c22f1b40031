"""A wire to a real TSO that can be cut, frozen, or lose what comes back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

_BYTES = 1 << 16


class Wire:
    """Forwards TCP connections to another port of this machine, while it is told to."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._deaf: set[socket.socket] = set()
        """Where nothing that the server says is passed on."""
        self._frozen: set[socket.socket] = set()
        """Where nothing that the client says is passed on."""
        self._is_open, self._freezes_next = True, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """What the client is to connect to."""
        return f"omid://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._listener.getsockname()[1])

    def lose_answers(self) -> None:
        """From now on the present connections bring nothing back; new ones do."""
        with self._lock:
            self._deaf.update(client for client, _ in self._pairs)

    def freeze(self) -> None:
        """From now on the present connections bring nothing to the server; new ones do."""
        with self._lock:
            self._frozen.update(client for client, _ in self._pairs)

    def freeze_next(self) -> None:
        """The next connection will bring nothing to the server."""
        with self._lock:
            self._freezes_next = True

    def cut(self) -> None:
        """Close the present connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _close(*pair)

    def refuse(self) -> None:
        """Cut, and take no new connections."""
        with self._lock:
            self._is_open = False
        self.cut()

    def accept(self) -> None:
        """Take connections again."""
        with self._lock:
            self._is_open = True

    def close(self) -> None:
        """Be gone."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self._listener.accept()
                with self._lock:
                    if not self._is_open:
                        client.close()
                        continue
                    server = socket.create_connection(("127.0.0.1", self._target))
                    self._pairs.append((client, server))
                    if self._freezes_next:
                        self._frozen.add(client)
                        self._freezes_next = False
                threading.Thread(target=self._pass_on, args=(client, server, self._frozen, True), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(server, client, self._deaf, False), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, stopped: set[socket.socket], up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_BYTES):
                with self._lock:
                    lose = (source if up else target) in stopped
                if not lose:
                    target.sendall(data)
        _close(source, target)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@contextmanager
def wire_to(port: int) -> Iterator[Wire]:
    """Yield a wire to a port of this machine."""
    wire = Wire(port)
    try:
        yield wire
    finally:
        wire.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Return when the condition holds; fail when it takes longer than a loaded machine needs."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.005)
