"""The reports stage: a Faust app on Kafka that counts what is dropped into a table with a changelog.

A stream app in the plain sense: two topics in, one table of counts by key out, no order of priority between topics and
nobody waiting for it. Faust brings what that needs: group, table, changelog and its recovery. `report drops` reads the
changelog (see `messaging.reports`).

Counts are exact after kill -9 because the table itself says where to go on: every count remembers the offset up to
which it has counted. Faust's own position is not relied on. It goes back to it after a recovery only where it is above
0, it takes a gap for compacted records, and under load we saw it pass over records that it had fetched while it
recovered. So the agent counts nothing but the next record of a topic, and seeks back when that was missed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from messaging._exceptions import LogError, LogUnavailable
from messaging._kafka_wire import APPENDED_US
from messaging.api import Log, Record
from messaging.kafka import KafkaLog
from messaging.reports import COUNTED, expired, load_counts, next_offsets, tally
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
    counter = Counter(log)
    app = _App(log, context.home.root / STAGE, context.worker, counter)
    watch = _Watch(log, counter)
    try:
        while not context.stop.wait(_BEAT_SECONDS):
            context.beat()
            app.check()
            context.metrics.gauge("uncounted", watch.look())
            context.metrics.gauge("sought_back", counter.sought_back)
    finally:
        app.stop()
        context.metrics.flush(force=True)


class Counter:
    """Counts the records of each topic one after the other, whatever Faust brings when."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._table: Any = None
        self._seek: Callable[[str, int], Awaitable[None]] | None = None
        self.following: dict[str, int] = {}
        """Topic -> offset of the next record to count; empty until the table is recovered."""
        self.missed = False
        """Whether a record came that lies beyond the next one."""
        self.sought_back = 0

    def bind(self, table: Any, seek: Callable[[str, int], Awaitable[None]]) -> None:
        """Take the table, and what moves Faust's consumer in a topic."""
        self._table, self._seek = table, seek

    async def go_on(self) -> None:
        """Go to the first record of each topic that the table has not counted, or to the oldest kept after it."""
        assert self._seek is not None
        self.missed = False
        for topic, following in next_offsets(dict(self._table.items())).items():
            oldest = await asyncio.to_thread(self._log.start_offsets, topic)
            self.following[topic] = max(following, oldest[0])
            await self._seek(topic, self.following[topic])

    async def seek_back(self) -> None:
        """Go on from the first record not counted if one was missed; while the log is away, later."""
        if self.missed:
            try:
                await self.go_on()
            except LogUnavailable as error:
                self.missed = True
                _log.warning("reports_cannot_seek", error=str(error))
            else:
                self.sought_back += 1

    def take(self, record: Record) -> None:
        """Count a record if it is the next one of its topic."""
        following = self.following.get(record.topic, 0)
        if record.topic not in self.following or record.offset > following:
            self.missed = True
        elif record.offset == following:
            if (counted := tally(self._table, record)) is not None:
                key, value = counted
                fresh = key not in self._table
                self._table[key] = value
                if fresh:
                    for old in expired(list(self._table), datetime.now(UTC).date()):
                        self._table.pop(old)
            self.following[record.topic] = following + 1


class _Watch:
    """Looks how many records wait to be counted, and whether any is."""

    def __init__(self, log: Log, counter: Counter) -> None:
        self._log, self._counter = log, counter
        self._looked = -_LOOK_SECONDS
        self._waiting = 0
        self._done: dict[str, int] = {}
        self._moved = time.monotonic()

    def look(self) -> int:
        """Return how many wait, looked up now and then. Raises LogError when they wait and nothing moves."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return self._waiting
        self._looked = now
        done = dict(self._counter.following)
        try:
            ends = {topic: self._log.end_offsets(topic)[0] for topic in COUNTED}
        except LogUnavailable as error:
            _log.warning("reports_lag_unknown", error=str(error))
            self._moved = now
            return self._waiting
        self._waiting = sum(end - done.get(topic, 0) for topic, end in ends.items())
        if done != self._done or not self._waiting:
            self._done, self._moved = done, now
        elif now - self._moved > STUCK_SECONDS:
            raise LogError(f"{self._waiting} dropped messages wait and none was counted for {now - self._moved:.0f} s")
        return self._waiting


class _App:
    """The Faust app with an event loop in a thread of its own: the stage's thread stays free to say that it lives."""

    def __init__(self, log: KafkaLog, directory: Path, worker: int, counter: Counter) -> None:
        self._arguments = log, directory, worker, counter
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
        app, counter = make_app(*self._arguments), self._arguments[-1]
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        if self._stop_early:
            return
        await app.start()
        try:
            while not self._stopping.is_set():
                if app.crashed or app.should_stop:
                    raise LogError(f"Faust has given up: {app.crash_reason!r}") from app.crash_reason
                await counter.seek_back()  # not at every record: what Faust has in its queue comes first
                try:
                    await asyncio.wait_for(self._stopping.wait(), _BEAT_SECONDS)
                except TimeoutError:
                    continue
        finally:
            await app.stop()


def make_app(log: KafkaLog, directory: Path, worker: int, counter: Counter) -> faust.App:
    """Return the app: its id is the group, and with the table's name the name of the changelog's topic."""
    import faust  # a second and 40 MB that no other stage needs
    from mode.supervisors import CrashingSupervisor

    _log_warnings()
    settings, prefix = log.settings, log.prefix
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

    consumer: Any = app.consumer
    seek_to_committed = consumer.seek_to_committed

    async def seek(topic: str, offset: int) -> None:
        await consumer.seek(faust.types.TP(prefix + topic, 0), offset)

    async def seek_to_counted() -> Any:
        found = await seek_to_committed()
        await counter.go_on()
        return found

    counter.bind(counts, seek)
    consumer.seek_to_committed = seek_to_counted  # Faust calls it when the table is recovered

    @app.agent(dropped)
    async def count(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            topic = message.topic[len(prefix) :]
            value = event.value or b""
            record = Record(topic, message.partition, message.offset, "", value, _appended_us(message))
            counter.take(record)

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
