"""`adsindex up`: all stages as supervised processes, a generated sample, live progress, a report when idle."""

from __future__ import annotations

import json
import signal
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import structlog
from rich.console import Console
from rich.live import Live
from rich.text import Text

from batch_workflows.retention import apply_retention
from batch_workflows.runs import RunStore
from batch_workflows.scheduler import to_resume
from cli.backends import close_backends, open_backends
from cli.idle import IdleWatch, Outstanding, deferred_rows, held_sentence, outstanding
from cli.logs import configure_logging
from cli.runtime import CommandError, freeze_catalog, hbase_schema, process_file, remember_catalog
from cli.settings import EMBEDDED, Settings, check_choice, choose, remember, stage_settings
from cli.stages import hbase_proxy_arguments
from cli.supervisor import Managed, Supervisor, plan
from debug_ui.backends import Backends
from gateway import AdsDbUnavailable
from gateway.streams import ensure_stream_topics, streams_of
from manas import ManasError
from messaging import LogUnavailable
from messaging.home import Home
from messaging.metrics import read_metrics
from messaging.rpc import reserve_shared_port
from messaging.switches import Switches
from storage_repo import StoreUnavailable
from storage_repo.embedded import EmbeddedRepo
from storage_repo.wal_proxy import check_feed

_LOOK_SECONDS = 0.1
_RETENTION_SECONDS = 30.0
"""Often enough that the log stays small, rarely enough that it costs nothing."""
_AWAY = (ManasError, LogUnavailable, AdsDbUnavailable, StoreUnavailable)
_METRICS_SECONDS = 5.0
"""A stage that has written no metrics for so long after all is done is hung; the report is made without it."""
HELD_EXIT = 3
"""Exit code of `up --until-idle` when all is done but for what switches hold."""


