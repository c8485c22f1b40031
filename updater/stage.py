"""The Updater as a process: updates from three lanes and content signals in, committed rows out."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence

import structlog

from messaging import BadMessage
from messaging.api import OutRecord, Record
from messaging.dead_letters import dead_letter, out_record, parse
from messaging.drops import TOO_OLD, drop_records, split_too_old
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import LANES, SIGNALS, UPDATER_GROUP, UPDATES
from storage_repo import Repo
from updater.core import DUPLICATE, STAGE, STALE, UpdaterCore
from updater.rpc import serve

_BATCH = 256
"""Rows per durable write: large enough that the sync costs little per row, small enough that it adds no latency."""
_WAIT_SECONDS = 0.5
_HOLD_SECONDS = 0.02
"""How far stored positions may lag behind durable rows. Storing one is a synced write to the file that all stages
publish to, so one per batch would delay every message of the path; after a kill the last rows come twice and count as
duplicates."""


def run(context: StageContext, repo: Repo) -> None:
    """Apply updates until told to stop. Offsets are stored after the rows are durable: at least once, idempotent."""
    core = UpdaterCore(repo, context.catalog, context.code_version)
    mirror, port = serve(UpdaterCore(repo, context.catalog, context.code_version))
    topics = [*(UPDATES[lane] for lane in LANES), SIGNALS]
    consumer = context.log.consumer(UPDATER_GROUP, topics, member=f"{STAGE}-{context.worker}")
    context.ready(port)
    due: float | None = None  # when positions of durable rows are to be stored
    drops: list[OutRecord] = []  # of batches whose positions are not stored

    def commit() -> None:
        if drops:
            context.log.publish(drops)
            drops.clear()
        consumer.commit()

    try:
        while not context.stop.is_set():
            context.beat()
            consumer.pause(context.switches.paused_topics(UPDATES))
            wait_s = _WAIT_SECONDS if due is None else max(0.0, due - time.monotonic())
            if records := consumer.poll(_BATCH, wait_s):
                drops += _process(context, core, records)
                due = due or time.monotonic() + _HOLD_SECONDS
            if due is not None and time.monotonic() >= due:
                commit()
                due = None
        if due is not None:
            commit()
    finally:
        consumer.close()
        mirror.stop(grace=1).wait()
        context.metrics.flush(force=True)


def _process(context: StageContext, core: UpdaterCore, records: list[Record]) -> list[OutRecord]:
    """Store a batch and send its dead letters; return what is to be recorded of dropped ones with the position."""
    started, cpu = time.perf_counter(), time.process_time()
    updates: list[pb.EntityUpdate] = []
    sources: list[Record] = []
    letters: list[pb.DeadLetter] = []
    for record in records:
        try:
            updates.append(parse(pb.EntityUpdate, record))
            sources.append(record)
        except BadMessage as error:
            letters.append(dead_letter(STAGE, "bad_message", str(error), record=record, payload_type="EntityUpdate"))
    kept, dropped = split_too_old(updates, context.switches)
    if dropped:
        gone = {id(update) for update in dropped}
        sources = [source for source, update in zip(sources, updates, strict=True) if id(update) not in gone]
        updates = kept
    outcome = core.apply(updates)
    for letter, index in zip(outcome.dead_letters, outcome.letter_of, strict=True):
        source = sources[index]
        letter.topic, letter.partition, letter.offset = source.topic, source.partition, source.offset
    letters += outcome.dead_letters
    out: list[OutRecord] = [out_record(letter) for letter in letters]
    if out:
        context.log.publish(out)
    drops = drop_records(STAGE, dropped, context.metrics, TOO_OLD)
    for reason, old in _old(updates, sources, outcome.results).items():
        drops += drop_records(STAGE, old, context.metrics, reason)
    counts = Counter(result.outcome for result in outcome.results)
    metrics = context.metrics
    for name, amount in counts.items():
        metrics.count(f"updates:{name}", amount)
    for letter in letters:
        metrics.count(f"dead_letters:{letter.reason}")
    metrics.count("conflicts", outcome.conflicts)
    metrics.count("retries", outcome.conflicts)
    seconds = time.perf_counter() - started
    metrics.count("busy_us", int(seconds * 1e6))
    metrics.count("cpu_us", int((time.process_time() - cpu) * 1e6))
    metrics.time("batch_us", seconds * 1e6)
    structlog.get_logger().info(
        "applied",
        stage=STAGE,
        worker=context.worker,
        updates=len(updates),
        too_old=len(dropped),
        **counts,
        conflicts=outcome.conflicts,
        dead_letters=len(letters),
        ms=round(seconds * 1e3, 2),
    )
    return drops


def _old(
    updates: Sequence[pb.EntityUpdate], sources: Sequence[Record], results: Sequence[pb.UpdateResult]
) -> dict[str, list[pb.EntityUpdate]]:
    """Return reason -> updates that change nothing because something newer, or they themselves, are stored."""
    found: dict[str, list[pb.EntityUpdate]] = {}
    for update, source, result in zip(updates, sources, results, strict=True):
        if result.outcome in (STALE, DUPLICATE):
            again = result.outcome == DUPLICATE and source.maybe_redelivered
            found.setdefault(f"{'redelivered' if again else result.outcome}_update", []).append(update)
    return found
