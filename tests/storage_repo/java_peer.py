"""Apache Omid's real Java client in a process of its own, driven by lines (java/OmidPeer.java)."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from benchmarks._java import java_command
from compose import ServerMissing
from compose.hbase import JVM
from tests.support import IN_CI

SOURCE = Path(__file__).with_name("java") / "OmidPeer.java"
Cells = dict[tuple[bytes, bytes, bytes], bytes]
"""(row, family, qualifier) -> value."""


class PeerError(Exception):
    """Raised when the Java client throws; has the exception's text."""


class Refused(Exception):
    """Raised when the Java client's commit is refused."""


class JavaPeer:
    """One Java client. Transactions have names; `table` is HBase's name of it."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output)
        self._read("ready")

    def begin(self, name: str) -> tuple[int, int]:
        """Begin, and return start timestamp and epoch."""
        start, epoch = self._ask("begin", name)
        return int(start), int(epoch)

    def put(self, name: str, table: bytes, row: bytes, family: bytes, qualifier: bytes, value: bytes) -> None:
        """Write a cell; it goes to HBase at once."""
        self._ask("put", name, table, row, family, qualifier, value)

    def delete(self, name: str, table: bytes, row: bytes, *column: bytes) -> None:
        """Delete a row, a family of it, or a cell (family, qualifier)."""
        self._ask("delete", name, table, row, *column)

    def get(self, name: str, table: bytes, row: bytes, *columns: bytes) -> Cells:
        """Read a row, or the columns named by family, qualifier, family, qualifier..."""
        return _cells(self._ask("get", name, table, row, *columns))

    def scan(self, name: str, table: bytes, start: bytes = b"", stop: bytes = b"") -> Cells:
        """Read the rows from `start` to before `stop`."""
        return _cells(self._ask("scan", name, table, start, stop))

    def commit(self, name: str, die_before: Literal["", "shadow-cells", "removal"] = "") -> int:
        """Commit and return the commit timestamp; leave out what follows `die_before`. Raises Refused."""
        return int(self._ask("commit", name, *([die_before] if die_before else []))[0])

    def rollback(self, name: str) -> None:
        """Roll back: the cells are deleted."""
        self._ask("rollback", name)

    def abandon(self, name: str) -> None:
        """Forget the transaction, as if the client had died before its commit: the cells stay."""
        self._ask("abandon", name)

    def fence(self, table: bytes) -> int:
        """Fence a table and return the fence's timestamp."""
        return int(self._ask("fence", table)[0])

    def kill(self) -> None:
        """End the process as an accident would."""
        self._process.kill()
        self._process.wait()

    def _ask(self, command: str, *arguments: str | bytes) -> list[str]:
        words = [command, *(word if isinstance(word, str) else word.hex() or "-" for word in arguments)]
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words).encode() + b"\n")
        self._process.stdin.flush()
        return self._read("ok")

    def _read(self, wanted: str) -> list[str]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().decode().rstrip("\n")
        state, *values = line.split(" ")
        if state == "aborted":
            raise Refused
        if state != wanted:
            raise PeerError(line or f"the Java client has died:\n{self._log.read_text(errors='replace')[-2000:]}")
        return values


def _cells(words: list[str]) -> Cells:
    parts = [b"" if word == "-" else bytes.fromhex(word) for word in words]
    return {(parts[i], parts[i + 1], parts[i + 2]): parts[i + 3] for i in range(0, len(parts), 4)}


@contextlib.contextmanager
def java_peer(conf: Path, zookeeper: str, level: Literal["cell", "row"] = "cell") -> Iterator[JavaPeer]:
    """Run a Java client that finds HBase by `conf` and the TSO by ZooKeeper; skip loudly without a Java compiler."""
    with tempfile.TemporaryDirectory(prefix="adsindex-peer-") as directory:
        try:
            command = java_command(SOURCE, conf, ["ha", zookeeper, level], [*JVM, "-Xmx192m"])
        except ServerMissing as missing:
            if IN_CI:
                pytest.fail(str(missing))
            warnings.warn(str(missing), stacklevel=3)
            pytest.skip(str(missing))
        peer = JavaPeer(command, Path(directory, "log"))
        try:
            yield peer
        finally:
            peer.kill()