class _Stop:
    """Set by SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.set = False
        signal.signal(signal.SIGINT, self._on_signal)
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.set = True


def run_up(
    home: Home,
    *,
    sample: int,
    seed: int,
    port: int,
    until_idle: bool,
    as_json: bool,
    argus_workers: int,
    wal_proxies: int = 1,
    catalog_file: Path | None,
    ads_db: str | None = None,
    log: str | None = None,
    repo: str | None = None,
    walproxy: str | None = None,
    binlog_position: str | None = None,
    manas_processes: int = 1,
    base_fallback: bool = False,
    shards: int | None = None,
) -> None:
    """Bring the service up on a home; return when idle (`until_idle`) or when told to stop."""
    from batch_workflows import announce_left_over
    from batch_workflows.base_store import remembered_address
    from batch_workflows.sample import generate_sample

    started = time.monotonic()
    stop = _Stop()
    console = Console(stderr=True)
    configure_logging("warning")
    if (ads_db or log or repo or walproxy or binlog_position or shards) and process_file(home, "up").read():
        raise CommandError(f"the service is up on {home.root}; stop it before choosing other backends or shards")
    stages = [("debug_ui", f"port={port}")]
    if base_fallback:
        stages.append(("manas", "base_fallback=true"))
    shared = reserve_shared_port() if manas_processes > 1 else None
    if shared is not None:
        stages += [("manas", f"port={shared.getsockname()[1]}"), ("manas", "shared_port=true")]
    count = Settings.load(home).shards if shards is None else shards
    processes = plan(argus_workers, stages, manas_processes=manas_processes, shards=count, wal_proxies=wal_proxies)
    with shared or nullcontext(), Supervisor(home, processes) as supervisor:
        catalog, supervisor.catalog = freeze_catalog(home, catalog_file)
        chosen: dict[str, str | int | None] = {"ads_db": ads_db, "log": log, "repo": repo, "shards": shards}
        chosen |= {"walproxy": walproxy, "binlog_position": binlog_position}
        settings = check_choice(home, **chosen)
        if wal_proxies > 1 and settings.repo == EMBEDDED:
            raise CommandError("the embedded Repo's commits are read by one WAL proxy; several are for one on HBase")
        choose(home, log=log, repo=repo)  # at once: `topics apply` and `repo apply` are to find them
        if settings.log != EMBEDDED:
            supervisor.add("reports")
        if remembered_address(home):
            supervisor.add("bases")
        backends = open_backends(home, catalog, server_only=True, settings=settings)
        try:
            backends.ads_db.check_schema(catalog)
            remember(home, settings)
            ensure_stream_topics(backends.log, streams_of(catalog))
            _check_repo(home, backends)
            remember_catalog(home, catalog_file)
            supervisor.announce()
            _carry_catalog_changes(home, backends, console)
            if sample and backends.ads_db.is_empty():
                console.print(f"generating a sample of {sample} ads (seed {seed})")
                backends.ads_db.ensure_capture(catalog)  # before the rows: they are news, not a backlog
                generate_sample(backends.ads_db, home.performance_db, backends.log, sample, seed)
            announce_left_over(home.performance_db, backends.log)
            supervisor.start()
            supervisor.wait_ready()
            ui_port = supervisor.port("debug_ui-0")
            supervisor.keep_port("debug_ui", ui_port)
            supervisor.announce(ui_port)
            console.print(f"[bold]adsindex is up[/bold] on {home.root}: http://127.0.0.1:{ui_port}/", highlight=False)
            idle = _watch(supervisor, backends, stop, console, until_idle)
            if until_idle and idle is not None:
                _wait_for_metrics(home, supervisor)
                report = make_report(backends, supervisor.processes, time.monotonic() - started)
                report["held"] = [held.to_json() for held in idle.held]
                if as_json:
                    sys.stdout.write(json.dumps(report) + "\n")
                else:
                    _print_report(report)
                if idle.held:
                    sys.stderr.write(f"adsindex: {held_sentence(idle.held)}\n")
                    raise SystemExit(HELD_EXIT)
            elif until_idle:
                raise SystemExit(130)
        finally:
            try:
                supervisor.stop()
            finally:
                close_backends(backends)


def _check_repo(home: Home, backends: Backends) -> None:
    """Raise StoreUnavailable when the Repo does not belong to the log, or has not the catalogue's tables."""
    if isinstance(backends.repo, EmbeddedRepo):
        check_feed(backends.log, backends.repo)
        return
    from storage_repo.hbase import check_schema

    if differences := check_schema(Settings.load(home).repo, hbase_schema(backends.catalog)):
        shown = "; ".join(map(str, differences[:3])) + ("; …" if len(differences) > 3 else "")
        raise StoreUnavailable(f"the Repo's tables are not as the catalogue wants them: {shown}; run repo apply")
    from storage_repo.hbase.wal import prepare_peer

    # Before anybody writes: HBase does not ship what it has logged of a family before a peer wants it.
    if prepare_peer(*hbase_proxy_arguments(home, backends.catalog, stage_settings(home))):
        structlog.get_logger().info("peer_set_up")


def _carry_catalog_changes(home: Home, backends: Backends, console: Console) -> None:
    """After the catalogue was edited: let every handler and document see it; capture brings new columns by itself."""
    from batch_workflows.refresh import refresh

    known = home.root / "catalog.fingerprint"
    before = known.read_text() if known.exists() else None
    fingerprint = backends.catalog.fingerprint
    if before is not None and before != fingerprint:
        refreshed = refresh(backends.repo, backends.log, backends.catalog)
        console.print(f"the catalogue changed: {refreshed.rows} rows run again at low priority")
    known.write_text(fingerprint)


