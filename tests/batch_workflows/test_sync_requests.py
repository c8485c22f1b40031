"""Rows that went unseen are asked for by the Gateway, durably, and found by a sync that nobody has to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from batch_workflows._clocks import wall_us
from batch_workflows._runs_model import RunRequest
from batch_workflows.execution import execute
from batch_workflows.runs import RunStore
from batch_workflows.sync_requests import submit_wanted
from catalog.model import DELETED
from gateway import lost_rows
from messaging import Log, Position, open_embedded_log
from messaging.home import Home
from messaging.topics import CHANGE_FEED, GATEWAY_GROUP, ensure_topics
from tests.batch_workflows.sync_support import filled, work
from tests.debug_ui.pipeline import Pipeline


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """An idle pipeline with three campaigns, which works while a sync waits."""
    opened = filled(tmp_path / "home", 3)
    monkeypatch.setattr("batch_workflows.sync._sleep", lambda _: work(opened))
    yield opened
    opened.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    """An empty log."""
    home = Home.open(tmp_path / "log")
    opened = open_embedded_log(home.log, home.wake)
    ensure_topics(opened)
    yield opened
    opened.close()


def test_requests_add_up_until_they_are_met(log: Log) -> None:
    """Tables of several requests are one set; meeting an older request leaves the newer one; none named is all."""
    assert lost_rows.pending(log) is None
    lost_rows.ask(log, ["ad"])
    first = lost_rows.pending(log)
    lost_rows.ask(log, ["pin"])
    second = lost_rows.pending(log)
    assert first is not None and second is not None
    assert set(first.tables) == {"ad"}
    assert set(second.tables) == {"ad", "pin"}
    lost_rows.done(log, first)
    assert lost_rows.pending(log) == second
    lost_rows.ask(log, lost_rows.ALL)
    third = lost_rows.pending(log)
    assert third is not None and third.tables == lost_rows.ALL
    lost_rows.ask(log, ["ad"])
    fourth = lost_rows.pending(log)
    assert fourth is not None and fourth.tables == lost_rows.ALL, "all and one are all"
    lost_rows.done(log, fourth)
    assert lost_rows.pending(log) is None


def test_more_tables_than_a_position_holds_are_all(log: Log) -> None:
    """Kafka keeps 4,096 bytes with a position."""
    lost_rows.ask(log, [f"table_{n:040}" for n in range(100)])
    found = lost_rows.pending(log)
    assert found is not None and found.tables == lost_rows.ALL


def test_a_wanted_sync_runs_once_and_deletes_what_went_unseen(pipeline: Pipeline) -> None:
    """Queued by the stage, run once, it deletes the rows that the ads DB lacks, and takes the request back."""
    backends, runs = pipeline.backends, RunStore(pipeline.backends.repo)
    assert not submit_wanted(pipeline.log, runs)
    before = backends.ads_db.last_change()
    pipeline.sql("DELETE FROM ads WHERE id IN (100, 201)")
    pipeline.sql(f"DELETE FROM _adsindex_changes WHERE seq > {before}")
    pipeline.log.set_committed([_at(backends.ads_db.last_change() + 1)])
    lost_rows.ask(pipeline.log, ["ad"])
    work(pipeline)
    assert submit_wanted(pipeline.log, runs)
    assert not submit_wanted(pipeline.log, runs), "it waits already"
    (queued,) = runs.queued()
    record = execute(backends, queued, queued=True)
    assert record.counts["unsynced"] == {"ad:extra_in_repo": 2}
    assert lost_rows.pending(pipeline.log) is None
    work(pipeline)
    snapshot = backends.repo.snapshot()
    assert [row for row, cells in snapshot.scan("ad") if DELETED in cells] == ["100", "201"]
    assert not submit_wanted(pipeline.log, runs)


def test_a_wanted_sync_that_a_person_cancels_stays_cancelled(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For an hour, whether it waited or ran; then the rows are looked for after all."""
    runs = RunStore(pipeline.backends.repo)
    lost_rows.ask(pipeline.log, ["ad"])
    assert submit_wanted(pipeline.log, runs)
    runs.cancel("sync", "bob", "not now")
    assert not submit_wanted(pipeline.log, runs)
    now = wall_us()
    monkeypatch.setattr("batch_workflows.sync_requests.wall_us", lambda: now + 3_590_000_000)
    assert not submit_wanted(pipeline.log, runs)
    monkeypatch.setattr("batch_workflows.sync_requests.wall_us", lambda: now + 3_610_000_000)
    assert submit_wanted(pipeline.log, runs)


def test_a_sync_of_less_does_not_meet_the_request(pipeline: Pipeline) -> None:
    """A report, another table, or other parts leave the request; a sync of everything meets it."""
    lost_rows.ask(pipeline.log, ["ad"])
    less: list[dict[str, JsonValue]] = [{"repair": False}, {"tables": ["pin"]}, {"parts": ["index"]}]
    for parameters in less:
        execute(pipeline.backends, RunRequest(workflow="sync", parameters=parameters))
        assert lost_rows.pending(pipeline.log) is not None
    execute(pipeline.backends, RunRequest(workflow="sync"))
    assert lost_rows.pending(pipeline.log) is None


def _at(offset: int) -> Position:
    return Position(GATEWAY_GROUP, CHANGE_FEED, 0, offset)
