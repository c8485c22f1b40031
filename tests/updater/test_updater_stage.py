"""The Updater as a stage over the embedded log, and its RPC mirror."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from catalog import Catalog, LaneName
from messaging import OutRecord, Position
from messaging.headers import now_us
from messaging.metrics import merged_counters, read_metrics
from messaging.proto import adsindex_pb2 as pb
from messaging.proto import adsindex_pb2_grpc as rpc
from messaging.reports import report_drops
from messaging.rpc import open_channel
from messaging.stage import StageContext
from messaging.switches import set_switch
from messaging.topics import DEAD_LETTERS, SIGNALS, UPDATER_GROUP, UPDATES
from storage_repo import Repo
from tests.updater.stages import stage_context
from tests.updater.support import stored, update
from updater.stage import run

PIN = {"id": "p1", "title": "A lamp"}


class Stage:
    """The stage in a thread of this process."""

    def __init__(self, root: Path) -> None:
        self.context, self.repo = stage_context(root, "updater-0")
        self._ports: list[int] = []
        self._ready = threading.Event()
        self.context.ready = self._on_ready
        self._thread = threading.Thread(target=run, args=(self.context, self.repo))
        self._thread.start()
        assert self._ready.wait(120)

    def _on_ready(self, port: int) -> None:
        self._ports.append(port)
        self._ready.set()

    @property
    def port(self) -> int:
        """Return the mirror's port."""
        return self._ports[0]

    def publish(self, topic: str, key: str, value: bytes) -> None:
        """Append one record."""
        self.context.log.publish([OutRecord(topic, key, value)])

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds after some commit of the store or the log; fail after 20 s."""
        tick = threading.Event()
        for _ in range(2_000):
            if condition():
                return
            tick.wait(0.01)
        raise AssertionError("the stage did not get there in 20 s")

    def idle(self) -> bool:
        """Tell whether everything published has been committed."""
        log: StageContext = self.context
        return all(
            log.log.committed(UPDATER_GROUP, topic) == log.log.end_offsets(topic)
            for topic in (*UPDATES.values(), SIGNALS)
        )

    def stop(self) -> None:
        """Stop the thread; fail if it does not end."""
        self.context.stop.set()
        self._thread.join(120)
        assert not self._thread.is_alive()

    def close(self) -> None:
        """Stop and release everything."""
        self.stop()
        self.repo.close()
        self.context.log.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A running stage."""
    stage = Stage(tmp_path)
    yield stage
    stage.close()


@pytest.fixture
def mirror(stage: Stage) -> Iterator[rpc.UpdaterStub]:
    """A client of the running stage's RPC mirror."""
    with open_channel(stage.port) as channel:
        yield rpc.UpdaterStub(channel)


def test_updates_of_every_lane_and_signals_are_stored(stage: Stage) -> None:
    """What is published to any of its topics ends in the Repo, and the positions follow."""
    for n, lane in enumerate(LaneName):
        stage.publish(UPDATES[lane], str(n), update("pin", str(n), 1, PIN).SerializeToString())
    stage.publish(
        SIGNALS, "7", update("ad", "7", 1, {"performance_version": 3}, source="performance").SerializeToString()
    )
    stage.until(stage.idle)
    for n in range(len(LaneName)):
        assert stored(stage.repo, stage.context.catalog, "pin", str(n)) == PIN
    assert stored(stage.repo, stage.context.catalog, "ad", "7") == {"performance_version": 3}


def test_low_goes_on_under_a_backlog_of_high(stage: Stage) -> None:
    """Low and the signals are not behind the whole backlog of high, and high waits for their shares only."""
    rows = [(LaneName.HIGH, f"h{n}") for n in range(2_000)] + [(LaneName.LOW, f"l{n}") for n in range(48)]
    records = [OutRecord(UPDATES[lane], row, update("pin", row, 1, PIN).SerializeToString()) for lane, row in rows]
    signal = update("ad", "s1", 1, {"performance_version": 3}, source="performance")
    stage.context.log.publish([*records, OutRecord(SIGNALS, "s1", signal.SerializeToString())])
    stage.until(stage.idle)
    order = [row.row[0] for change in stage.repo.changes(0, 100_000) for row in change.rows]
    assert len(order) == 2_049
    assert order.index("s") < 300
    last = len(order) - order[::-1].index("l")
    assert last < 1_000
    assert order[:last].count("h") >= 0.9 * last