def _watch(
    supervisor: Supervisor, backends: Backends, stop: _Stop, console: Console, until_idle: bool
) -> Outstanding | None:
    """Tend the processes and show progress until idle, and return what switches still hold; None when told to stop."""
    watch, switches = IdleWatch(), Switches(backends.log)
    live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
    last_line = 0.0
    retained = time.monotonic()
    if live:
        live.start()
    try:
        while not stop.set:
            supervisor.tend()
            try:
                served = backends.serving.stats()
                state = outstanding(backends, served["positions"], switches, certain=until_idle)
            except _AWAY as error:  # the stages wait too, or start again
                structlog.get_logger().info("backend_away", error=str(error))
                time.sleep(_LOOK_SECONDS)
                continue
            line = _progress(state, served)
            if live:
                live.update(Text(line))
            elif time.monotonic() - last_line > 5.0 and state.total:
                console.print(line, highlight=False)
                last_line = time.monotonic()
            if time.monotonic() - retained > _RETENTION_SECONDS:
                trimmed = apply_retention(backends.home, backends.log)
                structlog.get_logger().info("retention", records=trimmed.records, bases=trimmed.bases)
                retained = time.monotonic()
            if watch.look(state) and until_idle and not _runs_left(backends):
                return state
            time.sleep(_LOOK_SECONDS if until_idle else 5 * _LOOK_SECONDS)
        return None
    finally:
        if live:
            live.stop()


def _runs_left(backends: Backends) -> bool:
    """Return whether a workflow's run goes on, waits, or is about to be resumed."""
    runs = RunStore(backends.repo)
    return bool(runs.at_work() or to_resume(runs))


def _wait_for_metrics(home: Home, supervisor: Supervisor) -> None:
    """Wait until every process has written its metrics since now: they are flushed about twice a second."""
    since = time.time()
    wanted = {managed.name for managed in supervisor.processes}
    while missing := wanted - {m["process"] for m in read_metrics(home.metrics) if m["at"] >= since}:
        if time.time() - since > _METRICS_SECONDS:
            structlog.get_logger().warning("metrics_missing", processes=sorted(missing))
            return
        supervisor.tend()
        time.sleep(_LOOK_SECONDS)


def _progress(state: Outstanding, served: dict[str, Any]) -> str:
    places = ", ".join(f"{place} {count}" for place, count in state.waiting.items() if count)
    if state.deferred:
        places += f"{', ' if places else ''}for a source or paused handler {state.deferred}"
    for held in state.held:
        places += f"{', ' if places else ''}held by {held.switch.name} {held.count}"
    away = "".join(f"; shard {name} does not answer" for name in served.get("missing_shards", {}))
    return f"{served['documents']} documents served{away}; waiting: {places or 'nothing'}"


def make_report(backends: Backends, processes: list[Managed], seconds: float) -> dict[str, Any]:
    """Return what `up --until-idle` reports."""
    from debug_ui.health import pipeline_status

    status = pipeline_status(backends).to_json()
    return {
        "documents": status["documents"],
        "seconds": round(seconds, 3),
        "latency_ms": status["latency_ms"],
        "conflicts": status["conflicts"],
        "retries": status["retries"],
        "dropped": status["dropped"],
        "deferred": deferred_rows(backends.log),
        "dead_lettered": status["dead_lettered"],
        "restarts": {m.name: m.restarts for m in processes if m.restarts},
        "cpu_seconds": {m["process"]: round(m["cpu_seconds"], 2) for m in read_metrics(backends.home.metrics)},
        "home": str(backends.home.root),
    }


def _print_report(report: dict[str, Any]) -> None:
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"{report['documents']} documents served after {report['seconds']:.1f} s")
    table = Table("lane", "stage", "count", "p50 ms", "p90 ms", "p99 ms", title="latency")
    for lane, stages in report["latency_ms"].items():
        for stage, values in stages.items():
            table.add_row(lane, stage, str(values["count"]), *(f"{values[q] or 0:.1f}" for q in ("p50", "p90", "p99")))
    console.print(table)
    for key in ("conflicts", "retries", "dropped", "deferred", "dead_lettered", "restarts"):
        console.print(f"{key.replace('_', ' ')}: {report[key]}", highlight=False)
