"""Whole documents: what is in them, what blocks them, and what changes them."""

from __future__ import annotations

from typing import Any

import pytest

from argus.sources import PerformanceRow
from catalog.documents import encode_document
from catalog.model import RUN, TIMELINE
from catalog.values import decode
from messaging.proto import adsindex_pb2 as pb
from tests.argus.world import AD, AD_GROUP, ADVERTISER, CAMPAIGN, IMAGE, PIN, World

EXPECTED = {
    "ad_id": 1,
    "ad_group_id": 1,
    "campaign_id": 1,
    "advertiser_id": 1,
    "pin_id": "p1",
    "objective": "TRAFFIC",
    "bid_micros": 250_000,
    "bid_currency": "USD",
    "bid_account_micros": 250_000,
    "starts_us": 1_000_000,
    "targeting": ["age=30-34", "country=*", "device=*", "gender=*", "interests=16", "interests=5", "language=*"],
    "interests": [5, 16],
    "title": "Solid Women's Shorts",
    "link": "https://example.com/p1",
    "image_url": "https://example.com/i1.jpg",
    "brand": "Alisha",
    "category": "Clothing",
    "categories": ["Clothing", "Clothing >> Women's Clothing"],
    "price_micros": 379_000_000,
    "currency": "INR",
    "discount_percent": 62,
    "language": "en",
    "quality": 1.0,
}


def test_a_healthy_ad_has_a_complete_document(world: World) -> None:
    """Every field comes from where the catalogue says, in canonical bytes."""
    world.ad()
    world.settle()
    document = world.document()
    assert {name: document[name] for name in EXPECTED} == EXPECTED
    assert set(document) == {*EXPECTED, "terms", "embedding"}
    assert {"shorts", "cotton", "alisha", "clothing"} <= set(document["terms"])
    assert len(document["embedding"]) == 4 * 64
    assert world.body() == encode_document(document)
    assert world.stored([1]) == world.expected([1])
    assert world.blocked() == []


def test_the_last_delta_is_the_stored_document(world: World) -> None:
    """The delta's version is the commit timestamp of the body, and its header tells of Argus's hop."""
    world.ad()
    deltas = [d for outcome in world.settle() for d in outcome.deltas]
    written = world.repo.history("ad_document", "1", "servable:body")["servable:body"][0]
    assert (deltas[-1].version, deltas[-1].body, deltas[-1].deleted) == (written.commit_ts, world.body(), False)
    assert deltas[-1].header.hops[-1].stage == "argus"
    assert written.origin is not None
    assert (written.origin.stage, written.origin.handler) == ("argus", "ad")
    row = world.repo.snapshot().get("ad_document", "1")
    timeline = pb.Header.FromString(row[TIMELINE])
    assert timeline.trace_id == deltas[-1].header.trace_id
    assert decode(row[RUN])[0] > 0


HEALTHY: dict[str, dict[str, Any]] = {
    "advertiser": ADVERTISER,
    "campaign": CAMPAIGN,
    "ad_group": AD_GROUP,
    "ad": AD,
    "pin": PIN,
    "image": IMAGE,
}
BREAKS: list[tuple[str, object, dict[str, Any], str]] = [
    ("advertiser", 1, {**ADVERTISER, "status": "PAUSED"}, "advertiser 1 has status PAUSED, not ACTIVE"),
    (
        "advertiser",
        1,
        {**ADVERTISER, "billing_status": "SUSPENDED"},
        "advertiser 1 has billing status SUSPENDED, not OK",
    ),
    ("campaign", 1, {**CAMPAIGN, "status": "PAUSED"}, "campaign 1 has status PAUSED, not ACTIVE"),
    ("campaign", 1, {**CAMPAIGN, "status": None}, "campaign 1 has status unknown, not ACTIVE"),
    ("campaign", 1, {**CAMPAIGN, "advertiser_id": 9}, "advertiser 9 has not arrived"),
    ("ad_group", 1, {**AD_GROUP, "status": "ARCHIVED"}, "ad group 1 has status ARCHIVED, not ACTIVE"),
    ("ad_group", 1, {**AD_GROUP, "bid_micros": 0}, "ad group 1 has no bid above 0"),
    ("advertiser", 1, {**ADVERTISER, "currency": "XXX"}, "advertiser 1 has currency 'XXX' without exchange rate"),
    ("ad_group", 1, {**AD_GROUP, "campaign_id": 12}, "campaign 12 has not arrived"),
    ("ad_group", 1, {**AD_GROUP, "targeting_spec": "[]"}, "ad group 1 has no valid targeting"),
    ("ad", 1, {**AD, "status": "PAUSED"}, "ad 1 has status PAUSED, not ACTIVE"),
    ("ad", 1, {**AD, "review_status": "REJECTED"}, "ad 1 has review status REJECTED, not APPROVED"),
    ("ad", 1, {**AD, "pin_id": "p2"}, "pin p2 has not arrived"),
    ("ad", 1, {**AD, "ad_group_id": None}, "no ad group is set"),
    ("pin", "p1", {**PIN, "title": "  "}, "pin p1 has no title"),
    ("pin", "p1", {**PIN, "status": "REMOVED"}, "pin p1 has status REMOVED, not ACTIVE"),
    ("pin", "p1", {**PIN, "image_id": "i9"}, "image i9 has not arrived"),
    ("image", "i1", {**IMAGE, "status": "REMOVED"}, "image i1 has status REMOVED, not ACTIVE"),
    ("image", "i1", {**IMAGE, "url": None}, "image i1 has no url"),
    (
        "pin",
        "p1",
        {**PIN, "title": "!", "description": None, "brand": None, "category_path": None},
        "critical field embedding has no value (pin.embedding from handler:text_embedding)",
    ),
]


