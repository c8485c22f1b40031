"""Argus as a process: notifications from three lanes in; derived columns, documents and deltas out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import structlog

from argus._pause import paused_handlers
from argus._registry import load_registry
from argus._run import Paused
from argus.core import STAGE, ArgusCore, Outcome, Sources
from argus.rpc import serve
from argus.sources import CachedSource, PerformanceDb
from catalog import LaneName
from messaging.api import Position, Record
from messaging.home import Home
from messaging.stage import StageContext
from messaging.topics import ARGUS_GROUP, DEFERRED, DEFERRED_GROUP, LANES, NOTIFICATIONS
from storage_repo import Repo

_BATCH: Mapping[LaneName, int] = {LaneName.HIGH: 256, LaneName.MEDIUM: 128, LaneName.LOW: 32}
"""Records taken at once while a lane has a backlog. A high update waits for the batch before it, so a lower lane gets
smaller ones; each lane that waits has its share of a batch (see `Consumer.poll`), and what is of a higher lane is
published before the rest is worked on (see `by_lane`)."""
_WAIT_SECONDS = 0.5
_DEFERRED_BATCH = 64
_DEFERRED_PAUSE_SECONDS = 2.0
"""While a source is away, or a handler paused, a batch of the rows that wait for it is tried at this pace: a cache
leaves a source alone for as long after a failure. Once it answers they follow each other at once."""
_DEFERRED_LOOK_SECONDS = 0.25
"""How often to look whether any row waits."""
_LANE_OF_TOPIC = {topic: lane for lane, topic in NOTIFICATIONS.items()}


def open_sources(home: Home) -> dict[str, CachedSource[int, object]]:
    """Return the external sources of the built-in handlers, each behind its cache. Opens nothing yet."""
    return {"performance": CachedSource("performance", PerformanceDb(home.performance_db))}


def run(context: StageContext, repo: Repo, sources: Sources | None = None) -> None:
    """Process notifications until told to stop.

    Commits to the Repo come first; then deltas, dead letters, continuations and the consumer's positions are published
    in one durable step. Killed in between, the records come again and their documents are published then.
    Raises RepoError or MessagingError when a backend is away; started again, it goes on where it was.
    """
    registry = load_registry(context.catalog)
    opened = open_sources(context.home) if sources is None else {}
    used: Sources = opened if sources is None else sources

    def paused() -> Paused:
        return paused_handlers(context.switches)

    core = ArgusCore(
        repo,
        registry,
        used,
        code_version=context.code_version,
        metrics=context.metrics,
        seed=os.getpid(),
        paused=paused,
    )
    mirror_core = ArgusCore(
        repo, registry, used, code_version=context.code_version, seed=os.getpid() + 1, paused=paused
    )
    mirror, port = serve(mirror_core, context.log)
    topics = [NOTIFICATIONS[lane] for lane in LANES]
    consumer = context.log.consumer(ARGUS_GROUP, topics, member=f"{STAGE}-{context.worker}")
    later = context.log.consumer(DEFERRED_GROUP, [DEFERRED], member=f"{STAGE}-{context.worker}")
    context.ready(port)
    size, due, more = min(_BATCH.values()), 0.0, False
    try:
        while not context.stop.is_set():
            context.beat()
            context.switches.hold(context.stop.wait, context.beat)
            consumer.pause(context.switches.paused_topics(NOTIFICATIONS))
            later.pause([DEFERRED] if context.switches.paused(LaneName.LOW) else [])
            records = consumer.poll(size, 0.0 if more else _WAIT_SECONDS)
            for part in by_lane(records):
                context.beat()
                process_and_publish(context, core, part)
            size = next_batch_size(records, size)
            if time.monotonic() >= due:
                deferred = later.poll(_DEFERRED_BATCH, 0.0)
                waits = bool(deferred) and process_and_publish(context, core, deferred).only_waits
                more = bool(deferred) and not waits
                pause = 0.0 if more else _DEFERRED_PAUSE_SECONDS if waits else _DEFERRED_LOOK_SECONDS
                due = time.monotonic() + pause
            for source in used.values():
                for name, value in source.statistics().items():
                    context.metrics.gauge(f"source_{name}:{source.name}", value)
    finally:
        consumer.close()
        later.close()
        mirror.stop(grace=1)
        for opened_source in opened.values():
            opened_source.close()
        context.metrics.flush(force=True)


def next_batch_size(records: Sequence[Record], size: int) -> int:
    """Return how many records to take next: more only while the last batch was full, by the lane that most of it was.

    The shares of lower lanes in a backlog of a higher one do not count: small batches would slow that lane down.
    """
    if len(records) < size:
        return min(_BATCH.values())
    ((topic, _),) = Counter(record.topic for record in records).most_common(1)
    return _BATCH[_LANE_OF_TOPIC[topic]]


def by_lane(records: Sequence[Record]) -> list[list[Record]]:
    """Return the records of a batch by lane, the highest first.

    So a control update does not wait for the rows of a refresh that were taken together with it.
    """
    return [part for lane in LANES if (part := [r for r in records if r.topic == NOTIFICATIONS[lane]])]


def process_and_publish(context: StageContext, core: ArgusCore, records: Sequence[Record]) -> Outcome:
    """Process one batch and acknowledge it in the same step that publishes what it led to."""
    started, cpu = time.perf_counter(), time.process_time()
    outcome = core.process(records)
    publishing = time.perf_counter()
    context.log.publish(outcome.records(), positions_after(records))
    ended = time.perf_counter()
    metrics = context.metrics
    metrics.count("notifications", len(records))
    metrics.count("busy_us", int((ended - started) * 1e6))
    metrics.count("cpu_us", int((time.process_time() - cpu) * 1e6))
    metrics.time("publish_us", (ended - publishing) * 1e6)
    metrics.time("batch_us", (ended - started) * 1e6)
    structlog.get_logger().info(
        "processed",
        stage=STAGE,
        worker=context.worker,
        notifications=len(records),
        **outcome.counts,
        deltas=len(outcome.deltas),
        dead_letters=len(outcome.dead_letters),
        ms=round((ended - started) * 1e3, 2),
    )
    return outcome


def positions_after(records: Sequence[Record]) -> list[Position]:
    """Return the positions that acknowledge the given records."""
    upto: dict[tuple[str, int], int] = {}
    for record in records:
        place = record.topic, record.partition
        upto[place] = max(upto.get(place, 0), record.offset + 1)
    return [
        Position(DEFERRED_GROUP if topic == DEFERRED else ARGUS_GROUP, topic, partition, offset)
        for (topic, partition), offset in upto.items()
    ]
