"""Debezium's embedded engine as a tail: built by Maven from `debezium/`, run as a process of its own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from sqlalchemy.engine import URL

from benchmarks._cdc_tail import Tail
from benchmarks._exceptions import BenchmarkFailed
from compose.jars import cache_directory

SOURCE = Path(__file__).with_name("debezium")
_BUILD_S = 900.0
"""The first build fetches 60 MB of jars."""

_MAIN = "adsindex.bench.Tail"
_PROPERTIES = """\
name=bench
connector.class=io.debezium.connector.mariadb.MariaDbConnector
database.hostname={host}
database.port={port}
database.user={user}
database.password={password}
database.server.id={server_id}
topic.prefix=bench
database.include.list={database}
table.include.list={database}.ads
include.schema.changes=false
tombstones.on.delete=false
snapshot.mode=no_data
converter.schemas.enable={schemas}
schema.history.internal=io.debezium.relational.history.MemorySchemaHistory
offset.storage=org.apache.kafka.connect.storage.MemoryOffsetBackingStore
offset.flush.interval.ms=1000
database.ssl.mode=disable
connect.keep.alive=false
"""
"""Defaults where nothing speaks against them. `no_data` reads the tables' structure and then only the tail. The thread
that keeps the connection alive would take being held for a dead server and connect again."""


def missing_tools() -> list[str]:
    """Return what Debezium needs and this machine does not have."""
    return [tool for tool in ("java", "javac", "mvn") if shutil.which(tool) is None]


def build() -> Path:
    """Return a directory with `classes` and `lib`, built by Maven at first use. Raises BenchmarkFailed."""
    sources = sorted(path for path in SOURCE.rglob("*") if path.suffix in {".xml", ".java"})
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    cache = cache_directory()
    target = cache / f"debezium-{digest}"
    if (target / "classes").is_dir() and (target / "lib").is_dir():
        return target
    part = cache / f"debezium-{digest}.part-{os.getpid()}"
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(SOURCE, part, ignore=shutil.ignore_patterns("target"))
    try:
        done = subprocess.run(
            ["mvn", "-q", "-B", "package"], cwd=part, capture_output=True, text=True, timeout=_BUILD_S, check=False
        )
        if done.returncode:
            raise BenchmarkFailed(f"Maven could not build Debezium ({done.returncode}): {done.stdout[-800:]}")
        shutil.rmtree(target, ignore_errors=True)
        (part / "target").rename(target)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkFailed(f"Maven did not build Debezium within {_BUILD_S:.0f} s") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def start(url: URL, directory: Path, name: str, server_id: int, *, schemas: bool) -> Tail:
    """Start a tail of the table `ads` that throws its envelopes away. Raises BenchmarkFailed.

    `schemas`: whether every envelope carries the schema of its row, as the engine does unless told otherwise.
    """
    built = build()
    properties = directory / f"{name}.properties"
    properties.touch(mode=0o600)
    properties.write_text(
        _PROPERTIES.format(
            host=url.host,
            port=url.port,
            user=url.username,
            password=url.password,
            database=url.database,
            server_id=server_id,
            schemas=str(schemas).lower(),
        )
    )
    command = ["java", "-Xmx1g", "-cp", f"{built / 'classes'}:{built / 'lib'}/*", _MAIN, str(properties), os.devnull]
    return Tail(name, command, directory / f"{name}.log")
