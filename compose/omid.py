"""Apache Omid's timestamp oracle (TSO), with its tables in HBase and its lease in HBase's ZooKeeper."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from compose import process
from compose.hbase import ANSWER_SECONDS, HBaseJvm
from compose.jars import locked
from compose.server import State, fill_template

LEASE_MS = 10_000
"""Omid's own default. A TSO begins to serve one period after its start, and after the other's last sign of life; one
that is held up for three quarters of it ends itself: 3 s were too short where twenty programs share two processors."""
CONFLICT_MAP_SIZE = 1_000_000
"""16 MB. At 1,000 transactions of 10 cells a second the last 100 s of them: no transaction of ours takes so long."""
TOOL_SECONDS = 180.0
"""Making a table takes some seconds; a machine under load, far longer."""
TABLES = (("commit-table", "-numRegions", "1"), ("timestamp-table",))
"""What Omid's own tool is told to make."""
_HANDSHAKE = struct.pack(">I", 4) + b"\x1a\x02\x0a\x00"


class OmidServer(HBaseJvm):
    """One TSO. A second one on the same HBase stands by, and takes over when the first does not renew its lease."""

    name = "omid"
    needs = ("hbase",)
    heap = "256m"
    other: ClassVar[str] = "omid2"

    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Write the configuration and make Omid's tables if there are none."""
        hbase = self.hbase_ports()
        self.write_conf(hbase)
        changed = {"leasePeriodInMs": str(LEASE_MS), "conflictMapSize": str(CONFLICT_MAP_SIZE), **self.overrides}
        values = {
            "PORT": ports["port"], "ZOOKEEPER_PORT": hbase["zookeeper_port"],
            "LEASE_MS": changed.pop("leasePeriodInMs"), "CONFLICT_MAP_SIZE": changed.pop("conflictMapSize"),
        }  # fmt: skip
        extra = "".join(f"{key}: {value}\n" for key, value in changed.items())
        name = "omid-server-configuration.yml"
        fill_template(name, self.directory / "conf" / name, values, extra=extra)
        self._make_tables()
        return self.java(self.main(ports))

    def main(self, ports: Mapping[str, int]) -> Sequence[str]:
        """The TSO takes everything from its configuration."""
        return ["org.apache.omid.tso.TSOServer"]

    def url(self, port: int) -> str:
        """Return omid://127.0.0.1:PORT."""
        return f"omid://127.0.0.1:{port}"

    def answers(self, port: int) -> bool:
        """Shake hands; a TSO listens only while it holds the lease."""
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
                connection.sendall(_HANDSHAKE)
                answer = connection.recv(64)
        except OSError:
            return False
        return answer[4:5] == b"\x1a"

    def state_of(self, pid: int, port: int) -> State:
        """Return ready, standby (the other one serves and this one is in touch with ZooKeeper) or unresponsive."""
        state = super().state_of(pid, port)
        if state == "ready" or process.listens(pid, port):
            return state
        ports = OmidServer(self.directory.parent / self.other).ports()
        served = bool(ports) and self.answers(ports["port"])
        return "standby" if served and process.is_connected(pid, self.hbase_ports()["zookeeper_port"]) else state

    def _make_tables(self) -> None:
        """Run Omid's own tool once per HBase; what is there already, it leaves alone."""
        data = self.directory.parent / "hbase" / "data"
        made = data / "omid-tables"
        with locked(self.directory.parent / "hbase" / "omid-tables.lock"):
            if made.exists():
                return
            with ThreadPoolExecutor(len(TABLES)) as pool:
                list(pool.map(self._make_table, TABLES))
            made.touch()

    def _make_table(self, arguments: Sequence[str]) -> None:
        command = self.java(["org.apache.omid.tools.hbase.OmidTableManager", *arguments])
        what = f"making Omid's {arguments[0]}"
        process.run_tool(command, self.log_file, what=what, seconds=TOOL_SECONDS, cwd=self.directory)


class SecondOmidServer(OmidServer):
    """Another TSO of the same HBase, for fail-over; which of the two serves is up to the lease."""

    name = "omid2"
    other = OmidServer.name
