"""One class-data archive (CDS) for all Java servers of HBase's family: they start in about half the time."""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from compose import process
from compose._errors import ServerFailed
from compose.hbase import JAVA_17, JVM, HBaseJvm, HBaseServer, Thrift2Server, ThriftServer, class_path
from compose.jars import cache_directory, locked, remove_left_over
from compose.omid import OmidServer
from compose.server import STOP_SECONDS

TOOL_SECONDS = 300.0
"""Writing the archive takes ten seconds; a machine under load, far longer."""
_KINDS: Sequence[type[HBaseJvm]] = (HBaseServer, ThriftServer, Thrift2Server, OmidServer)


def class_data_archive(java: str) -> Path:
    """Return the archive, made once per machine, Java and class path; this takes about a minute.

    All servers run once and list the classes that they load. The archive is made from the lists together: a dynamic
    archive of one run, as Kafka has, cannot be made while a directory with configuration is on the class path.
    """
    version = subprocess.run([java, "-version"], capture_output=True, check=True, timeout=TOOL_SECONDS).stderr
    key = hashlib.sha256(b"\n".join([version, class_path().encode(), " ".join(JVM).encode()])).hexdigest()[:16]
    archive = cache_directory() / f"hbase-classes-{key}.jsa"
    if not archive.exists():
        with locked(archive.with_suffix(".lock")):
            if not archive.exists():
                _make(java, archive)
    return archive


def _make(java: str, archive: Path) -> None:
    log = archive.with_suffix(".log")
    log.unlink(missing_ok=True)
    for left_over in archive.parent.glob(f"{archive.name}.part-*"):
        _stop(_servers(left_over), gracefully_within=0)  # of a maker that was killed
    remove_left_over(archive)
    with tempfile.TemporaryDirectory(prefix=f"{archive.name}.part-", dir=archive.parent) as name:
        directory = Path(name)
        classes = directory / "classes.lst"
        classes.write_text("\n".join(_loaded_classes(directory)) + "\n")
        part = directory / "classes.jsa"
        command = [java, *JVM, *JAVA_17, "-Xshare:dump", f"-XX:SharedClassListFile={classes}",
                   f"-XX:SharedArchiveFile={part}", "-cp", class_path()]  # fmt: skip
        process.run_tool(command, log, what="making the class-data archive", seconds=TOOL_SECONDS, cwd=directory)
        part.rename(archive)


def _loaded_classes(directory: Path) -> list[str]:
    servers = _servers(directory)
    try:
        for server in servers:
            server.class_data = [f"-XX:DumpLoadedClassList={directory}/{server.name}.lst"]
            server.up()
    finally:
        _stop(servers, gracefully_within=STOP_SECONDS)  # a killed one would not finish its list
    lines = [line for server in servers for line in (directory / f"{server.name}.lst").read_text().splitlines()]
    if not lines:
        raise ServerFailed(f"the servers in {directory} listed no classes")
    return list(dict.fromkeys(lines))


def _servers(directory: Path) -> list[HBaseJvm]:
    return [kind(directory / kind.name) for kind in _KINDS]


def _stop(servers: Sequence[HBaseJvm], *, gracefully_within: float) -> None:
    for server in reversed(servers):
        server.down(gracefully_within=gracefully_within)
