"""Which stages there are, and what each is run with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from catalog import Catalog
from cli.runtime import (
    dependency_graph,
    hbase_schema,
    open_embedded_repo,
    open_repo,
    peer_id,
    ready_server,
    serving_port,
)
from cli.settings import EMBEDDED, Settings
from messaging.home import Home
from messaging.stage import StageContext

if TYPE_CHECKING:
    from storage_repo.hbase.names import HbaseNames
    from storage_repo.hbase.wal import WalProxySettings


def run_gateway(context: StageContext) -> None:
    """Tail the ads DB."""
    from gateway import stage

    stage.run(context)


def run_updater(context: StageContext) -> None:
    """Store updates in the Repo."""
    from updater import stage

    repo = open_repo(context.home, context.catalog)
    try:
        stage.run(context, repo)
    finally:
        repo.close()


def run_wal_proxy(context: StageContext) -> None:
    """Turn commits into notifications."""
    watched = dependency_graph(context.catalog).watched_cells()
    if Settings.load(context.home).repo != EMBEDDED:
        from storage_repo.hbase import HbaseRepo
        from storage_repo.hbase.wal import run

        url, names, columns, settings = hbase_proxy_arguments(context.home, context.catalog, context.settings)
        if settings.port:  # a fixed one is the first's; each further proxy of this home has the next
            settings = settings.model_copy(update={"port": settings.port + context.worker})
        schema = hbase_schema(context.catalog)
        return run(context, url, names, columns, settings, open_repo=lambda: HbaseRepo.open(url, schema))
    from storage_repo import wal_proxy

    repo = open_embedded_repo(context.home, context.catalog)
    try:
        wal_proxy.run(context, repo, watched)
    finally:
        repo.close()


def hbase_proxy_arguments(
    home: Home, catalog: Catalog, options: Mapping[str, str]
) -> tuple[str, HbaseNames, Mapping[str, frozenset[str]], WalProxySettings]:
    """Return where, what and how the WAL proxy of a home on HBase watches."""
    from storage_repo.hbase import HbaseAddress
    from storage_repo.hbase.names import HbaseNames
    from storage_repo.hbase.probe import PROBE_COLUMN, PROBE_TABLE
    from storage_repo.hbase.wal import WalProxySettings

    url = Settings.load(home).repo
    watched = {**dependency_graph(catalog).watched_cells(), PROBE_TABLE: frozenset({PROBE_COLUMN})}
    names = HbaseNames(hbase_schema(catalog), HbaseAddress.parse(url).prefix)
    return url, names, watched, WalProxySettings.of({"walproxy_peer_id": peer_id(url)} | dict(options))


def run_argus(context: StageContext) -> None:
    """Derive columns and documents."""
    from argus.stage import run

    repo = open_repo(context.home, context.catalog)
    try:
        run(context, repo)
    finally:
        repo.close()


def run_manas(context: StageContext) -> None:
    """Serve documents."""
    from manas import server

    server.run(context)


def run_broker(context: StageContext) -> None:
    """Answer from all shards."""
    from manas import broker_server

    broker_server.run(context, lambda number: ready_server(context.home, f"manas-{number}"))


def run_debug_ui(context: StageContext) -> None:
    """Serve the pages."""
    from cli.backends import open_backends
    from debug_ui.stage import run

    run(context, lambda: open_backends(context.home, context.catalog, server_only=True))


def run_reports(context: StageContext) -> None:
    """Count what is dropped, on a Kafka log."""
    from messaging import reports_stage

    reports_stage.run(context)


def run_workflows(context: StageContext) -> None:
    """Run batch workflows that are due, asked for or interrupted, each in a process of its own."""
    from batch_workflows import stage
    from cli.workflow_runs import spawn_queued

    repo = open_repo(context.home, context.catalog)
    try:
        stage.run(context, repo, lambda name: spawn_queued(context.home, name))
    finally:
        repo.close()


def run_bases(context: StageContext) -> None:
    """Bring published base indexes from the home's address to the home."""
    from batch_workflows import base_mirror

    base_mirror.run(context)


STAGES: dict[str, Callable[[StageContext], None]] = {
    "gateway": run_gateway,
    "updater": run_updater,
    "wal_proxy": run_wal_proxy,
    "argus": run_argus,
    "manas": run_manas,
    "broker": run_broker,
    "debug_ui": run_debug_ui,
    "reports": run_reports,
    "workflows": run_workflows,
    "bases": run_bases,
}
"""In the order of the life of an update, then those beside it."""

PIPELINE = tuple(STAGES)
__all__ = ["PIPELINE", "STAGES", "serving_port"]
