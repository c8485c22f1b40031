"""A Kafka broker in KRaft mode from Maven jars: broker and controller in one process."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from compose import process
from compose.jars import TEMPLATES, cache_directory, fetch_jars, find_java, locked, remove_left_over
from compose.server import ANSWER_SECONDS, READY_SECONDS, Server, fill_template

JVM = ("-Xmx384m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Djava.awt.headless=true")
"""Quick to start and small; a broker for throughput measurements wants more of each (see OPERATIONS.md)."""
TOOL_SECONDS = 120.0
"""Formatting takes a second; a machine under load, far longer."""
_UTF_8 = ("/usr/bin/env", "LC_ALL=C.UTF-8")
"""Without a UTF-8 locale Java cannot enter directories with other letters than ASCII's."""
_METADATA, _METADATA_VERSION = 3, 4


class KafkaServer(Server):
    """One broker; its URL is kafka://127.0.0.1:PORT."""

    name = "kafka"
    port_names = ("port", "controller_port")

    def prepare(self) -> None:
        """Fetch the jars and make the class-data archive, once per machine."""
        _ = self._java, self._archive

    def url(self, port: int) -> str:
        """Bootstrap address."""
        return f"kafka://127.0.0.1:{port}"

    def configure(self, ports: Mapping[str, int]) -> list[str]:
        """Write the configuration and format the log directory if there is none."""
        extra = "".join(f"{key}={value}\n" for key, value in self.overrides.items())
        write_configuration(self.directory, ports, extra)
        if not (self.directory / "data" / "meta.properties").exists():
            shutil.rmtree(self.directory / "data", ignore_errors=True)  # a format that was killed
            format_storage(self._java, self.directory, self.log_file, self._archive_flags)
        return broker_command(self._java, self.directory, self._archive_flags)

    def answers(self, port: int) -> bool:
        """Ask for the cluster's brokers: a broker lists itself only when the controller has let it in."""
        request = struct.pack(">hhih", _METADATA, _METADATA_VERSION, 1, -1) + struct.pack(">i?", 0, False)
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as connection:
                connection.sendall(struct.pack(">i", len(request)) + request)
                answer = connection.recv(4096)
        except OSError:
            return False
        # size, correlation id, throttle time, number of brokers
        return len(answer) >= 16 and struct.unpack_from(">iiii", answer)[3] > 0

    @cached_property
    def _java(self) -> str:
        return find_java()

    @cached_property
    def _archive(self) -> Path:
        return class_data_archive(self._java)

    @property
    def _archive_flags(self) -> list[str]:
        return [f"-XX:SharedArchiveFile={self._archive}"]


def class_path() -> str:
    """Return the explicit list of jars: an archive is used only with the list it was made with."""
    return os.pathsep.join(map(str, fetch_jars(TEMPLATES / "kafka.pom.xml")))


def java_command(java: str, directory: Path, flags: Sequence[str]) -> list[str]:
    """Return the command up to the main class, to be run in the directory."""
    owner = f"-Dadsindex.directory={directory}"  # by which `Server.pid` knows its process
    return [*_UTF_8, java, *JVM, *flags, "-Dlog4j.configuration=file:log4j.properties", owner, "-cp", class_path()]


def broker_command(java: str, directory: Path, flags: Sequence[str]) -> list[str]:
    """Return the command of a broker, to be run in the directory that has its configuration."""
    return [*java_command(java, directory, flags), "kafka.Kafka", "server.properties"]


def write_configuration(directory: Path, ports: Mapping[str, int], extra: str = "") -> None:
    """Write server.properties and log4j.properties."""
    values = {"PORT": ports["port"], "CONTROLLER_PORT": ports["controller_port"]}
    fill_template("server.properties", directory / "server.properties", values, extra=extra)
    fill_template("log4j.properties", directory / "log4j.properties", values)


def format_storage(java: str, directory: Path, log_file: Path, flags: Sequence[str]) -> None:
    """Make the log directory of a new cluster."""
    cluster = "-"
    while cluster.startswith("-"):  # the tool would take it for an option
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    tool = ["kafka.tools.StorageTool", "format", "-t", cluster, "-c", "server.properties"]
    command = [*java_command(java, directory, flags), *tool]
    process.run_tool(command, log_file, what="formatting Kafka's storage", seconds=TOOL_SECONDS, cwd=directory)


def class_data_archive(java: str) -> Path:
    """Return the archive of loaded classes (AppCDS), made once per machine and Java by a broker that starts and stops.

    A start takes 1.3 s with it and 3.1 s without.
    """
    version = subprocess.run([java, "-version"], capture_output=True, check=True, timeout=TOOL_SECONDS).stderr
    key = hashlib.sha256(b"\n".join([version, class_path().encode(), " ".join(JVM).encode()])).hexdigest()[:16]
    archive = cache_directory() / f"kafka-classes-{key}.jsa"
    if archive.exists():
        return archive
    with locked(archive.with_suffix(".lock")):
        if not archive.exists():
            _make_archive(java, archive)
    return archive


def _make_archive(java: str, archive: Path) -> None:
    log = archive.with_suffix(".log")
    log.unlink(missing_ok=True)
    remove_left_over(archive)
    with tempfile.TemporaryDirectory(prefix=f"{archive.name}.part-", dir=archive.parent) as name:
        directory = Path(name)
        ports = {port_name: process.free_port() for port_name in KafkaServer.port_names}
        write_configuration(directory, ports)
        format_storage(java, directory, log, [])
        part = directory / "classes.jsa"
        command = broker_command(java, directory, [f"-XX:ArchiveClassesAtExit={part}"])
        if limit := shutil.which("timeout"):  # should we be killed, this broker ends all the same
            command = [limit, str(int(2 * READY_SECONDS)), *command]
        broker = process.spawn(command, directory / "server.pid", log, cwd=directory)
        try:
            server = KafkaServer(directory)
            process.wait_until_ready(
                "the broker that lists its classes", lambda: server.answers(ports["port"]),
                lambda: broker.poll() is None, seconds=READY_SECONDS, log_file=log,
            )  # fmt: skip
        finally:
            process.stop(broker.pid, gracefully_within=READY_SECONDS)
            broker.wait()
        part.rename(archive)