@pytest.mark.parametrize(("table", "row", "broken", "cause"), BREAKS, ids=[b[3] for b in BREAKS])
def test_each_cause_blocks_and_heals(world: World, table: str, row: object, broken: dict[str, Any], cause: str) -> None:
    """Breaking an ad in one way takes its document down, that cause first; mended, it has the same bytes again."""
    world.ad()
    core = world.core()
    world.settle(core)
    before = world.body()
    assert before is not None
    world.put(table, row, **broken)
    deltas = [d for outcome in world.settle(core) for d in outcome.deltas]
    assert world.body() is None
    assert world.blocked()[0] == cause
    assert [(d.document_id, d.deleted, d.body) for d in deltas] == [("1", True, b"")]
    assert world.expected([1]) == {"1": None}
    world.put(table, row, **HEALTHY[table])
    world.settle(core)
    assert world.body() == before


@pytest.mark.parametrize(
    ("table", "row"),
    [("advertiser", 1), ("campaign", 1), ("ad_group", 1), ("pin", "p1"), ("image", "i1"), ("ad", 1)],
)
def test_a_deleted_entity_takes_its_documents_down_until_it_comes_back(world: World, table: str, row: object) -> None:
    """Deletion at any level blocks the ad and says so; when the entity is there again, so is the document."""
    world.ad()
    core = world.core()
    world.settle(core)
    before = world.body()
    world.delete(table, row)
    world.settle(core)
    assert world.body() is None
    assert world.blocked()[0] == f"{table.replace('_', ' ')} {row} has been deleted"
    world.put(table, row, **HEALTHY[table])
    world.settle(core)
    assert world.body() == before is not None


def test_an_ad_group_that_comes_back_without_a_spec_accepts_everybody(world: World) -> None:
    """A row that was deleted runs its handlers again when it returns, even if no watched column has a value."""
    world.ad()
    world.settle()
    world.delete("ad_group", 1)
    world.settle()
    world.put("ad_group", 1, **{**AD_GROUP, "targeting_spec": None})
    world.settle()
    assert "age=*" in world.document()["targeting"]
    assert "interests" not in world.document()


def test_orphans_are_joined_when_their_parents_arrive(world: World) -> None:
    """An ad that came before everything it refers to gets its document with the last parent, in any order."""
    core = world.core()
    world.put("ad", 1, **AD)
    world.settle(core)
    assert world.blocked()[0] == "ad group 1 has not arrived"
    for table, row, columns in [
        ("image", "i1", IMAGE),
        ("pin", "p1", PIN),
        ("ad_group", 1, AD_GROUP),
        ("campaign", 1, CAMPAIGN),
    ]:
        world.put(table, row, **columns)
        world.settle(core)
        assert world.body() is None
    assert world.blocked()[0] == "advertiser 1 has not arrived"
    world.put("advertiser", 1, **ADVERTISER)
    world.settle(core)
    assert world.document()["title"] == PIN["title"]


def test_budget_and_spend_rewrite_no_document(world: World) -> None:
    """Budget columns are watched by nobody, so they notify nobody."""
    world.ad()
    world.settle()
    world.put("campaign", 1, **CAMPAIGN, budget_daily_micros=5, spent_today_micros=3)
    assert world.hints() == []


def test_a_document_never_published_needs_no_delete(world: World) -> None:
    """An ad that has never been servable sends no delta, not even for a refresh."""
    world.put("ad", 1, **AD)
    core = world.core()
    hints = world.hints()
    for hint in hints:
        hint.redelivered = True
    outcome = core.process_hints(hints)
    assert outcome.deltas == []
    assert world.blocked()


def test_performance_arrives_by_signal_and_pull(world: World) -> None:
    """A signal makes the ad pull its history at least as new as the signal says."""
    world.ad()
    core = world.core()
    world.settle(core)
    world.perform(PerformanceRow(1, 20_000, 10, 3, 1, 7_000_000))
    world.settle(core)
    document = world.document()
    assert (document["impressions"], document["clicks"], document["conversions"]) == (20_000, 10, 3)
    assert document["spend_micros"] == 7_000_000
    assert document["quality"] == 2.0
    world.perform(PerformanceRow(1, 20_000, 11, 3, 1, 8_000_000))
    world.settle(core)
    assert world.document()["spend_micros"] == 8_000_000
    assert world.stored([1]) == world.expected([1])