def test_poison_becomes_counted_letters_and_the_rest_flows(stage: Stage) -> None:
    """Bytes that are no update, a refused update and a bad column each give a letter that names its record."""
    topic = UPDATES[LaneName.HIGH]
    stage.publish(topic, "k", b"\xff\xff not protobuf")
    stage.publish(topic, "k", update("pin", "x" * 200_000, 1, PIN).SerializeToString())
    stage.publish(topic, "k", update("pin", "p2", 1, {**PIN, "price_micros": "dear"}).SerializeToString())
    stage.publish(topic, "k", update("pin", "p3", 1, PIN).SerializeToString())
    stage.until(stage.idle)
    letters = [pb.DeadLetter.FromString(r.value) for r in stage.context.log.read(DEAD_LETTERS, 0, 0, 100)]
    assert [letter.reason for letter in sorted(letters, key=lambda x: x.offset)] == [
        "bad_message",
        "bad_row_key",
        "bad_type",
    ]
    assert sorted((letter.topic, letter.offset) for letter in letters) == [(topic, 0), (topic, 1), (topic, 2)]
    assert len({letter.partition for letter in letters}) == 1
    assert stored(stage.repo, stage.context.catalog, "pin", "p2") == PIN
    assert stored(stage.repo, stage.context.catalog, "pin", "p3") == PIN
    stage.stop()
    counted = merged_counters(read_metrics(stage.context.home.metrics), "dead_letters")
    assert counted == {"bad_message": 1, "bad_row_key": 1, "bad_type": 1}


def test_outcomes_are_counted(stage: Stage) -> None:
    """The metrics file says how many updates were applied and how many dropped by reason."""
    topic = UPDATES[LaneName.LOW]
    for version in (2, 2, 1):
        stage.publish(topic, "p1", update("pin", "p1", version, PIN).SerializeToString())
        stage.until(stage.idle)
    stage.stop()
    metrics = read_metrics(stage.context.home.metrics)
    assert merged_counters(metrics, "updates") == {"applied": 1, "duplicate": 1, "stale": 1}
    assert merged_counters(metrics, "dropped") == {"duplicate_update:high": 1, "stale_update:high": 1}
    lines = [
        (line.stage, line.reason, line.lane, line.count, line.entities) for line in report_drops(stage.context.log)
    ]
    assert lines == [
        ("updater", "duplicate_update", "high", 1, ("pin/p1",)),
        ("updater", "stale_update", "high", 1, ("pin/p1",)),
    ]


def test_the_stage_goes_on_where_it_was(tmp_path: Path) -> None:
    """After a stop, updates published meanwhile are applied and none a second time."""
    first = Stage(tmp_path)
    first.publish(UPDATES[LaneName.HIGH], "p1", update("pin", "p1", 1, PIN).SerializeToString())
    first.until(first.idle)
    first.stop()
    first.publish(UPDATES[LaneName.HIGH], "p2", update("pin", "p2", 1, PIN).SerializeToString())
    first.close()
    second = Stage(tmp_path)
    second.until(second.idle)
    assert len(second.repo.changes(0, 100)) == 2
    second.close()


def test_what_comes_again_after_a_crash_is_no_duplicate_of_the_sender(tmp_path: Path) -> None:
    """Updates that were stored but whose position was not are told apart in the report, and counted once."""
    first = Stage(tmp_path)
    for row in ("p1", "p2", "p2"):
        first.publish(UPDATES[LaneName.HIGH], row, update("pin", row, 1, PIN).SerializeToString())
        first.until(first.idle)
    first.stop()
    log = first.context.log
    topic = UPDATES[LaneName.HIGH]
    places = log.end_offsets(topic)
    log.set_committed([Position(UPDATER_GROUP, topic, p, 0) for p in places])  # as a kill -9 may leave it
    first.close()
    second = Stage(tmp_path)
    second.until(second.idle)
    found = {(line.reason, line.count) for line in report_drops(second.context.log)}
    assert found == {("duplicate_update", 1), ("redelivered_update", 3)}
    second.close()


