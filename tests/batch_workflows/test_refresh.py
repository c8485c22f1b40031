"""What a refresh selects, that it paces itself, stops and goes on, and that it delays no control update."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from argus import load_registry
from batch_workflows import UnknownSelection
from batch_workflows.refresh import Pace, Place, refresh, request, waiting
from batch_workflows.refresh_selection import selection_of
from catalog import LaneName
from messaging.proto import adsindex_pb2 as pb
from messaging.switches import Switches, set_switch
from messaging.topics import ARGUS_GROUP, LANES, NOTIFICATIONS
from tests.batch_workflows.sync_support import filled
from tests.debug_ui.pipeline import Pipeline


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    """An idle pipeline with three campaigns: ads 100, 101, 200, 201, 300, 301."""
    opened = filled(tmp_path / "home", 3)
    yield opened
    opened.close()


def asked(pipeline: Pipeline, lane: LaneName = LaneName.LOW) -> list[str]:
    """Return the rows that wait in a lane, as table/row, in order of the keys."""
    log, topic = pipeline.log, NOTIFICATIONS[lane]
    found = []
    for partition, offset in log.committed(ARGUS_GROUP, topic).items():
        for record in log.read(topic, partition, offset, 10_000):
            note = pb.Notification.FromString(record.value)
            assert note.refresh and note.header.lane == pb.LANE_LOW
            found.append(f"{note.table}/{note.row}")
    return sorted(found)


ADS = ["100", "101", "200", "201", "300", "301"]


@pytest.mark.parametrize(
    ("asked_for", "rows"),
    [
        ({"table": "ad"}, [f"ad/{ad}" for ad in ADS]),
        ({"ids": ["200", "101"]}, ["ad/101", "ad/200"]),
        ({"advertiser": "1"}, ["ad/100", "ad/101"]),
        ({"below": "ad_group/20"}, ["ad/200", "ad/201"]),
        ({"handler": "price"}, [f"pin/pin-{ad}" for ad in ADS]),
        ({"handler": "bid"}, [f"ad/{ad}" for ad in ADS]),
        ({"field": "brand"}, [f"ad/{ad}" for ad in ADS]),
        ({"field": "terms"}, [f"ad/{ad}" for ad in ADS] + [f"pin/pin-{ad}" for ad in ADS]),
        ({"table": "campaign"}, ["campaign/1", "campaign/2", "campaign/3"]),
        ({"table": "ad", "where": ["ad_group_id=30"]}, ["ad/300", "ad/301"]),
        ({"table": "ad", "where": ["id>=200", "id < 301"]}, ["ad/200", "ad/201", "ad/300"]),
        ({"table": "ad", "where": ["ad_document.servable=true", "id!=100"]}, [f"ad/{ad}" for ad in ADS[1:]]),
        ({"table": "pin", "where": ["terms=shoes", "price_micros>300000000"]}, ["pin/pin-301"]),
        ({"table": "pin", "where": ["list_price_micros=null", "image_id=img-100"]}, ["pin/pin-100"]),
        ({"table": "ad", "changed_since": "1h"}, [f"ad/{ad}" for ad in ADS]),
        ({"table": "ad", "changed_since": "2999-01-01"}, []),
    ],
    ids=str,
)  # fmt: skip
def test_selections(pipeline: Pipeline, asked_for: dict[str, Any], rows: list[str]) -> None:
    """Table, keys, advertiser, handler, field, conditions and time select what they say."""
    catalog = pipeline.backends.catalog
    selection = selection_of(catalog, load_registry(catalog), **asked_for)
    done = request(pipeline.backends.repo, pipeline.log, catalog, selection)
    assert asked(pipeline) == sorted(rows)
    assert done.rows == len(rows)


@pytest.mark.parametrize(
    ("asked_for", "says"),
    [
        ({"table": "nothing"}, "nothing runs for 'nothing'"),
        ({"handler": "nobody"}, "there is no handler"),
        ({"field": "none"}, "there is no field"),
        ({"table": "ad", "field": "brand"}, "give one of"),
        ({"where": ["status=ACTIVE"]}, "say which of"),
        ({"table": "ad", "where": ["status"]}, "is no condition"),
        ({"table": "ad", "where": ["colour=red"]}, "no column 'colour'"),
        ({"table": "ad", "where": ["id=many"]}, "expected int"),
        ({"table": "ad", "changed_since": "lately"}, "neither an age"),
        ({"table": "ad", "ids": ["100", "7"]}, "no ad with id 7"),
        ({"below": "campaign/99"}, "no campaign '99'"),
        ({"below": "planet/1"}, "TABLE/ROW"),
    ],
    ids=str,
)
def test_bad_selections(pipeline: Pipeline, asked_for: dict[str, Any], says: str) -> None:
    """What does not exist or does not fit together is refused in a sentence, and nothing is asked for."""
    catalog = pipeline.backends.catalog
    with pytest.raises(UnknownSelection, match=says):
        request(pipeline.backends.repo, pipeline.log, catalog,
                selection_of(catalog, load_registry(catalog), **asked_for))  # fmt: skip
    assert asked(pipeline) == []


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        """Let time go by."""
        self.now += seconds


def test_the_rate_is_kept(pipeline: Pipeline) -> None:
    """Twelve rows at three per second take the time that they must, and come in small batches."""
    clock, at = Clock(), []
    catalog = pipeline.backends.catalog
    selection = selection_of(catalog, load_registry(catalog))
    pace = Pace(rows_per_second=3, clock=lambda: clock.now, sleep=clock.sleep)

    def reached(place: Place) -> None:
        at.append((sum(place.counts.values()), clock.now))

    rows = request(pipeline.backends.repo, pipeline.log, catalog, selection, pace=pace, reached=reached).rows
    assert all(count <= 1 + 3 * (now + 1e-6) for count, now in at), at
    assert (rows - 1) / 3 - 1e-6 <= clock.now <= rows / 3


def test_a_full_low_lane_is_waited_for(pipeline: Pipeline) -> None:
    """With `max_waiting`, rows are added as the pipeline takes them, never more than so many at a time."""
    seen = []

    def work(_: float) -> None:
        seen.append(waiting(pipeline.log))
        pipeline.run()

    catalog = pipeline.backends.catalog
    selection = selection_of(catalog, load_registry(catalog))
    pace = Pace(max_waiting=4, sleep=work)
    assert request(pipeline.backends.repo, pipeline.log, catalog, selection, pace=pace).rows > 12
    assert len(seen) >= 3
    assert max(seen) <= 4


class Stopped(Exception):
    """A refresh was told to end."""


def test_a_switch_pauses_it_and_it_goes_on_where_it_was(pipeline: Pipeline) -> None:
    """While the switch is on nothing is asked for; killed there and resumed from its place, every row comes once."""
    catalog, switches = pipeline.backends.catalog, Switches(pipeline.log)
    selection = selection_of(catalog, load_registry(catalog), table="ad")
    places: list[dict[str, Any]] = []
    looks = 0

    def look(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise Stopped

    def reached(place: Place) -> None:
        places.append(place.to_state())
        if len(places) == 2:
            set_switch(pipeline.log, "pause_workflow.refresh", "on", who="test", why="too much")
            switches.refresh(force=True)

    def paused() -> bool:
        return switches.paused_workflow("refresh") is not None

    pace = Pace(max_waiting=1_000_000, sleep=look, paused=paused)
    pace.rows_per_second = 5.0  # one row per batch
    pace.clock = lambda: 0.0 if len(places) < 1 else 1e9 * len(places)  # time enough for the rate
    with pytest.raises(Stopped):
        request(pipeline.backends.repo, pipeline.log, catalog, selection, pace=pace, reached=reached)
    assert asked(pipeline) == ["ad/100", "ad/101"]
    set_switch(pipeline.log, "pause_workflow.refresh", "off", who="test", why="enough")
    switches.refresh(force=True)
    place = Place.of_state(places[-1])
    assert (
        request(pipeline.backends.repo, pipeline.log, catalog, selection, pace=Pace(paused=paused), place=place).rows
        == 6
    )
    assert asked(pipeline) == [f"ad/{ad}" for ad in ADS]


def test_control_updates_go_before_all_of_it(pipeline: Pipeline) -> None:
    """A refresh puts nothing in another lane than low, and whoever polls is given every high update first.

    By counting records per lane, not by time: with a refresh of thousands waiting, a poll has all high records that
    there are before the first low one, and what the refreshed documents lead to is low as well.
    """
    catalog, log = pipeline.backends.catalog, pipeline.log
    ends = {lane: log.end_offsets(NOTIFICATIONS[lane]) for lane in LANES}
    for _ in range(100):
        refresh(pipeline.backends.repo, log, catalog)
    assert waiting(log) >= 1200
    assert all(log.end_offsets(NOTIFICATIONS[lane]) == ends[lane] for lane in LANES if lane is not LaneName.LOW)
    for ad in ADS:
        pipeline.sql(f"UPDATE ads SET status = 'PAUSED' WHERE id = {ad}")
    pipeline.run("gateway", "updater", "wal_proxy")
    consumer = log.consumer(ARGUS_GROUP, [NOTIFICATIONS[lane] for lane in LANES])
    try:
        lanes = [record.topic for record in consumer.poll(64, 5)]
    finally:
        consumer.close()
    high = NOTIFICATIONS[LaneName.HIGH]
    assert lanes[: len(ADS)] == [high] * len(ADS)
    assert set(lanes[len(ADS) :]) == {NOTIFICATIONS[LaneName.LOW]}
