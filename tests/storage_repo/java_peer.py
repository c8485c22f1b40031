"""Java programs in processes of their own, driven by lines: Apache Omid's client, HBase's administration."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import pytest

from benchmarks._java import java_command
from compose import ServerMissing
from compose.hbase import JVM
from tests.support import IN_CI

SOURCES = Path(__file__).with_name("java")
Cells = dict[tuple[bytes, bytes, bytes], bytes]
"""(row, family, qualifier) -> value."""


P = TypeVar("P", bound="JavaProgram")


class PeerError(Exception):
    """Raised when the Java program throws; has the exception's text."""


class Refused(Exception):
    """Raised when the Java client's commit is refused."""


class JavaProgram:
    """A program that answers lines: a command and its arguments, bytes in hexadecimal."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output)
        self._read("ready")

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
            raise PeerError(line or f"the Java program has died:\n{self._log.read_text(errors='replace')[-2000:]}")
        return values


class JavaPeer(JavaProgram):
    """One client of Omid. Transactions have names; `table` is HBase's name of it."""

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


class Region(NamedTuple):
    """A region of a table: HBase's short name for it, its first key, and the server that has it."""

    name: str
    start: bytes
    server: str


class Administration(JavaProgram):
    """HBase's administration. Regions are where they are to be when a method returns."""

    def servers(self) -> list[str]:
        """Return the region servers that the master takes for alive."""
        return self._ask("servers")

    def regions(self, table: bytes) -> list[Region]:
        """Return a table's regions in the order of their keys."""
        words = iter(self._ask("regions", table.decode()))
        return [
            Region(n, b"" if k == "-" else bytes.fromhex(k), s) for n, k, s in zip(words, words, words, strict=True)
        ]

    def move(self, region: Region, server: str) -> None:
        """Close a region where it is and open it on another server."""
        self._ask("move", region.name, server)

    def split(self, region: Region, key: bytes) -> None:
        """Make two regions of one, which is gone then."""
        self._ask("split", region.name, key)

    def roll(self, server: str) -> None:
        """Have a server begin a new write-ahead log."""
        self._ask("roll", server)

    def compact(self, table: bytes) -> None:
        """Begin a major compaction of what a table has now."""
        self._ask("compact", table.decode())

    def recoveries(self) -> int:
        """Return of how many crashed region servers the master has not assigned all regions to others yet."""
        (text,) = self._ask("procedures")
        procedures = json.loads(bytes.fromhex(text))
        crashes = [p for p in procedures if p["className"].endswith(".ServerCrashProcedure")]
        return sum(procedure["state"] != "SUCCESS" for procedure in crashes)


def _cells(words: list[str]) -> Cells:
    parts = [b"" if word == "-" else bytes.fromhex(word) for word in words]
    return {(parts[i], parts[i + 1], parts[i + 2]): parts[i + 3] for i in range(0, len(parts), 4)}


@contextlib.contextmanager
def java_program(kind: type[P], source: str, conf: Path, arguments: list[str]) -> Iterator[P]:
    """Run a program that finds HBase by `conf`; skip loudly without a Java compiler."""
    with tempfile.TemporaryDirectory(prefix="adsindex-java-") as directory:
        try:
            command = java_command(SOURCES / source, conf, arguments, [*JVM, "-Xmx192m"])
        except ServerMissing as missing:
            if IN_CI:
                pytest.fail(str(missing))
            warnings.warn(str(missing), stacklevel=4)
            pytest.skip(str(missing))
        program = kind(command, Path(directory, "log"))
        try:
            yield program
        finally:
            program.kill()


@contextlib.contextmanager
def java_peer(conf: Path, zookeeper: str, level: Literal["cell", "row"] = "cell") -> Iterator[JavaPeer]:
    """Run a client of Omid that finds the TSO by ZooKeeper."""
    with java_program(JavaPeer, "OmidPeer.java", conf, ["ha", zookeeper, level]) as peer:
        yield peer


@contextlib.contextmanager
def administration(conf: Path) -> Iterator[Administration]:
    """Run HBase's administration."""
    with java_program(Administration, "Regions.java", conf, []) as program:
        yield program