def test_the_mirror_applies_like_the_stage(stage: Stage, mirror: rpc.UpdaterStub, catalog: Catalog) -> None:
    """The same message by gRPC is stored, and judged against what the log brought."""
    reply = mirror.Apply(pb.UpdateBatch(updates=[update("pin", "p1", 5, PIN), update("brand", "1", 5, {})]))
    assert [r.outcome for r in reply.results] == ["applied", "dead_letter"]
    assert "brand" in reply.results[1].error
    assert stored(stage.repo, catalog, "pin", "p1") == PIN
    stage.publish(UPDATES[LaneName.HIGH], "p1", update("pin", "p1", 4, {"id": "old"}).SerializeToString())
    stage.until(stage.idle)
    assert stored(stage.repo, catalog, "pin", "p1") == PIN


def test_a_column_fault_is_told_in_the_reply(mirror: rpc.UpdaterStub) -> None:
    """The mirror sends no dead letters, so the reply says what was stored as null."""
    reply = mirror.Apply(pb.UpdateBatch(updates=[update("pin", "p1", 5, {**PIN, "price_micros": "dear"})]))
    assert reply.results[0].outcome == "applied"
    assert "price_micros" in reply.results[0].error


def test_a_dry_run_changes_nothing(stage: Stage, mirror: rpc.UpdaterStub) -> None:
    """It answers what would become of each update, and leaves store and log as they were."""
    mirror.Apply(pb.UpdateBatch(updates=[update("pin", "p1", 5, PIN)]))
    repo: Repo = stage.repo
    before = repo.last_commit_ts()
    batch = [update("pin", "p1", 4, PIN), update("pin", "p1", 6, {"id": "p1"}), update("pin", "p2", 1, PIN)]
    reply = mirror.Apply(pb.UpdateBatch(updates=batch, dry_run=True))
    assert [(r.outcome, r.commit_ts) for r in reply.results] == [("stale", 0), ("applied", 0), ("applied", 0)]
    assert repo.last_commit_ts() == before
    assert stored(repo, stage.context.catalog, "pin", "p1") == PIN
    assert stage.context.log.end_offsets(DEAD_LETTERS) == {0: 0}
    really = mirror.Apply(pb.UpdateBatch(updates=batch))
    assert [r.outcome for r in really.results] == [r.outcome for r in reply.results]


def test_old_updates_of_a_lane_are_dropped_counted_and_listed(stage: Stage) -> None:
    """With a limit on the age of a lane, its old updates are not stored but counted and listed; other lanes flow."""
    log = stage.context.log
    set_switch(log, "drop_older.low", "10m", who="anna", why="test")
    stage.context.switches.refresh(force=True)
    old = update("pin", "1", 1, PIN, lane=pb.LANE_LOW)
    fresh = update("pin", "2", 1, PIN, lane=pb.LANE_LOW, origin_us=now_us())
    stage.publish(UPDATES[LaneName.LOW], "1", old.SerializeToString())
    stage.publish(UPDATES[LaneName.LOW], "2", fresh.SerializeToString())
    stage.publish(UPDATES[LaneName.HIGH], "3", update("pin", "3", 1, PIN).SerializeToString())
    stage.until(stage.idle)
    kept = [row for row in ("1", "2", "3") if stored(stage.repo, stage.context.catalog, "pin", row)]
    assert kept == ["2", "3"]
    assert stage.context.metrics.counters["dropped:too_old:low"] == 1
    (line,) = report_drops(log)
    assert (line.stage, line.reason, line.lane, line.count, line.entities) == (
        "updater",
        "too_old",
        "low",
        1,
        ("pin/1",),
    )


def test_paused_lane_waits_in_the_log(stage: Stage) -> None:
    """A paused lane's updates stay in the log while the others are stored, and are stored when it goes on."""
    log = stage.context.log
    set_switch(log, "pause.low", "on", who="anna", why="test")
    stage.context.switches.refresh(force=True)
    stage.until(lambda: stage.context.switches.paused(LaneName.LOW))
    stage.publish(SIGNALS, "x", b"")  # ends the poll that began before the pause
    stage.until(stage.idle)
    stage.publish(UPDATES[LaneName.LOW], "1", update("pin", "1", 1, PIN, lane=pb.LANE_LOW).SerializeToString())
    stage.publish(UPDATES[LaneName.HIGH], "2", update("pin", "2", 1, PIN).SerializeToString())
    stage.until(lambda: bool(stored(stage.repo, stage.context.catalog, "pin", "2")))
    assert not stored(stage.repo, stage.context.catalog, "pin", "1")
    set_switch(log, "pause.low", "off", who="anna", why="test")
    stage.until(stage.idle)
    assert stored(stage.repo, stage.context.catalog, "pin", "1") == PIN
