"""The process around the core: the real log, lanes, acknowledgement, the RPC mirror, and stopping."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from argus import ArgusCore, Hint
from argus.sources import PerformanceDb, PerformanceRow
from argus.stage import by_lane, next_batch_size, open_sources, positions_after, process_and_publish, run
from catalog import LaneName
from messaging import LogUnavailable, open_embedded_log
from messaging.api import Log, OutRecord, Record
from messaging.home import Home
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.rpc import open_channel
from messaging.stage import StageContext
from messaging.switches import set_switch
from messaging.topics import (
    ARGUS_GROUP,
    DEAD_LETTERS,
    DEFERRED,
    DEFERRED_GROUP,
    DELTAS,
    LANES,
    NOTIFICATIONS,
    ensure_topics,
)
from tests.argus.world import AD, AD_GROUP, CAMPAIGN, World, notification


class Stage:
    """Argus with a log of its own; `start` runs it in a thread."""

    def __init__(self, world: World, root: Path) -> None:
        self.world = world
        self.home = Home.open(root / "home")
        self.log: Log = open_embedded_log(self.home.log, self.home.wake)
        ensure_topics(self.log)
        self.ready = threading.Event()
        self.port = 0
        self.context = StageContext(
            name="argus",
            worker=0,
            home=self.home,
            catalog=world.catalog,
            log=self.log,
            metrics=StageMetrics(self.home.metrics, "argus-0"),
            stop=threading.Event(),
            ready=self._on_ready,
            code_version="test",
        )
        self.thread = threading.Thread(target=run, args=(self.context, world.repo))

    def _on_ready(self, port: int) -> None:
        self.port = port
        self.ready.set()

    def start(self) -> None:
        """Run until stopped."""
        self.thread.start()
        assert self.ready.wait(120)

    def stop(self) -> None:
        """Stop the thread and close the log."""
        self.context.stop.set()
        if self.thread.ident is not None:
            self.thread.join(120)
            assert not self.thread.is_alive()
        self.log.close()

    def send(self, hints: list[Hint]) -> None:
        """Publish hints as the WAL proxy does."""
        self.log.publish(
            [
                OutRecord(
                    NOTIFICATIONS[LaneName(pb.Lane.Name(n.header.lane).removeprefix("LANE_").lower())],
                    f"{n.table}/{n.row}",
                    n.SerializeToString(),
                )
                for n in (h.notification for h in hints)
            ]
        )

    def read(self, topic: str, kind: Any) -> list[Any]:
        """Return all messages of a topic."""
        parts = self.log.end_offsets(topic)
        return [kind.FromString(r.value) for p in parts for r in self.log.read(topic, p, 0, 100_000)]

    def lag(self, *more: str) -> int:
        """Return how many notifications (and records of `more` topics) are not acknowledged."""
        return sum(
            end - self.log.committed(DEFERRED_GROUP if topic == DEFERRED else ARGUS_GROUP, topic)[p]
            for topic in (*NOTIFICATIONS.values(), *more)
            for p, end in self.log.end_offsets(topic).items()
        )

    def drain(self, *more: str) -> None:
        """Feed what the Repo changes and wait until everything is acknowledged."""
        while True:
            self.send(self.world.hints())
            ends = {(t, p): end for t in NOTIFICATIONS.values() for p, end in self.log.end_offsets(t).items()}
            if self.lag(*more) == 0 and not self.world.repo.changes(self.world.feed_position, 1):
                return
            self.log.wait(list(NOTIFICATIONS.values()), ends, 0.02)


@pytest.fixture
def stage(world: World, tmp_path: Path) -> Iterator[Stage]:
    """A stage that is not started yet."""
    made = Stage(world, tmp_path)
    yield made
    made.stop()


def test_notifications_become_published_documents(stage: Stage, world: World) -> None:
    """From the log to the log: deltas equal the stored documents, positions are stored, metrics are counted."""
    stage.start()
    world.ad()
    stage.drain()
    newest = max(stage.read(DELTAS, pb.DocumentDelta), key=lambda d: d.version)
    assert newest.body == world.body() is not None
    world.put("campaign", 1, **{**CAMPAIGN, "status": "PAUSED"})
    stage.drain()
    newest = max(stage.read(DELTAS, pb.DocumentDelta), key=lambda d: d.version)
    assert newest.deleted
    counters = stage.context.metrics.counters
    assert counters["runs"] > 0
    assert counters["documents_changed"] >= 2
    assert {"batch_us", "commit_us", "fetch_us", "handlers_us", "publish_us"} <= set(stage.context.metrics.histograms)


def test_bad_records_become_dead_letters_and_block_nobody(stage: Stage, world: World) -> None:
    """Bytes that are no notification lie in the log before a good one; both are acknowledged."""
    key = "campaign/1"
    stage.log.publish([OutRecord(NOTIFICATIONS[LaneName.HIGH], key, b"\xff\xff\xff")])
    world.ad()
    stage.start()
    stage.drain()
    (letter,) = stage.read(DEAD_LETTERS, pb.DeadLetter)
    assert (letter.reason, letter.topic, letter.payload) == ("bad_message", "notifications.high", b"\xff\xff\xff")
    assert world.body() is not None
    assert stage.context.metrics.counters["dead_letters:bad_message"] == 1


def test_nothing_is_acknowledged_that_was_not_published(
    stage: Stage, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the log fails after the commit, the records come again, flagged, and their documents are published."""
    world.ad()
    stage.send(world.hints())
    core = world.core()
    topics = [NOTIFICATIONS[lane] for lane in LANES]
    consumer = stage.log.consumer(ARGUS_GROUP, topics)
    records = consumer.poll(100, 5)

    def away(*_: object) -> None:
        raise LogUnavailable("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(stage.log, "publish", away)
        with pytest.raises(LogUnavailable):
            process_and_publish(stage.context, core, records)
    consumer.close()
    body = world.body()
    assert stage.read(DELTAS, pb.DocumentDelta) == []
    consumer = stage.log.consumer(ARGUS_GROUP, topics)
    records = consumer.poll(100, 5)
    assert all(record.maybe_redelivered for record in records)
    process_and_publish(stage.context, world.core(), records)
    consumer.close()
    assert body is not None
    assert [d.body for d in stage.read(DELTAS, pb.DocumentDelta)] == [body]
    assert stage.lag() == 0


def test_continuations_go_through_the_log(stage: Stage, world: World) -> None:
    """A fan-out larger than a chunk is finished by the stage itself."""
    world.ad()
    world.put_many([("ad", a, {**AD, "id": a}) for a in range(1, 401)])
    world.settle()
    stage.start()
    world.put("ad_group", 1, **{**AD_GROUP, "bid_micros": 9})
    stage.drain()
    assert all(world.document(a)["bid_micros"] == 9 for a in range(1, 401))
    sent = stage.read(NOTIFICATIONS[LaneName.HIGH], pb.Notification)
    assert [n.fan_out.root for n in sent if n.HasField("fan_out")] == ["ad"]


def _record(lane: LaneName, offset: int = 0) -> Record:
    return Record(NOTIFICATIONS[lane], 3, offset, "k", b"", 0)


def test_lower_lanes_take_smaller_batches() -> None:
    """Only a full batch, most of it of a higher lane, is followed by a larger one; lower lanes' shares do not count."""
    high, low = _record(LaneName.HIGH), _record(LaneName.LOW)
    assert next_batch_size([high] * 32, 32) == 256
    assert next_batch_size([_record(LaneName.MEDIUM)] * 32, 32) == 128
    assert next_batch_size([high] + [low] * 31, 32) == 32
    assert next_batch_size([high] * 224 + [_record(LaneName.MEDIUM)] * 16 + [low] * 16, 256) == 256
    assert next_batch_size([low] * 32, 256) == 32
    assert next_batch_size([high] * 10, 256) == 32


def test_what_is_of_a_higher_lane_is_worked_on_first() -> None:
    """Every record once, those of one lane in their order."""
    high, medium, low = ([_record(lane, n) for n in range(3)] for lane in LANES)
    mixed = [low[0], high[0], medium[0], high[1], low[1], low[2], medium[1], medium[2], high[2]]
    assert by_lane(mixed) == [high, medium, low]
    assert by_lane(low) == [low]
    assert by_lane([]) == []


def test_positions_are_after_the_last_record_of_each_partition() -> None:
    """The position is the next offset to read, whatever the order of the records."""
    (position,) = positions_after([_record(LaneName.HIGH, 7), _record(LaneName.HIGH, 9), _record(LaneName.HIGH, 8)])
    assert (position.group, position.topic, position.partition, position.offset) == (
        ARGUS_GROUP,
        "notifications.high",
        3,
        10,
    )


def test_the_mirror_processes_and_dry_runs(stage: Stage, world: World) -> None:
    """A dry run answers with the documents and writes nothing; a real call commits, publishes and answers."""
    world.ad()
    world.put_many([("ad", a, {**AD, "id": a}) for a in range(1, 301)])
    world.settle()
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    stage.start()
    with open_channel(stage.port) as channel:
        argus = rpc.ArgusStub(channel)
        batch = pb.NotificationBatch(notifications=[h.notification for h in world.hints()], dry_run=True)
        before = world.repo.last_commit_ts()
        dry = argus.Process(batch)
        assert world.repo.last_commit_ts() == before
        assert len(dry.documents) == 300
        assert dry.rows_written == 0
        assert stage.read(DELTAS, pb.DocumentDelta) == []
        real = argus.Process(pb.NotificationBatch(notifications=[notification("ad", 1, "status").notification]))
    assert real.rows_written == 1
    assert [d.body for d in stage.read(DELTAS, pb.DocumentDelta)] == [d.body for d in real.documents] == [world.body()]
    assert {d.document_id: d.body for d in dry.documents}["1"] == world.body()


def test_two_stages_share_the_work(stage: Stage, world: World, tmp_path: Path) -> None:
    """Two workers of one group on the same Repo end in the same documents as a clean computation."""
    stage.start()
    second = ArgusCore(world.repo, world.registry, world.sources())
    consumer = stage.log.consumer(ARGUS_GROUP, [NOTIFICATIONS[lane] for lane in LANES])
    world.ad()
    world.put_many([("ad", a, {**AD, "id": a}) for a in range(1, 101)])
    world.put_many([("ad_group", 1, {**AD_GROUP, "bid_micros": n}) for n in range(1, 20)])
    while True:
        stage.send(world.hints())
        if records := consumer.poll(64, 0.05):
            process_and_publish(stage.context, second, records)
        elif stage.lag() == 0 and not world.repo.changes(world.feed_position, 1):
            break
    consumer.close()
    ads = list(range(1, 101))
    assert world.stored(ads) == world.expected(ads)
    deltas = sorted(stage.read(DELTAS, pb.DocumentDelta), key=lambda d: d.version)
    served = {d.document_id: None if d.deleted else d.body for d in deltas}
    assert served == world.stored(ads)


def test_a_stage_heals_when_its_source_comes_back(stage: Stage, world: World) -> None:
    """The performance database of the home is missing at first; the signalled ad gets its history once it is there,
    and control updates pass all the while."""
    stage.start()
    world.ad()
    world.signal({1: 1})
    stage.send(world.hints())
    assert stage.log.wait([DEFERRED], {(DEFERRED, p): 0 for p in range(8)}, 30)
    world.put("ad_group", 1, **{**AD_GROUP, "bid_micros": 11})
    stage.send(world.hints())
    while world.document()["bid_micros"] != 11:
        threading.Event().wait(0.005)
    assert "impressions" not in world.document()
    PerformanceDb(stage.home.performance_db).upsert([PerformanceRow(1, 2_000, 2, 0, 0, 9)])
    stage.drain(DEFERRED)
    rounds = sum(stage.log.end_offsets(DEFERRED).values())
    assert rounds < 20, "it goes round at a slow pace"
    assert world.document()["impressions"] == 2_000


def test_rows_that_wait_for_a_source_are_of_the_low_lane_and_pause_with_it(stage: Stage, world: World) -> None:
    """While the low lane is paused they stay in the log and other lanes flow; then they are tried again."""
    set_switch(stage.log, "pause.low", "on", who="anna", why="test")
    stage.context.switches.refresh(force=True)
    world.ad()
    waiting = notification("ad", 1, "performance_version").notification
    stage.log.publish([OutRecord(DEFERRED, "ad/1", waiting.SerializeToString())])
    stage.start()
    stage.drain()
    assert stage.read(DELTAS, pb.DocumentDelta)
    assert sum(stage.log.committed(DEFERRED_GROUP, DEFERRED).values()) == 0
    set_switch(stage.log, "pause.low", "off", who="anna", why="test")
    stage.drain(DEFERRED)
    assert sum(stage.log.committed(DEFERRED_GROUP, DEFERRED).values()) == 1


def test_sources_of_a_home_are_opened_without_touching_it(tmp_path: Path) -> None:
    """A broken performance database does not keep Argus from starting."""
    home = Home.open(tmp_path / "fresh")
    sources = open_sources(home)
    assert list(sources) == ["performance"]
    assert not home.performance_db.exists()
