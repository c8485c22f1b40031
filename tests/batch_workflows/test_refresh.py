"""What a refresh selects, that it paces itself, stops and goes on, and that it delays no control update."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from argus import ArgusCore, load_registry, stage
from argus.core import Outcome
from batch_workflows import UnknownSelection
from batch_workflows.refresh import Pace, Place, refresh, request, waiting
from batch_workflows.refresh_selection import selection_of
from catalog import LaneName
from messaging import Record
from messaging.headers import now_us
from messaging.metrics import StageMetrics
from messaging.proto import adsindex_pb2 as pb
from messaging.stage import StageContext
from messaging.switches import Switches, set_switch
from messaging.topics import ARGUS_GROUP, DELTAS, LANES, NOTIFICATIONS
from storage_repo import RowId
from storage_repo.embedded import EmbeddedRepo
from tests.batch_workflows.sync_support import filled, work
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


def test_rows_changed_since_a_time_are_asked_for_many_at_a_time(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pages of three ads are two questions about their times, and none about a single row's history."""
    catalog, repo = pipeline.backends.catalog, pipeline.backends.repo
    asked_for, real = list[int](), EmbeddedRepo.changed_since

    def counted(self: EmbeddedRepo, rows: Any, columns: Any, since_us: int) -> set[RowId]:
        asked_for.append(len(rows))
        return real(self, rows, columns, since_us)

    def row_by_row(*_: Any) -> None:
        raise AssertionError("asked for the history of a row")

    monkeypatch.setattr(EmbeddedRepo, "changed_since", counted)
    monkeypatch.setattr(EmbeddedRepo, "history", row_by_row)
    monkeypatch.setattr("batch_workflows.refresh_selection.PAGE", 3)
    selection = selection_of(catalog, load_registry(catalog), table="ad", changed_since="1h")
    assert request(repo, pipeline.log, catalog, selection).rows == len(ADS)
    assert asked_for == [3, 3]


def test_only_rows_that_changed_since_are_refreshed(pipeline: Pipeline) -> None:
    """Of six ads the one that was updated after the moment, whichever page it is on; a handler's run is no update."""
    moment = datetime.fromtimestamp(now_us() / 1e6, UTC).isoformat()
    pipeline.sql("UPDATE ads SET status = 'PAUSED' WHERE id = 201")
    work(pipeline)
    catalog = pipeline.backends.catalog
    selection = selection_of(catalog, load_registry(catalog), table="ad", changed_since=moment)
    assert request(pipeline.backends.repo, pipeline.log, catalog, selection).rows == 1
    assert asked(pipeline) == ["ad/201"]


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


REFRESHED, PAUSED = ADS[:2], ADS[2:]
"""The first would leave with any batch of the refresh."""


class Advertiser:
    """Pauses one ad after the other while a refresh goes on, each just after a batch of the refresh was taken, and
    counts how many rows of the refresh are done between that and the ad's leaving."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.context = self._stage()
        self.left, self.overtaken, self.beats = list(PAUSED), list[int](), 0
        self._paused, self._before = "", 0
        self._read: dict[int, int] = dict(pipeline.log.end_offsets(DELTAS))

    def _stage(self) -> StageContext:
        backends, log = self.pipeline.backends, self.pipeline.log
        metrics, stop = StageMetrics(backends.home.metrics, "argus-0"), threading.Event()
        return Beating(
            "argus", 0, backends.home, backends.catalog, log, metrics, stop, lambda _: None, beaten=self.look
        )

    def in_work(self) -> None:
        """Pause an ad, and let it come as far as the stage that works at this moment."""
        if self._paused or not self.left:
            return
        self._paused, self._before = self.left.pop(), self._done()
        self.pipeline.sql(f"UPDATE ads SET status = 'PAUSED' WHERE id = {self._paused}")
        self.pipeline.run("gateway", "updater", "wal_proxy")

    def look(self) -> None:
        """Between two batches: see whether the ad has left, and let the refresh go on."""
        log, self.beats = self.pipeline.log, self.beats + 1
        for partition, end in log.end_offsets(DELTAS).items():
            for record in log.read(DELTAS, partition, self._read[partition], 10_000):
                delta = pb.DocumentDelta.FromString(record.value)
                if delta.document_id == self._paused and delta.deleted:
                    self.overtaken.append(self._done() - self._before)
                    self._paused = ""
            self._read[partition] = end
        while waiting(log) < 300:
            refresh(self.pipeline.backends.repo, log, self.pipeline.backends.catalog, ids=REFRESHED)
        if len(self.overtaken) == len(PAUSED) or self.beats > 1_000:
            self.context.stop.set()

    def _done(self) -> int:
        return sum(self.pipeline.log.committed(ARGUS_GROUP, NOTIFICATIONS[LaneName.LOW]).values())


@dataclass
class Beating(StageContext):
    """Of a stage that somebody looks at between its batches."""

    beaten: Callable[[], None] = lambda: None

    def beat(self) -> None:
        """Look."""
        self.beaten()


def test_a_control_update_waits_for_a_batch_of_a_refresh_at_most(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real stage works off a refresh that never ends, some hundred rows ahead. Four ads are paused,
    each when the stage has just begun with a batch: of the refresh that one is done before the ad has left, and
    nothing of what is taken together with the update."""
    advertiser, real = Advertiser(pipeline), stage.process_and_publish

    def just_taken(context: StageContext, core: ArgusCore, records: Sequence[Record]) -> Outcome:
        advertiser.in_work()
        return real(context, core, records)

    monkeypatch.setattr(stage, "process_and_publish", just_taken)
    stage.run(advertiser.context, pipeline.backends.repo)
    assert len(advertiser.overtaken) == len(PAUSED), advertiser.beats
    assert max(advertiser.overtaken) <= 32
    assert waiting(pipeline.log) > 100
    pipeline.manas()
    assert pipeline.index.documents() == len(REFRESHED)
