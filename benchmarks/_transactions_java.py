"""Apache Omid's own client as a peer: omid/OmidBench.java in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks._exceptions import BenchmarkFailed
from benchmarks._java import java_command
from benchmarks._transactions_load import COLUMNS, FAMILY, ROWS_EACH, VALUE_BYTES, Load, Measured

SOURCE = Path(__file__).parent / "omid" / "OmidBench.java"
_HEAP = "-Xmx512m"


class JavaClient:
    """Runs loads; the process stays, so that what the JVM has compiled serves the next one."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True
            )
        self._answer("ready")

    def run(self, kind: str, load: Load, *, mode: str = "sync") -> Measured:
        """Run transactions, each thread one after the other. `mode`: does the commit wait for the shadow cells?"""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{kind} {mode} {load.in_flight} {load.count}\n")
        self._process.stdin.flush()
        seconds, *micros = self._answer("ok")
        return Measured(float(seconds), [int(each) / 1e3 for each in micros], len(micros))

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()

    def _answer(self, wanted: str) -> list[str]:
        assert self._process.stdout is not None
        state, *values = self._process.stdout.readline().rstrip("\n").split(" ")
        if state != wanted:
            why = " ".join(values) or self._log.read_text(errors="replace")[-800:]
            raise BenchmarkFailed(f"the Java client failed: {why}")
        return values


@contextmanager
def java_client(conf: Path, zookeeper: str, table: str, rows: int, directory: Path) -> Iterator[JavaClient]:
    """Run the Java client on a table; HBase is found by `conf`. Raises BenchmarkFailed, ServerMissing."""
    columns = [column.removeprefix(f"{FAMILY}:") for column in COLUMNS]
    arguments = [zookeeper, table, str(rows), str(ROWS_EACH), str(VALUE_BYTES), *columns]
    client = JavaClient(java_command(SOURCE, conf, arguments, [_HEAP]), directory / "java.log")
    try:
        yield client
    finally:
        client.close()
