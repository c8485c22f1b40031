"""Fan-out: everybody concerned is run, in chunks, without starving others, also after a crash in the middle."""

from __future__ import annotations

from argus import Hint
from argus._hints import BUDGET, CHUNK, collapse
from catalog import LaneName
from messaging.headers import new_header
from messaging.proto import adsindex_pb2 as pb
from tests.argus.world import AD, AD_GROUP, CAMPAIGN, PIN, World, notification

GROUPS, ADS = 7, 600


def campaign_of(world: World, ads: int = ADS) -> None:
    """Store a healthy campaign with many ads in several ad groups, all settled."""
    world.ad()
    world.put_many([("ad_group", g, AD_GROUP) for g in range(1, GROUPS + 1)])
    world.put_many([("ad", a, {**AD, "id": a, "ad_group_id": a % GROUPS + 1}) for a in range(1, ads + 1)])
    world.settle()


def test_a_campaign_change_reaches_all_its_ads_in_chunks(world: World) -> None:
    """Each batch runs one chunk and queues a continuation at the lane of the cause until all ads are done."""
    campaign_of(world)
    core = world.core()
    world.put("campaign", 1, **{**CAMPAIGN, "status": "PAUSED"})
    waiting, sizes, lanes = world.hints(), [], set()
    while waiting:
        outcome = core.process_hints(waiting)
        sizes.append(outcome.counts["runs"])
        waiting = [Hint(n) for n in outcome.notifications]
        lanes |= {n.header.lane for n in outcome.notifications}
        assert len(waiting) <= 1
        assert [n.fan_out.chunks_done for n in outcome.notifications] in ([], [len(sizes)])
    assert sizes == [256, 256, 88]
    assert lanes == {pb.LANE_HIGH}
    assert all(world.body(a) is None for a in range(1, ADS + 1))


def test_a_continuation_goes_on_where_the_dead_left_off(world: World) -> None:
    """A chunk is repeated or a continuation doubled by a crash: all ads are done, and the result is the same."""
    campaign_of(world)
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    (hint,) = world.hints()
    first = world.core().process_hints([hint])  # dies before it publishes
    again = world.core().process_hints([Hint(hint.notification, redelivered=True)])
    assert {d.document_id for d in again.deltas} == {d.document_id for d in first.deltas}
    assert {(d.document_id, d.version) for d in again.deltas} == {(d.document_id, d.version) for d in first.deltas}
    waiting = [Hint(n) for n in (*first.notifications, *again.notifications)]
    survivor = world.core()
    while waiting:
        waiting = [Hint(n) for n in survivor.process_hints(waiting).notifications]
    ads = list(range(1, ADS + 1))
    assert all(world.document(a)["objective"] == "SALES" for a in (1, ADS))
    assert world.stored(ads) == world.expected(ads)


def test_the_cursor_survives_rows_that_go_and_come(world: World) -> None:
    """Between chunks the cursor's own ad and ad group vanish and others come; everybody left is up to date."""
    campaign_of(world)
    core = world.core()
    world.put("campaign", 1, **{**CAMPAIGN, "objective": "SALES"})
    first = core.process_hints(world.hints())
    (continuation,) = first.notifications
    ad_group, ad = continuation.fan_out.cursor.split("\x1f")
    world.delete("ad", ad)
    world.put("ad_group", ad_group, **{**AD_GROUP, "campaign_id": 2})
    world.put("campaign", 2, **{**CAMPAIGN, "status": "PAUSED"})
    world.put("ad", 9_999, **{**AD, "id": 9_999, "ad_group_id": 1})
    waiting = [Hint(continuation), *world.hints()]
    while waiting:
        waiting = [Hint(n) for n in core.process_hints(waiting).notifications] + world.hints()
    ads = [*range(1, ADS + 1), 9_999]
    assert world.stored(ads) == world.expected(ads)
    assert world.document(9_999)["objective"] == "SALES"


