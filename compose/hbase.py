"""HBase from Maven jars: master, region server and ZooKeeper in one process, and its two Thrift servers."""

from __future__ import annotations

import os
import socket
import struct
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar
from xml.sax.saxutils import escape

from compose._errors import StackError
from compose.jars import TEMPLATES, fetch_jars, find_java
from compose.server import Server, fill_template

POM = TEMPLATES / "hbase.pom.xml"
JVM = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true")
"""Quick to start; throughput measurements want the other compiler too (see OPERATIONS.md)."""
_OPENED = ("java.nio", "sun.nio.ch", "java.lang", "jdk.internal.ref", "java.lang.reflect", "java.util",
           "java.util.concurrent")  # fmt: skip
JAVA_17 = (
    "-Dorg.apache.hbase.thirdparty.io.netty.tryReflectionSetAccessible=true",
    "--add-modules=jdk.unsupported",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
    "--add-exports=java.base/jdk.internal.misc=ALL-UNNAMED",
    "--add-exports=java.security.jgss/sun.security.krb5=ALL-UNNAMED",
)
"""What HBase, and its client, reach into since Java 9."""
_UTF_8 = ("/usr/bin/env", "LC_ALL=C.UTF-8")
"""Without a UTF-8 locale Java cannot enter directories with other letters than ASCII's."""
ANSWER_SECONDS = 3.0
"""A server that does not answer a trivial question in this time is not ready."""
SESSION_MS = 10_000
"""After how long a further region server that was killed counts as dead. One that a busy machine lets wait for longer
than this takes itself for dead and ends."""
_THRIFT_VERSION, _CALL, _REPLY = 0x8001, 1, 2


class HBaseJvm(Server):
    """A Java server of HBase's family: configuration in conf/, with one class path and class-data archive."""

    heap: ClassVar[str]
    flags: ClassVar[tuple[str, ...]] = ()
    class_data: Sequence[str] | None = None
    """Flags about class data; None: use the archive, and make it if there is none."""

    @abstractmethod
    def main(self, ports: Mapping[str, int]) -> Sequence[str]:
        """Main class and its arguments."""

    def prepare(self) -> None:
        """Fetch the jars and make the class-data archive, once per machine."""
        _ = self._java, jars(), self._class_data

    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Write conf/ and return the command."""
        self.write_conf(self.hbase_ports() if self.needs else ports)
        return self.java(self.main(ports))

    def java(self, main: Sequence[str]) -> list[str]:
        """Return the command that runs a main class with this server's configuration, in its directory."""
        owner = f"-Dadsindex.directory={self.directory}"  # by which `Server.pid` knows its process
        log = "-Dlog4j2.configurationFile=conf/log4j2.properties"
        flags = [*JVM, *JAVA_17, *self._class_data, f"-Xmx{self.heap}", *self.flags, log, owner]
        return [*_UTF_8, self._java, *flags, "-cp", f"{class_path()}{os.pathsep}conf", *main]

    def write_conf(self, hbase: Mapping[str, int], more: Mapping[str, str] | None = None) -> None:
        """Write hbase-site.xml for these ports of HBase, and log4j2.properties."""
        conf = self.directory / "conf"
        conf.mkdir(exist_ok=True)
        lines = (
            f"  <property><name>{escape(name)}</name><value>{escape(value)}</value></property>\n"
            for name, value in (more or {}).items()
        )
        values = {
            "DATA": escape(str(self.directory.parent / "hbase" / "data")), "MASTER_PORT": hbase["port"],
            "REGIONSERVER_PORT": hbase["regionserver_port"], "ZOOKEEPER_PORT": hbase["zookeeper_port"],
            "MORE": "".join(lines),
        }  # fmt: skip
        fill_template("hbase-site.xml", conf / "hbase-site.xml", values)
        fill_template("log4j2.properties", conf / "log4j2.properties", {})

    def hbase_ports(self) -> Mapping[str, int]:
        """Return the ports of this stack's HBase. Raises StackError if it has never run."""
        ports = HBaseServer(self.directory.parent / HBaseServer.name).ports()
        if not ports:
            raise StackError(f"{self.name} needs hbase, which never ran in {self.directory.parent}")
        return ports

    @cached_property
    def _java(self) -> str:
        return find_java()

    @property
    def _class_data(self) -> Sequence[str]:
        if self.class_data is None:
            from compose.archive import class_data_archive  # which runs these very servers

            self.class_data = [f"-XX:SharedArchiveFile={class_data_archive(self._java)}"]
        return self.class_data


