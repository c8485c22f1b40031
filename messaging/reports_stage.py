"""The reports stage: a Faust app on Kafka that counts what is dropped into a table with a changelog.

A stream app in the plain sense: two topics in, one table of counts by key out, no order of priority between topics and
nobody waiting for it. Faust brings what that needs: group, table, changelog and its recovery. `report drops` reads the
changelog (see `messaging.reports`).

Counts are exact after kill -9: Faust flushes the changelog before it stores its position, so what is read again has
been counted up to the offset that each count remembers, and is passed over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from messaging._exceptions import LogError, LogUnavailable
from messaging._kafka_wire import APPENDED_US
from messaging.api import Log, Record
from messaging.kafka import KafkaLog
from messaging.kafka_settings import KafkaSettings
from messaging.reports import COUNTED, expired, load_counts, tally
from messaging.stage import StageContext
from messaging.topics import COUNTS_TABLE, REPORTS_GROUP

if TYPE_CHECKING:
    import faust

STAGE = "reports"

SESSION_SECONDS = 10.0
"""With Faust's own time-outs a killed worker was missed for up to 108 s."""
_HEARTBEAT_SECONDS = 3.0
_COMMIT_SECONDS = 2.0
_NICE = 5
"""Nobody waits for counts: where processors are short, the stages that an ad passes through come first."""
_BEAT_SECONDS = 0.5
_LOOK_SECONDS = 15.0
"""How often the lag is looked up; each look is a few questions to the broker."""
STUCK_SECONDS = 180.0
"""Records wait and none was counted for so long: several times what a rebalance or a broker's restart takes."""

_log = structlog.get_logger()


def run(context: StageContext) -> None:
    """Count until told to stop. Raises LogError when Faust has failed or is stuck: the supervisor starts it again.

    Ready at once: the report counts by itself what this stage has not counted yet.
    """
    log = context.log
    if not isinstance(log, KafkaLog):
        raise LogError("the reports stage runs on a Kafka log; with the embedded one `report drops` counts by itself")
    counts = load_counts(log)  # before Faust joins: counts of another topic of that name must not be gone on with
    _log.info("reports_started", counts=len(counts))
    context.ready(0)
    counting = threading.Event()
    app = _App(log.settings, log.prefix, context.home.root / STAGE, context.worker, counting.set)
    watch = _Watch(log)
    try:
        while not context.stop.wait(_BEAT_SECONDS):
            context.beat()
            app.check()
            context.metrics.gauge("uncounted", watch.look())
            context.metrics.gauge("counting", float(counting.is_set()))
    finally:
        app.stop()
        context.metrics.flush(force=True)


class _Watch:
    """Looks how many records wait to be counted, and whether any is."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._looked = -_LOOK_SECONDS
        self._waiting = 0
        self._done = -1
        self._moved = time.monotonic()

    def look(self) -> int:
        """Return how many wait, looked up now and then. Raises LogError when they wait and nothing moves."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return self._waiting
        self._looked = now
        try:
            done = end = 0
            for topic in COUNTED:
                oldest = self._log.start_offsets(topic)
                done += sum(max(at, oldest[p]) for p, at in self._log.committed(REPORTS_GROUP, topic).items())
                end += sum(self._log.end_offsets(topic).values())
        except LogUnavailable as error:
            _log.warning("reports_lag_unknown", error=str(error))
            self._moved = now
            return self._waiting
        self._waiting = end - done
        if done != self._done or not self._waiting:
            self._done, self._moved = done, now
        elif now - self._moved > STUCK_SECONDS:
            raise LogError(f"{self._waiting} dropped messages wait and none was counted for {now - self._moved:.0f} s")
        return self._waiting


