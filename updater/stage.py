"""The Updater as a process: updates from three lanes and content signals in, committed rows out."""

from __future__ import annotations

import time
from collections import Counter

import structlog

from messaging import BadMessage
from messaging.api import OutRecord, Record
from messaging.dead_letters import dead_letter, out_record, parse
from messaging.drops import drop_records, split_too_old
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.topics import LANES, SIGNALS, UPDATER_GROUP, UPDATES
from storage_repo import Repo
from updater.core import STAGE, UpdaterCore
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
    try:
        while not context.stop.is_set():
            context.beat()
            consumer.pause(context.switches.paused_topics(UPDATES))
            wait_s = _WAIT_SECONDS if due is None else max(0.0, due - time.monotonic())
            if records := consumer.poll(_BATCH, wait_s):
                _process(context, core, records)
                due = due or time.monotonic() + _HOLD_SECONDS
            if due is not None and time.monotonic() >= due:
                consumer.commit()
                due = None
        if due is not None:
            consumer.commit()
    finally:
        consumer.close()
        mirror.stop(grace=1).wait()
        context.metrics.flush(force=True)


def _process(context: StageContext, core: UpdaterCore, records: list[Record]) -> None:
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
    out += drop_records(STAGE, dropped, context.metrics)
    if out:
        context.log.publish(out)
    counts = Counter(result.outcome for result in outcome.results)
    metrics = context.metrics
    for name, amount in counts.items():
        metrics.count(f"updates:{name}", amount)
    for name in ("stale", "duplicate"):
        if counts[name]:
            metrics.count(f"dropped:{name}_update", counts[name])
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
