"""Switches and drops, on every log backend."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from catalog import LaneName
from messaging import Log, OutRecord
from messaging.drops import drop_records, split_too_old
from messaging.headers import now_us
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.reports import report_drops
from messaging.switches import DEFAULTS, LOOK_SECONDS, BadSwitch, Switches, default_of, parse_age_us, set_switch
from messaging.topics import LANE_NUMBER, LANES, SWITCHES, UPDATES, ensure_topics
from tests.messaging.log_backends import Backend


@pytest.fixture
def topics(log: Log) -> Log:
    """Return a log with all topics."""
    ensure_topics(log)
    return log


def update(lane: LaneName, age_s: float, row: str = "1", *, deleted: bool = False) -> pb.EntityUpdate:
    """Return an update that was committed `age_s` seconds ago."""
    header = pb.Header(lane=LANE_NUMBER[lane], origin_us=now_us() - int(age_s * 1e6))
    return pb.EntityUpdate(header=header, table="ad", row=row, deleted=deleted)


def test_switches_have_defaults(topics: Log) -> None:
    """Before anybody sets one, publishing is on, nothing is dropped and no lane is paused."""
    switches = Switches(topics)
    assert {setting.name: setting.value for setting in switches.all()} == DEFAULTS
    assert switches.publishing()
    assert not any(switches.paused(lane) for lane in LANES)
    assert all(switches.oldest_allowed_us(lane) is None for lane in LANES)


def test_other_processes_follow_within_seconds(backend: Backend, topics: Log) -> None:
    """A switch set through one handle is in effect on another within twice LOOK_SECONDS, with who, when and why."""
    other = backend.open()
    switches = Switches(other)
    assert not switches.paused(LaneName.LOW)
    before = now_us()
    set_switch(topics, "pause.low", "on", who="anna", why="backfill storm")
    deadline = time.monotonic() + 2 * LOOK_SECONDS
    while not switches.paused(LaneName.LOW):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (setting,) = [s for s in switches.all() if s.name == "pause.low"]
    assert (setting.value, setting.who, setting.why) == ("on", "anna", "backfill storm")
    assert before <= setting.at_us <= now_us()
    assert switches.paused_topics(UPDATES) == [UPDATES[LaneName.LOW]]
    other.close()


def test_newest_setting_wins_and_the_audit_stays(topics: Log) -> None:
    """A process that starts later sees the newest value, and the history has every setting with its reason."""
    for value, why in (("10m", "storm"), ("1h", "less"), ("off", "over")):
        set_switch(topics, "drop_older.medium", value, who="anna", why=why)
    switches = Switches(topics)
    assert switches.oldest_allowed_us(LaneName.MEDIUM) is None
    assert [(s.value, s.why) for s in switches.history] == [("10m", "storm"), ("1h", "less"), ("off", "over")]


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("nope", "on", "x"),
        ("publishing", "maybe", "x"),
        ("drop_older.high", "10", "x"),
        ("publishing", "off", " "),
        ("pause_handler.", "on", "x"),
        ("pause_handler.a b", "on", "x"),
        ("pause_handler.bid", "10m", "x"),
    ],
)
def test_bad_setting_is_refused(topics: Log, name: str, value: str, why: str) -> None:
    """An unknown switch, a value that it cannot have, and a setting without a reason change nothing."""
    with pytest.raises(BadSwitch):
        set_switch(topics, name, value, who="anna", why=why)
    assert topics.end_offsets(SWITCHES) == {0: 0}


def test_poison_among_the_switches_is_passed_over(topics: Log) -> None:
    """A record that is no setting, or one of another release, stops nobody and hides no later setting."""
    future = pb.SwitchSetting(name="of.another.release", value="7", who="x", why="x")
    topics.publish([OutRecord(SWITCHES, "x", b"\xff\xff\xff"), OutRecord(SWITCHES, "y", future.SerializeToString())])
    set_switch(topics, "publishing", "off", who="anna", why="bad release")
    assert not Switches(topics).publishing()


def test_hold_ends_when_publishing_is_on_again(topics: Log) -> None:
    """While publishing is off a stage holds and beats; it goes on by itself, and a stop ends the hold."""
    set_switch(topics, "publishing", "off", who="anna", why="bad release")
    switches, stop, beats = Switches(topics), threading.Event(), []
    thread = threading.Thread(target=lambda: switches.hold(stop.wait, lambda: beats.append(1)))
    thread.start()
    deadline = time.monotonic() + 120
    while len(beats) < 3:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    set_switch(topics, "publishing", "on", who="anna", why="rolled back")
    thread.join(3 * LOOK_SECONDS)
    assert not thread.is_alive()
    assert not stop.is_set()
    set_switch(topics, "publishing", "off", who="anna", why="again")
    switches.refresh(force=True)
    stop.set()
    switches.hold(stop.wait, lambda: None)


@pytest.mark.parametrize(("text", "seconds"), [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400)])
def test_age_has_a_unit(text: str, seconds: int) -> None:
    """Ages are a whole number with its unit."""
    assert parse_age_us(text) == seconds * 1_000_000


def test_only_old_updates_of_the_lane_are_dropped(topics: Log) -> None:
    """Too old is by lane and by origin time; deletions and updates without a time are kept; order stays."""
    set_switch(topics, "drop_older.low", "10m", who="anna", why="storm")
    switches = Switches(topics)
    timeless = pb.EntityUpdate(header=pb.Header(lane=LANE_NUMBER[LaneName.LOW]), table="ad", row="5")
    updates = [
        update(LaneName.LOW, 700, "1"),
        update(LaneName.LOW, 500, "2"),
        update(LaneName.HIGH, 700, "3"),
        update(LaneName.LOW, 700, "4", deleted=True),
        timeless,
    ]
    kept, dropped = split_too_old(updates, switches)
    assert [u.row for u in kept] == ["2", "3", "4", "5"]
    assert [u.row for u in dropped] == ["1"]


def test_everything_dropped_is_counted_and_reported(topics: Log, tmp_path: Path) -> None:
    """Counts by reason and lane are in the metrics and in the report of the day, with examples and what to do."""
    metrics = StageMetrics(tmp_path, "updater-0")
    gone = [update(LaneName.LOW, 700, str(n)) for n in range(150)] + [update(LaneName.MEDIUM, 700, "m")]
    topics.publish(drop_records("updater", gone, metrics))
    topics.publish(drop_records("gateway", gone[:5], metrics))
    assert metrics.counters["dropped:too_old:low"] == 155
    assert metrics.counters["dropped:too_old:medium"] == 1
    today = datetime.now(UTC).date()
    lines = report_drops(topics, today)
    assert [(line.stage, line.lane, line.count) for line in lines] == [
        ("gateway", "low", 5),
        ("updater", "low", 150),
        ("updater", "medium", 1),
    ]
    assert lines[2].entities == ("ad/m",)
    assert all("resync" in line.hint for line in lines)
    assert report_drops(topics) == lines
    assert report_drops(topics, today - timedelta(days=1)) == []
    assert report_drops(topics, today + timedelta(days=1)) == []


def test_paused_topic_stays_in_the_log(log: Log) -> None:
    """A paused topic is not polled while others are; unpaused, its records come, in order, from where they were."""
    for topic in ("high", "low"):
        log.ensure_topic(topic, 2)
    log.publish([OutRecord(topic, str(n), str(n).encode()) for topic in ("high", "low") for n in range(10)])
    consumer = log.consumer("g", ["high", "low"])
    consumer.pause(["high"])
    records = consumer.poll(100, 2)
    assert [r.topic for r in records] == ["low"] * 10
    assert consumer.poll(100, 0.2) == []
    assert len(consumer.assigned()) == 4
    consumer.pause([])
    assert [r.topic for r in consumer.poll(100, 2)] == ["high"] * 10
    consumer.commit()
    assert sum(log.committed("g", "high").values()) == 10


def test_a_handler_s_switch_is_made_by_setting_it(backend: Backend, topics: Log) -> None:
    """Any handler can be paused by its name; others see who did it and why, and it stays in the list when resumed."""
    set_switch(topics, "pause_handler.pin.price-2", "on", who="anna", why="slow")
    other = backend.open()
    switches = Switches(other)
    assert {name: s.why for name, s in switches.paused_handlers().items()} == {"pin.price-2": "slow"}
    set_switch(topics, "pause_handler.pin.price-2", "off", who="anna", why="mended")
    switches.refresh(force=True)
    assert switches.paused_handlers() == {}
    assert switches.all()[-1].value == default_of("pause_handler.pin.price-2") == "off"
    other.close()