class _App:
    """The Faust app with an event loop in a thread of its own: the stage's thread stays free to say that it lives."""

    def __init__(self, settings: KafkaSettings, prefix: str, directory: Path, worker: int, on_recovered: Any) -> None:
        self._arguments = settings, prefix, directory, worker, on_recovered
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._stop_early = False
        self._thread = threading.Thread(target=self._run, name="faust", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LogError if the app has ended by itself."""
        if not self._thread.is_alive():
            raise LogError(f"the reports app has ended: {self._failure!r}") from self._failure

    def stop(self) -> None:
        """Leave the group and wait for the end."""
        self._stop_early = True
        if self._loop is not None and self._stopping is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(SESSION_SECONDS)

    def _run(self) -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, _NICE)  # on Linux of this thread
            asyncio.run(self._serve())
        except BaseException as error:  # also told by the stage's own thread, in check()
            self._failure = error
            raise

    async def _serve(self) -> None:
        app = make_app(*self._arguments)
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        if self._stop_early:
            return
        await app.start()
        try:
            while not self._stopping.is_set():
                if app.crashed or app.should_stop:
                    raise LogError(f"Faust has given up: {app.crash_reason!r}") from app.crash_reason
                try:
                    await asyncio.wait_for(self._stopping.wait(), _BEAT_SECONDS)
                except TimeoutError:
                    continue
        finally:
            await app.stop()


def make_app(settings: KafkaSettings, prefix: str, directory: Path, worker: int, on_recovered: Any) -> faust.App:
    """Return the app: its id is the group, and with the table's name the name of the changelog's topic."""
    import faust  # a second and 40 MB that no other stage needs
    from mode.supervisors import CrashingSupervisor

    _log_warnings()
    app = faust.App(
        f"{prefix}{REPORTS_GROUP}",
        broker=";".join(f"kafka://{server}" for server in settings.servers),
        broker_credentials=_credentials(faust, dict(settings.security)),
        broker_session_timeout=SESSION_SECONDS,
        broker_heartbeat_interval=_HEARTBEAT_SECONDS,
        broker_rebalance_timeout=SESSION_SECONDS,
        broker_commit_interval=_COMMIT_SECONDS,
        # A named member that comes back after kill -9 has its place at once, without a rebalance.
        consumer_group_instance_id=f"{prefix}{STAGE}-{worker}",
        consumer_auto_offset_reset="earliest",
        producer_acks=-1,
        processing_guarantee="at_least_once",
        store="memory://",
        key_serializer="raw",
        value_serializer="raw",
        datadir=str(directory),
        topic_allow_declare=False,  # topics are made by `topics apply`
        topic_disable_leader=True,
        web_enabled=False,
        autodiscover=False,
        agent_supervisor=CrashingSupervisor,  # a restarted agent would pass over the record that it failed at
    )
    counts = app.Table(COUNTS_TABLE, partitions=1, key_type=bytes, value_type=bytes)
    dropped = app.topic(*(prefix + topic for topic in COUNTED), key_type=bytes, value_type=bytes)

    @app.agent(dropped)
    async def count(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            topic = message.topic[len(prefix) :]
            value = event.value or b""
            record = Record(topic, message.partition, message.offset, "", value, _appended_us(message))
            if (counted := tally(counts, record)) is not None:
                key, value = counted
                fresh = key not in counts
                counts[key] = value
                if fresh:
                    for old in expired(list(counts), datetime.now(UTC).date()):
                        counts.pop(old)

    @app.on_rebalance_complete.connect
    async def recovered(*_: Any, **__: Any) -> None:
        on_recovered()

    return app


def _appended_us(message: Any) -> int:
    headers = message.headers.items() if isinstance(message.headers, Mapping) else message.headers or ()
    for name, value in headers:
        if name == APPENDED_US:
            return int.from_bytes(value, "big")
    return int(message.timestamp * 1e6)


def _credentials(faust: Any, security: dict[str, str]) -> Any:
    """Return Faust's form of what the log's URL says about security; None for a plain connection."""
    protocol = security.get("security_protocol", "PLAINTEXT")
    context = None
    if protocol.endswith("SSL"):
        context = ssl.create_default_context(cafile=security.get("ssl_cafile"))
        if certificate := security.get("ssl_certfile"):
            context.load_cert_chain(certificate, security.get("ssl_keyfile"))
    if protocol.startswith("SASL"):
        return faust.SASLCredentials(
            username=security.get("sasl_plain_username"),
            password=security.get("sasl_plain_password"),
            ssl_context=context,
            mechanism=security.get("sasl_mechanism"),
        )
    return faust.auth.SSLCredentials(context) if context is not None else None


class _ToStructlog(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        error = str(record.exc_info[1]) if record.exc_info else None
        _log.log(record.levelno, "faust", logger=record.name, text=record.getMessage(), error=error)


def _log_warnings() -> None:
    """Write what Faust and its client warn of into the stage's log, in its form."""
    for name in ("faust", "mode", "aiokafka"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.WARNING)
        logger.propagate = False
        if not any(isinstance(handler, _ToStructlog) for handler in logger.handlers):
            logger.addHandler(_ToStructlog())
