"""Headers: lanes, hops and the latency of each stage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from catalog import LaneName
from messaging.headers import lane_of, leave, new_header, new_trace_id, stage_latencies_us
from messaging.proto import adsindex_pb2 as pb


def passed(origin_us: int, *hops: tuple[str, int, int]) -> pb.Header:
    """Make a header that has passed stages."""
    header = new_header(LaneName.HIGH, origin_us, "t")
    for stage, entered_us, left_us in hops:
        header = leave(header, stage, entered_us, left_us)
    return header


def test_a_stage_adds_its_hop_and_leaves_the_cause_alone() -> None:
    """leave() copies: trace, lane and origin stay, one hop more, the cause's header is as it was."""
    cause = passed(10, ("gateway", 12, 15))
    sent_on = leave(cause, "updater", 20, 30)
    assert (sent_on.trace_id, sent_on.lane, sent_on.origin_us) == ("t", pb.LANE_HIGH, 10)
    assert [h.stage for h in sent_on.hops] == ["gateway", "updater"]
    assert [h.stage for h in cause.hops] == ["gateway"]


def test_the_time_of_leaving_defaults_to_now() -> None:
    """Without a time, a stage leaves at the present moment."""
    before = passed(10).origin_us
    assert leave(passed(10), "gateway", 12).hops[0].left_us > before + 1_600_000_000_000_000


def test_latencies_are_split_into_waiting_and_working() -> None:
    """Each stage has its time inside and its time before it; together they are the total."""
    header = passed(100, ("gateway", 110, 150), ("updater", 155, 175))
    assert stage_latencies_us(header, 200) == {
        "queue:gateway": 10,
        "gateway": 40,
        "queue:updater": 5,
        "updater": 20,
        "queue:serving": 25,
        "total": 100,
    }


def test_a_stage_passed_twice_is_added_up() -> None:
    """Derived columns go through the proxy and Argus again: both visits count."""
    header = passed(0, ("argus", 1, 3), ("wal_proxy", 4, 5), ("argus", 9, 19))
    parts = stage_latencies_us(header, 20)
    assert (parts["argus"], parts["queue:argus"], parts["wal_proxy"]) == (2 + 10, 1 + 4, 1)
    assert parts["total"] == 20


def test_a_clock_step_counts_as_zero() -> None:
    """A clock set back makes no part negative."""
    header = passed(1_000, ("gateway", 900, 950), ("updater", 940, 2_000))
    parts = stage_latencies_us(header, 1_500)
    assert parts["queue:gateway"] == parts["queue:updater"] == parts["queue:serving"] == 0
    assert (parts["gateway"], parts["updater"], parts["total"]) == (50, 1_060, 500)


hops = st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 10**6), st.integers(0, 10**6)), max_size=8)


@given(st.integers(0, 10**6), hops, st.integers(0, 10**6))
def test_latencies_are_never_negative(origin_us: int, visited: list[tuple[str, int, int]], arrived_us: int) -> None:
    """Whatever the clocks did, every part is at least 0 and every stage is there."""
    parts = stage_latencies_us(passed(origin_us, *visited), arrived_us)
    assert min(parts.values()) >= 0
    assert {stage for stage, _, _ in visited} | {"queue:serving", "total"} <= set(parts)


@given(
    st.integers(0, 100), st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 99), st.integers(0, 99)), max_size=8)
)
def test_parts_add_up_where_the_clock_only_goes_forward(origin_us: int, steps: list[tuple[str, int, int]]) -> None:
    """With steady clocks the parts are the total, nothing lost and nothing counted twice."""
    now, visited = origin_us, []
    for stage, waited, worked in steps:
        visited.append((stage, now + waited, now + waited + worked))
        now += waited + worked
    parts = stage_latencies_us(passed(origin_us, *visited), now + 7)
    assert parts.pop("total") == sum(parts.values()) == now + 7 - origin_us


def test_a_header_without_a_lane_is_low() -> None:
    """An unknown or missing lane can delay nobody."""
    assert lane_of(pb.Header()) is LaneName.LOW
    assert lane_of(pb.Header(lane=77)) is LaneName.LOW  # type: ignore[arg-type]
    assert [lane_of(new_header(lane, 1)) for lane in LaneName] == list(LaneName)


def test_trace_ids_differ() -> None:
    """Ids are 16 hex digits and do not repeat."""
    ids = {new_trace_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)
    assert new_header(LaneName.LOW, 1).trace_id not in ids