class HBaseServer(HBaseJvm):
    """HBase in one process. Its URL is that of the Storage Repo on it as soon as the Thrift servers have run."""

    name = "hbase"
    port_names = ("port", "regionserver_port", "zookeeper_port")
    heap = "768m"
    # ZooKeeper would wait for the disk at every write, seconds on a busy one, and Omid then misses its lease's renewal.
    # What the kernel has outlives a kill -9, as with our other servers.
    flags = ("-Dzookeeper.forceSync=no",)

    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Write the configuration, with the lines that the user adds."""
        self.write_conf(ports, self.overrides)
        return self.java(self.main(ports))

    def main(self, ports: Mapping[str, int]) -> Sequence[str]:
        """The master, which runs a region server and ZooKeeper beside itself."""
        return ["org.apache.hadoop.hbase.master.HMaster", "start"]

    def url(self, port: int) -> str:
        """Return hbase://THRIFT1?thrift2=PORT&zookeeper=ADDRESS; without Thrift servers zookeeper://ADDRESS."""
        zookeeper = f"127.0.0.1:{self.ports()['zookeeper_port']}"
        first, second = (kind(self.directory.parent / kind.name).ports() for kind in (ThriftServer, Thrift2Server))
        if not first or not second:
            return f"zookeeper://{zookeeper}"
        return f"hbase://127.0.0.1:{first['port']}?thrift2={second['port']}&zookeeper={zookeeper}"

    def answers(self, port: int) -> bool:
        """Ask the master for its namespaces: it refuses until it is initialized and has found its system tables."""
        return _does(port, b"MasterService", b"ListNamespaces")


class RegionServer(HBaseJvm):
    """A further region server in a process of its own: for moves of regions, and crashes that leave HBase alive."""

    name = "regionserver"
    needs = ("hbase",)
    heap = "256m"

    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Write the configuration: HBase's, but for what only the process with the master may say."""
        more = {"hbase.cluster.distributed": "true", "zookeeper.session.timeout": str(SESSION_MS)}
        self.write_conf({**self.hbase_ports(), "regionserver_port": ports["port"]}, more | self.overrides)
        return self.java(self.main(ports))

    def main(self, ports: Mapping[str, int]) -> Sequence[str]:
        """It takes everything from its configuration."""
        return ["org.apache.hadoop.hbase.regionserver.HRegionServer", "start"]

    def url(self, port: int) -> str:
        """Return NAME://127.0.0.1:PORT; clients find it by themselves."""
        return f"{self.name}://127.0.0.1:{port}"

    def answers(self, port: int) -> bool:
        """Ask who it is: it refuses until the master has accepted it."""
        return _does(port, b"AdminService", b"GetServerInfo")


class SecondRegionServer(RegionServer):
    """One more."""

    name = "regionserver2"


def _does(port: int, service: bytes, method: bytes) -> bool:
    """Call a method without parameters by HBase's RPC; return whether the answer is a result."""
    header = _protobuf_text(1, _protobuf_text(1, b"adsindex")) + _protobuf_text(2, service)
    request = b"\x08\x01" + _protobuf_text(3, method) + b"\x20\x01"  # call 1, parameters follow
    call = bytes([len(request)]) + request + b"\x00"
    preamble = b"HBas\x00\x50" + struct.pack(">I", len(header)) + header
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
            connection.sendall(preamble + struct.pack(">I", len(call)) + call)
            answer = connection.recv(4096)
    except OSError:
        return False
    # size of all, size of the header, header: call id (field 1) and, if it refuses, an exception (field 2)
    return len(answer) > 7 and answer[5:7] == b"\x08\x01" and b"Exception" not in answer[:200]


def _protobuf_text(field: int, text: bytes) -> bytes:
    return bytes([field << 3 | 2, len(text)]) + text


class _Thrift(HBaseJvm):
    """A Thrift server: binary protocol, unframed. It is HBase's client: it waits for HBase when that is away."""

    needs = ("hbase",)
    heap = "256m"
    question: ClassVar[bytes]
    """A call without parameters that HBase must answer."""
    package: ClassVar[str]

    def main(self, ports: Mapping[str, int]) -> Sequence[str]:
        """One of the two servers, on loopback."""
        main = f"org.apache.hadoop.hbase.{self.package}.ThriftServer"
        return [main, "start", "-p", str(ports["port"]), "-b", "127.0.0.1", "--infoport", "-1"]

    def url(self, port: int) -> str:
        """Return NAME://127.0.0.1:PORT."""
        return f"{self.name}://127.0.0.1:{port}"

    def answers(self, port: int) -> bool:
        """Ask something that HBase answers."""
        call = struct.pack(">HHI", _THRIFT_VERSION, _CALL, len(self.question)) + self.question + struct.pack(">Ix", 1)
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
                connection.sendall(call)
                answer = connection.recv(4096)
        except OSError:
            return False
        # after the message's header: type and id of the first field; 0 is the result, others are errors
        result = 12 + len(self.question)
        return answer[:4] == struct.pack(">HH", _THRIFT_VERSION, _REPLY) and answer[result + 1 : result + 3] == b"\0\0"


class ThriftServer(_Thrift):
    """HBase's Thrift1 server, which happybase speaks to."""

    name = "thrift"
    package = "thrift"
    question = b"getTableNames"


class Thrift2Server(_Thrift):
    """HBase's Thrift2 server: exact deletes, many versions per read, check-and-mutate."""

    name = "thrift2"
    package = "thrift2"
    question = b"listNamespaceDescriptors"


def class_path() -> str:
    """Return the explicit list of jars: a class-data archive is used only with the list it was made with."""
    return os.pathsep.join(map(str, jars()))


def jars() -> list[Path]:
    """Return the jars of HBase, Thrift and Omid, also what a Java client needs."""
    return fetch_jars(POM)
