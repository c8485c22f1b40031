"""The Gateway's runner: change feed -> materialize -> log, with the position stored in the step that publishes."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, closing

import grpc
import structlog

from gateway import lost_rows
from gateway._exceptions import AdsDbUnavailable, SchemaMismatch
from gateway.ads_db import AdsDb
from gateway.backends import open_feed, open_rows
from gateway.feed import Change
from gateway.materialize import Materialized, Materializer
from gateway.rpc import GatewayService, serve
from gateway.streams import ensure_stream_topics
from messaging import LogUnavailable, OutRecord
from messaging.drops import drop_records, split_too_old
from messaging.headers import now_us
from messaging.stage import StageContext
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, ensure_topics

BATCH = 500
"""Changes per batch at most: some 20 ms of work, so that a control update behind a bulk load waits no longer for its
own batch. A lone change goes out at once: a batch is what is there, never what may come."""

MAX_PUBLISH_BYTES = 32 << 20
"""Entities with huge texts: a batch over this is cut in halves, so that memory stays bounded."""

KEPT_CHANGES = 10_000
"""Published changes kept behind, for people who look at the feed."""

_STORE_SECONDS = 0.5
"""How often a position is stored when nothing was published: enough for waiting people and for a short way back."""

_STAGE = "gateway"
_IDLE_SECONDS = 0.25  # how soon a stop request is noticed
_BACK_OFF = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)

_log = structlog.get_logger()


def run(context: StageContext) -> None:
    """Follow the ads DB until told to stop.

    Killed at any point, it goes on after the last published change: nothing is lost and nothing published twice. While
    ads DB or log are away it backs off and tries again. Raises SchemaMismatch at start when catalogue and ads DB do
    not fit together, ServerUnsuitable, and PositionLost when the server has thrown away changes that were not read.
    """
    url = context.settings.get("ads_db", "")
    failures = 0
    with ExitStack() as served:
        port: int | None = None
        while not context.stop.is_set():
            try:
                with ExitStack() as stack:
                    if (
                        not url and port is not None and not context.home.ads_db.exists()
                    ):  # opening would make an empty one
                        raise AdsDbUnavailable(f"ads DB {context.home.ads_db} is gone; put the file back")
                    db = stack.enter_context(AdsDb.open(url or context.home.ads_db))
                    gateway = _Gateway(context, db, stack)
                    if port is None:
                        server, port = serve(GatewayService(db, context.catalog, context.log))
                        served.callback(_stop, server)
                        context.ready(port)
                    context.metrics.gauge("ads_db_available", 1)
                    failures = 0
                    gateway.follow()
            except (AdsDbUnavailable, LogUnavailable) as error:
                delay = _BACK_OFF[min(failures, len(_BACK_OFF) - 1)]
                failures += 1
                context.metrics.gauge("ads_db_available", 0)
                context.metrics.count("unavailable")
                context.beat()
                _log.warning("gateway_waits", error=str(error), retry_in_s=delay, failures=failures)
                context.stop.wait(delay)
    context.metrics.flush(force=True)


def _stop(server: grpc.Server) -> None:
    server.stop(grace=1).wait()


class _Gateway:
    """One connection's life: from a position read from the log until the ads DB or the log fails."""

    def __init__(self, context: StageContext, db: AdsDb, stack: ExitStack) -> None:
        self._context, self._log, self._metrics = context, context.log, context.metrics
        self._db = db
        ensure_topics(self._log)
        committed = self._log.committed(GATEWAY_GROUP, CHANGE_FEED)[0]
        captured = db.ensure_capture(context.catalog, max(0, committed - 1))
        if captured.lost:
            lost_rows.ask(self._log, captured.lost)
        by_file = context.settings.get("binlog_position") == "file"
        self._feed = stack.enter_context(closing(open_feed(db, context.catalog, self._log, by_file=by_file)))
        self._source = stack.enter_context(closing(open_rows(db, context.catalog, self._feed)))
        self._materializer = Materializer(context.catalog)
        ensure_stream_topics(self._log, self._materializer.streams)
        self._last = self._feed.begin(committed)
        self._stored_at = time.monotonic()
        self._held = 0
        """Changes published of which the position is not stored yet (see ChangeFeed.hold_s): a batch at most."""
        self._schema: int | None = None
        """Version of the schema that capture was last checked for; at first unknown: it may change at any time."""
        self._whole_until = 0
        _log.info(
            "gateway_start",
            position=self._last,
            triggers_created=captured.triggers_created,
            rows_enqueued=captured.rows_enqueued,
        )
        if why := self._feed.gap(self._last, []):
            self._resync(why)

    def follow(self) -> None:
        """Publish changes as they come, until told to stop."""
        while not self._context.stop.is_set():
            self._context.switches.hold(self._context.stop.wait, self._context.beat)
            self._watch_schema()
            started = time.perf_counter_ns()
            changes = self._feed.read(self._last, BATCH)
            if changes:
                if self._last >= self._whole_until and (why := self._feed.gap(self._last, changes)):
                    self._resync(why)
                self._metrics.time("read_us", (time.perf_counter_ns() - started) / 1000)
                self._publish(changes)
            else:
                self._store_position()
                self._trim()
            self._metrics.gauge("lag", self._feed.end() - self._last)
            self._context.beat()
            if len(changes) < BATCH:
                self._feed.wait(self._last, min(self._feed.hold_s, _IDLE_SECONDS) if self._held else _IDLE_SECONDS)
        self._store_position(at_once=True)

    def _watch_schema(self) -> None:
        """After DDL by anybody: put back triggers that went with it, and read again what it may have changed."""
        version = self._feed.schema_version()
        if version == self._schema:
            return
        self._schema = version  # what capture itself changes here makes the next look a second, cheap one
        try:
            captured = self._db.ensure_capture(self._context.catalog, self._last)
        except SchemaMismatch as error:  # changes of those tables become dead letters; the next DDL may mend it
            self._metrics.count("schema_mismatches")
            _log.error("gateway_schema_mismatch", error=str(error), todo="mend the ads DB's schema or the catalogue")
            return
        if captured.lost or captured.redefined:
            self._metrics.count("capture_repairs")
        if captured.lost:
            lost_rows.ask(self._log, captured.lost)

    def _publish(self, changes: Sequence[Change]) -> None:
        entered_us = now_us()
        started = time.perf_counter_ns()
        result = self._materializer.materialize(changes, self._source)
        records = result.records(entered_us)
        size = sum(len(record.value) for record in records)
        if size > MAX_PUBLISH_BYTES and len(changes) > 1:
            middle = len(changes) // 2
            self._publish(changes[:middle])
            self._publish(changes[middle:])
            return
        records = self._without_too_old(result, records)
        materialized = time.perf_counter_ns()
        held = self._held + len(changes)
        due = held >= BATCH or time.monotonic() - self._stored_at >= self._feed.hold_s
        position = self._feed.stored(changes[-1].seq) if due else None
        self._log.publish(records, positions=[] if position is None else [position])
        self._last = changes[-1].seq
        self._held = held if position is None else 0
        if position is not None:
            self._stored_at = time.monotonic()
        published = time.perf_counter_ns()
        self._metrics.time("materialize_us", (materialized - started) / 1000)
        self._metrics.time("publish_us", (published - materialized) / 1000)
        self._count(changes, result, records, (published - started) // 1000)

    def _without_too_old(self, result: Materialized, records: list[OutRecord]) -> list[OutRecord]:
        """Take out what a switch says is too old; return the records that are left, and those that say so."""
        _, dropped = split_too_old(result.updates, self._context.switches)
        if not dropped:
            return records
        gone = {id(update) for update in dropped}
        updates, letters = records[: len(result.published)], records[len(result.published) :]
        kept = [pair for pair in zip(result.published, updates, strict=True) if id(pair[0].message) not in gone]
        result.published = [published for published, _ in kept]
        return [*(record for _, record in kept), *letters, *drop_records(_STAGE, dropped, self._metrics)]

    def _count(
        self, changes: Sequence[Change], result: Materialized, records: Sequence[OutRecord], took_us: int
    ) -> None:
        reasons = Counter(letter.reason for letter in result.dead_letters)
        self._metrics.count("changes", len(changes))
        published = result.counts()
        for stream in self._materializer.streams:
            self._metrics.count(stream.name, published[stream.name])
        for reason, count in reasons.items():
            self._metrics.count(f"dead_letters:{reason}", count)
        _log.info(
            "gateway_batch",
            changes=len(changes),
            first=changes[0].seq,
            last=changes[-1].seq,
            published=dict(published),
            deleted=sum(update.deleted for update in result.updates),
            dead_letters=dict(reasons),
            records=len(records),
            took_us=took_us,
        )

    def _resync(self, why: str) -> None:
        """A gap in the feed: every row is enqueued again, and the gap is said aloud, never passed over."""
        lost_rows.ask(self._log, lost_rows.ALL)
        enqueued = self._feed.resync(self._last + 1)
        self._whole_until = self._feed.end()
        self._metrics.count("resyncs")
        _log.error(
            "gateway_resync",
            why=why,
            position=self._last,
            rows_enqueued=enqueued,
            todo="rows deleted in the gap are served until the sync that the workflows stage starts has found them",
        )

    def _store_position(self, *, at_once: bool = False) -> None:
        """Much may happen in an ads DB that concerns none of our tables: the position follows it all the same."""
        least = self._feed.hold_s if self._held else _STORE_SECONDS
        if not at_once and time.monotonic() - self._stored_at < least:
            return
        self._stored_at, self._held = time.monotonic(), 0
        position = self._feed.stored(self._last)
        if position is not None and position.metadata:
            self._log.set_committed([position])

    def _trim(self) -> None:
        if self._last - self._feed.start() > 2 * KEPT_CHANGES:
            self._metrics.count("trimmed", self._feed.trim(self._last - KEPT_CHANGES))
