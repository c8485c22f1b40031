"""What a refusing, failing or waiting handler does to its own document, and what it does not do to others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from argus import ArgusCore, HandlerContext, Hint, Inputs, Outcome, Registry, Value, handler
from argus.core import DEFER_FOR_US
from argus.handlers.creative import creative as real_creative
from argus.sources import CachedSource, CacheSettings, PerformanceRow
from catalog.model import handler_error_cell
from catalog.values import decode, encode
from messaging.headers import now_us
from messaging.proto import adsindex_pb2 as pb
from storage_repo import Origin
from tests.argus.world import AD, AD_GROUP, CAMPAIGN, PIN, World, notification, with_handlers

POISON = "poison"


def poisoned() -> Registry:
    """Return handlers of which one crashes on a certain title."""

    @handler(root="ad", watches=real_creative.declaration.watches, writes=real_creative.declaration.writes)
    def creative(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        if row["pin.title"] == POISON:
            raise ZeroDivisionError("poison")
        return real_creative(row, context)

    return with_handlers(creative)


def letters(outcomes: list[Outcome]) -> list[pb.DeadLetter]:
    """Return all dead letters of some batches."""
    return [letter for outcome in outcomes for letter in outcome.dead_letters]


def error(world: World, table: str, row: str, name: str) -> list[str] | None:
    """Return what a handler left on a row."""
    said: list[str] | None = decode(world.repo.snapshot().get(table, row).get(handler_error_cell(name)))
    return said


def test_a_refused_spec_takes_the_ads_down_and_says_why(world: World) -> None:
    """Invalid input clears the outputs: one dead letter for the ad group, and none of its ads serves."""
    world.ad()
    core = world.core()
    world.settle(core)
    before = world.body()
    world.put("ad_group", 1, **{**AD_GROUP, "targeting_spec": '{"planet": ["Mars"]}'})
    (letter,) = letters(world.settle(core))
    assert (letter.reason, letter.handler, letter.table, letter.row) == ("bad_targeting", "targeting", "ad_group", "1")
    assert "'planet' is not a targeting dimension" in letter.error
    assert "Mars" in letter.detail
    assert error(world, "ad_group", "1", "targeting") == ["bad_targeting", letter.error.removeprefix("ad_group 1: ")]
    assert world.body() is None
    replay = pb.Notification.FromString(letter.payload)
    assert (replay.table, replay.row, replay.refresh, letter.topic) == ("ad_group", "1", True, "notifications.high")

    world.put("ad_group", 1, **AD_GROUP)
    assert letters(world.settle(core)) == []
    assert error(world, "ad_group", "1", "targeting") is None
    assert world.body() == before


def test_the_same_failure_is_told_once(world: World) -> None:
    """A refresh of a row that is known to be bad adds no letter; another fault and a redelivery do."""
    world.ad()
    core = world.core()
    world.put("ad_group", 1, **{**AD_GROUP, "targeting_spec": "[]"})
    assert len(letters(world.settle(core))) == 1
    assert core.process_hints([notification("ad_group", 1, refresh=True)]).dead_letters == []
    again = notification("ad_group", 1, "targeting_spec")
    again.redelivered = True
    assert len(core.process_hints([again]).dead_letters) == 1
    world.put("ad_group", 1, **{**AD_GROUP, "targeting_spec": "5"})
    assert len(letters(world.settle(core))) == 1


def test_poison_hurts_only_its_own_document(world: World) -> None:
    """A handler that crashes on one ad sends one dead letter; the other ads of the batch get their documents."""
    world.ad()
    world.put("pin", "p2", **{**PIN, "id": "p2", "title": POISON})
    world.put("ad", 2, **{**AD, "id": 2, "pin_id": "p2"})
    world.put("ad", 3, **{**AD, "id": 3})
    (letter,) = letters(world.settle(world.core(registry=poisoned())))
    assert (letter.reason, letter.handler, letter.row) == ("handler_failed", "creative", "2")
    assert "ZeroDivisionError: poison" in letter.error
    assert "Traceback" in letter.detail
    assert '"pin.title": "poison"' in letter.detail
    assert world.body(1) is not None
    assert world.body(3) is not None
    assert world.body(2) is None


def test_a_crashing_handler_keeps_its_last_outputs_and_pausing_still_works(world: World) -> None:
    """The other handlers of the document go on, so control data takes effect whatever content handlers do."""
    world.ad()
    core = world.core(registry=poisoned())
    world.settle(core)
    world.put("pin", "p1", **{**PIN, "title": POISON})
    world.settle(core)
    assert world.document()["title"] == PIN["title"]
    world.put("campaign", 1, **{**CAMPAIGN, "status": "PAUSED"})
    world.settle(core)
    assert world.body() is None
    assert world.blocked() == ["campaign 1 has status PAUSED, not ACTIVE"]
    world.put("campaign", 1, **CAMPAIGN)
    world.put("pin", "p1", **{**PIN, "title": "well again"})
    world.settle(core)
    assert world.document()["title"] == "well again"
    assert error(world, "ad_document", "1", "creative") is None


def test_an_undeclared_read_in_production_is_a_dead_letter(world: World) -> None:
    """What tests would have refused is refused in the pipeline as well."""

    @handler(root="ad", watches=("ad.status",), writes=("ad_document.interests",))
    def interests(row: Inputs, context: HandlerContext) -> Mapping[str, Value]:
        return {"ad_document.interests": [row["ad.id"]]}

    world.ad()
    (letter,) = letters(world.settle(world.core(registry=with_handlers(interests))))
    assert letter.reason == "handler_failed"
    assert "UndeclaredRead" in letter.error


def test_notifications_that_make_no_sense_become_dead_letters(world: World) -> None:
    """Unknown tables, impossible keys and impossible fan-outs are told; the rest of the batch is worked on."""
    world.ad()
    hints = [
        notification("planet", 1, "x"),
        notification("ad", "a\nb", "status"),
        notification("ad", "x" * 500, "status"),
        notification("advertiser", 1, fan_out=pb.FanOut(root="image")),
        notification("ad", 1, "status"),
    ]
    outcome = world.core().process_hints(hints)
    assert [letter.reason for letter in outcome.dead_letters] == ["bad_message"] * 4
    assert "'planet', which" in outcome.dead_letters[0].error
    assert outcome.counts["runs"] == 1


def test_a_reference_to_an_impossible_key_blocks_one_ad(world: World) -> None:
    """The Updater refuses such references; if one is stored all the same, it is an image that has not arrived."""
    world.ad()
    transaction = world.repo.begin(Origin(stage="test"))
    transaction.put("pin", "p1", "content:image_id", encode("x" * 450))
    transaction.commit()
    world.settle()
    assert world.blocked()[0].startswith("image xxx")


class _Broken:
    """A source that is down at will."""

    def __init__(self, world: World) -> None:
        self.world, self.down = world, False

    def lookup(self, keys: Sequence[int], /) -> dict[int, tuple[int, PerformanceRow]]:
        if self.down:
            raise OSError("no route to host")
        return self.world.performance.lookup(keys)


def test_a_source_that_is_down_freezes_its_own_fields_only(world: World) -> None:
    """Performance stays as it was, control data goes through, nothing is dead-lettered; later it catches up."""
    broken = _Broken(world)
    cached: CachedSource[int, PerformanceRow] = CachedSource(
        "performance", broken, CacheSettings(timeout_s=10, retry_after_s=0)
    )
    world.opened.append(cached)
    core: ArgusCore = world.core(sources={"performance": cached})
    world.ad()
    world.perform(PerformanceRow(1, 1_000, 1, 0, 0, 5))
    world.settle(core)
    broken.down = True
    world.perform(PerformanceRow(1, 2_000, 2, 0, 0, 9))
    world.put("ad_group", 1, **{**AD_GROUP, "bid_micros": 999})
    outcomes = world.settle(core)
    assert letters(outcomes) == []
    assert sum(outcome.counts["source_unavailable"] for outcome in outcomes) > 0
    assert (world.document()["bid_micros"], world.document()["impressions"]) == (999, 1_000)
    assert error(world, "ad_document", "1", "performance") == [
        "source_unavailable",
        "source performance is down (no route to host); the last values stay",
    ]
    broken.down = False
    core.process_hints([notification("ad", 1, "status", commit_ts=1)])  # any run of the row tries again
    assert world.document()["impressions"] == 2_000
    assert error(world, "ad_document", "1", "performance") is None
    assert world.stored([1]) == world.expected([1])


def test_a_row_that_waits_for_a_source_goes_round_apart_and_commits_nothing(world: World) -> None:
    """Nobody has to send a signal again: the row queues until the source is back, but not for ever; finding the source
    still away writes nothing and publishes nothing."""
    broken = _Broken(world)
    cached: CachedSource[int, PerformanceRow] = CachedSource(
        "performance", broken, CacheSettings(timeout_s=10, retry_after_s=0)
    )
    world.opened.append(cached)
    core = world.core(sources={"performance": cached})
    world.ad()
    world.settle(core)
    broken.down = True
    world.perform(PerformanceRow(1, 2_000, 2, 0, 0, 9))
    (hint,) = world.hints()
    hint.notification.header.origin_us = now_us() - DEFER_FOR_US - 1
    outcome = core.process_hints([hint])
    assert (outcome.notifications, outcome.deferred) == ([], [])
    hint.notification.header.origin_us = now_us()
    outcome = core.process_hints([hint])
    assert (outcome.notifications, outcome.counts["deferred"], outcome.only_waits) == ([], 1, False)
    (waiting,) = outcome.deferred
    assert waiting.header.lane == pb.LANE_LOW
    before = world.repo.last_commit_ts()
    outcome = core.process_hints([Hint(waiting, deferred=True)])
    assert (outcome.only_waits, outcome.counts["waiting_for_source"], outcome.deltas) == (True, 1, [])
    assert world.repo.last_commit_ts() == before
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    outcome = core.process_hints([*world.hints(), Hint(outcome.deferred[0], deferred=True)])
    assert (outcome.counts["rows_written"], outcome.counts["documents_changed"], outcome.only_waits) == (1, 1, False)
    broken.down = False
    outcome = core.process_hints([Hint(outcome.deferred[0], deferred=True)])
    assert (outcome.deferred, outcome.counts["documents_changed"], outcome.only_waits) == ([], 1, False)
    assert world.document()["impressions"] == 2_000


def test_a_source_that_never_heard_of_a_signal_is_told_on_the_row(world: World) -> None:
    """Waiting would not help: the row says what is missing, and nothing goes round."""
    world.ad()
    world.performance.upsert([])
    world.signal({1: 5})
    outcomes = world.settle()
    assert sum(outcome.counts["source_behind"] for outcome in outcomes) > 0
    assert sum(outcome.counts["deferred"] for outcome in outcomes) == 0
    said = error(world, "ad_document", "1", "performance")
    assert said is not None
    assert said[0] == "source_behind"
    assert "has no version 5 of 1" in said[1]
    assert "quality" not in world.document()


def test_a_document_that_is_too_large_is_blocked_not_fatal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """One oversized document says so and serves nothing; the batch goes on."""
    monkeypatch.setattr("argus._run.MAX_VALUE_BYTES", 600)
    world.ad()
    world.put("ad", 2, **{**AD, "id": 2, "status": "PAUSED"})
    world.settle()
    assert world.body() is None
    assert "more than 600; shorten its texts" in world.blocked()[0]
    assert world.blocked(2) == ["ad 2 has status PAUSED, not ACTIVE"]
