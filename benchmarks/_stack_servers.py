"""The real servers under a benchmark: its own, started on this machine and stopped after it, or given ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from catalog import load_catalog
from cli.runtime import hbase_schema
from cli.settings import EMBEDDED, Settings, stage_settings
from cli.stages import hbase_proxy_arguments
from cli.topics import wanted_topics
from compose import Stack
from messaging.home import Home
from messaging.kafka import open_kafka_log


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the ads DB and the log are, and the processes that serve them where they are known."""

    ads_db: str
    log: str
    repo: str = ""
    """"": the embedded Repo."""
    pids: Mapping[str, int] = field(default_factory=dict)

    def cpu_s(self) -> dict[str, float]:
        """Return the processor seconds that each known server has used."""
        times = {name: psutil.Process(pid).cpu_times() for name, pid in self.pids.items()}
        return {name: of.user + of.system for name, of in times.items()}


@contextmanager
def servers(directory: Path, given: Servers | None = None, *, hbase: bool = False) -> Iterator[Servers]:
    """Start MariaDB and Kafka below `directory`, unless they are given; with `hbase` all that a Repo on it needs, too.

    Raises StackError.
    """
    if given is not None:
        yield given
        return
    # A server gives up a reader that takes nothing for a minute; those of `bench cdc` are held for longer.
    stack = Stack(directory / "stack", overrides={"mysql": {"net_write_timeout": "3600"}})
    try:
        up = stack.up(["mysql", "kafka", *(["hbase", "thrift", "thrift2", "omid"] if hbase else [])])
        pids = {name: info.pid for name, info in up.items()}
        yield Servers(up["mysql"].url, up["kafka"].url, stack.status(["hbase"])["hbase"].url if hbase else "", pids)
    finally:
        stack.down()


def apply_tables(home: Home) -> None:
    """Create tables and replication peer of the Repo that the settings name, where it is on HBase."""
    from storage_repo.hbase import apply_schema
    from storage_repo.hbase.wal import prepare_peer

    url = Settings.load(home).repo
    if url != EMBEDDED:
        catalog = load_catalog()
        apply_schema(url, hbase_schema(catalog))
        prepare_peer(*hbase_proxy_arguments(home, catalog, stage_settings(home)))


def apply_topics(home: Home) -> None:
    """Create the topics that the home's stages use, in the Kafka log that its settings name."""
    with closing(open_kafka_log(Settings.load(home).log)) as log:
        for topic, partitions in wanted_topics(home).items():
            log.ensure_topic(topic, partitions)
