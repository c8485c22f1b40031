"""A handler that a switch pauses: others run, its rows are kept, and it catches up when it is resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from argus import CannotPause, Hint, check_pausable, compute_documents, paused_handlers
from argus.core import DEFER_FOR_US
from argus.sources import PerformanceRow
from catalog.values import decode
from messaging.proto import adsindex_pb2 as pb
from messaging.switches import set_switch
from messaging.topics import DEFERRED, DELTAS
from tests.argus.test_stage import Stage
from tests.argus.world import AD_GROUP, CAMPAIGN, World, notification

ERROR = "meta:error.bid"


@pytest.fixture
def stage(world: World, tmp_path: Path) -> Iterator[Stage]:
    """A stage that is not started yet."""
    made = Stage(world, tmp_path)
    yield made
    made.stop()


def test_a_paused_handler_keeps_its_outputs_and_its_rows(world: World) -> None:
    """Others run and a pause of the campaign takes effect; nothing is a dead letter; resumed, the row catches up."""
    world.ad()
    world.settle()
    before = world.document()["bid_micros"]
    paused = {"bid": "paused by anna: wrong rates"}
    core = world.core(paused=lambda: paused)
    world.put("ad_group", 1, **{**AD_GROUP, "bid_micros": before + 1})
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    outcomes = world.settle(core)
    assert world.document()["bid_micros"] == before
    assert [d.body for o in outcomes for d in o.deltas] == [world.body()]
    assert not any(o.dead_letters for o in outcomes)
    kept = [n for o in outcomes for n in o.deferred][-1]
    said = decode(world.repo.snapshot().get("ad_document", "1")[ERROR])
    assert said == ["handler_paused", "paused by anna: wrong rates"]
    world.put("campaign", 1, **{**CAMPAIGN, "status": "PAUSED"})
    assert [d.deleted for o in world.settle(core) for d in o.deltas] == [True]
    world.put("campaign", 1, **CAMPAIGN)
    world.settle(core)

    (again,) = core.process_hints([Hint(kept, deferred=True)]).deferred
    commit = world.repo.last_commit_ts()
    assert core.process_hints([Hint(again, deferred=True)]).only_waits
    assert world.repo.last_commit_ts() == commit, "a row that goes on waiting is not written"
    paused.clear()
    outcome = core.process_hints([Hint(again, deferred=True)])
    assert outcome.deferred == []
    assert world.document()["bid_micros"] == before + 1
    assert world.stored([1]) == world.expected([1])
    assert ERROR not in world.repo.snapshot().get("ad_document", "1")


def test_rows_of_a_paused_handler_wait_however_long(world: World) -> None:
    """A source that is away is waited for a limited time, a person's switch is not."""
    world.ad()
    world.settle(world.core())
    old = notification("ad", 1, "performance_version")  # of 1970
    assert old.notification.header.origin_us < DEFER_FOR_US
    old.notification.refresh = True
    core = world.core(paused=lambda: {"bid": "paused"})
    assert len(core.process_hints([old]).deferred) == 1


def test_a_paused_handler_s_source_is_not_asked(world: World) -> None:
    """Pausing the handler takes the load from a source that suffers."""
    world.perform(PerformanceRow(1, 2_000, 2, 0, 0, 9))
    world.ad()
    world.signal({1: 9})
    sources = world.sources()
    world.settle(world.core(sources=sources, paused=lambda: {"performance": "paused"}))
    assert sources["performance"].statistics()["calls"] == 0
    assert "impressions" not in world.document()
    world.settle()
    core = world.core(sources=sources)
    core.process_hints([notification("ad", 1, "performance_version", refresh=True)])
    assert sources["performance"].statistics()["calls"] == 1
    assert world.document()["impressions"] == 2_000


def test_a_base_index_respects_the_pause(world: World) -> None:
    """What a base would be built of is what the pipeline has, while the handler is paused."""
    world.ad()
    world.settle()
    core = world.core(paused=lambda: {"bid": "paused"})
    world.put("ad_group", 1, **{**AD_GROUP, "bid_micros": 77})
    world.settle(core)

    def computed(**paused: str) -> dict[str, bytes | None]:
        found = compute_documents(world.repo.snapshot(), world.registry, world.sources(), ["1"], paused)
        return {key: body for key, body, _ in found}

    assert computed(bid="paused") == world.stored([1])
    assert computed() != world.stored([1])


def test_the_switch_pauses_and_resumes_a_running_stage(stage: Stage, world: World) -> None:
    """Set by a person, the switch takes effect on the stage; the row waits in the log, and follows when it is off."""
    stage.start()
    world.ad()
    stage.drain()
    set_switch(stage.log, "pause_handler.bid", "on", who="anna", why="wrong rates")
    stage.context.switches.refresh(force=True)
    assert "anna: wrong rates" in paused_handlers(stage.context.switches)["bid"]
    world.put("ad_group", 1, **{**AD_GROUP, "bid_micros": 77})
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    stage.drain()
    assert world.document()["bid_micros"] == AD_GROUP["bid_micros"]
    assert world.document()["objective"] == "SALES"
    assert stage.lag(DEFERRED) == 1
    set_switch(stage.log, "pause_handler.bid", "off", who="anna", why="mended")
    stage.context.switches.refresh(force=True)  # else the stage may put the row back once more, as it should
    stage.drain(DEFERRED)
    assert world.document()["bid_micros"] == 77
    newest = max(stage.read(DELTAS, pb.DocumentDelta), key=lambda d: d.version)
    assert newest.body == world.body()


@pytest.mark.parametrize(
    ("switch", "said"),
    [("pause_handler.nope", "there is no handler 'nope'"), ("pause_handler.status_rollup", "what may serve")],
)
def test_some_cannot_be_paused(world: World, switch: str, said: str) -> None:
    """A handler that does not exist, and the one that keeps paused campaigns from serving, are refused."""
    with pytest.raises(CannotPause, match=said):
        check_pausable(world.registry, switch)
    check_pausable(world.registry, "pause_handler.bid")
    check_pausable(world.registry, "pause.low")