def test_a_huge_campaign_does_not_starve_others(world: World) -> None:
    """The change of a small campaign that comes after a huge one is done in the next batch, not after it."""
    campaign_of(world)
    world.put("campaign", 2, **CAMPAIGN)
    world.put("ad_group", 100, **{**AD_GROUP, "campaign_id": 2})
    world.put("ad", 5_000, **{**AD, "id": 5_000, "ad_group_id": 100})
    world.settle()
    core = world.core()
    world.put("campaign", 1, **{**CAMPAIGN, "status": "PAUSED"})
    first = core.process_hints(world.hints())
    world.put("campaign", 2, **{**CAMPAIGN, "status": "PAUSED"})
    core.process_hints(world.hints() + [Hint(n) for n in first.notifications])
    assert world.body(5_000) is None
    assert sum(world.body(a) is not None for a in range(1, ADS + 1)) == ADS - 2 * CHUNK[LaneName.HIGH]


def test_a_batch_of_many_fan_outs_has_a_budget(world: World) -> None:
    """What is over the budget of a batch goes back untouched and is done later."""
    campaign_of(world, ads=700)
    core = world.core()
    world.put_many([("ad_group", g, {**AD_GROUP, "bid_micros": 77}) for g in range(1, GROUPS + 1)])
    outcome = core.process_hints(world.hints())
    assert outcome.counts["documents_changed"] == BUDGET
    waiting = [Hint(n) for n in outcome.notifications]
    while waiting:
        waiting = [Hint(n) for n in core.process_hints(waiting).notifications]
    assert all(world.document(a)["bid_micros"] == 77 for a in range(1, 701))


def test_low_fan_outs_have_smaller_chunks(world: World) -> None:
    """A high update waits for a low chunk at most, so that is kept short."""
    campaign_of(world, ads=300)
    outcome = world.core().process_hints([notification("campaign", 1, "objective", lane=LaneName.LOW)])
    assert outcome.counts["runs"] == CHUNK[LaneName.LOW]
    assert [n.header.lane for n in outcome.notifications] == [pb.LANE_LOW]


def test_pins_and_images_fan_out_over_every_hop(world: World) -> None:
    """An image change reaches the ads of its pins; a pin change runs the pin's handlers before its ads."""
    world.ad()
    world.put("pin", "p2", **{**PIN, "id": "p2"})
    world.put("ad", 2, **{**AD, "id": 2, "pin_id": "p2"})
    world.settle()
    world.put("image", "i1", url="https://example.com/new.jpg", status="ACTIVE")
    outcome = world.core().process_hints(world.hints())
    assert outcome.counts["documents_changed"] == 2
    world.put("pin", "p2", **{**PIN, "id": "p2", "brand": "Other"})
    outcome = world.core().process_hints(world.hints())
    assert outcome.counts["runs"] == 2
    assert "other" in world.document(2)["terms"]
    follow_up = world.core().process_hints(world.hints())
    assert (follow_up.counts["runs"], follow_up.counts["covered"]) == (0, 1)


def test_hints_for_one_row_collapse(world: World) -> None:
    """Several hints become one run, in the highest lane, with the earliest origin and its trace."""
    headers = [
        new_header(lane, at, f"t{at}") for lane, at in [(LaneName.LOW, 5), (LaneName.HIGH, 9), (LaneName.MEDIUM, 3)]
    ]
    hints = [
        Hint(pb.Notification(header=h, table="ad", row="1", columns=[c], commit_ts=ts))
        for h, c, ts in zip(headers, ["status", "name", "status"], [10, 30, 20], strict=True)
    ]
    (one,) = collapse(hints)
    merged = one.notification
    assert (merged.header.trace_id, merged.header.origin_us, merged.header.lane) == ("t3", 3, pb.LANE_HIGH)
    assert (set(merged.columns), merged.commit_ts) == ({"status", "name"}, 30)
    world.ad()
    assert world.core().process_hints(hints).counts["runs"] == 1
