"""Dayparting and frequency caps: judged when serving answers, without rewriting an ad."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from manas import Index, InvalidRequest
from messaging.proto import adsindex_pb2 as pb
from tests.manas.test_special import make_index

ADS: list[dict[str, Any]] = [
    {"ad_id": 1, "campaign_id": 1, "windows": ([(6, 2, 1)], "Europe/Paris")},
    {"ad_id": 2, "campaign_id": 1, "windows": ([(6, 2, 1)], "user")},
    {"ad_id": 3, "campaign_id": 2},
    {"ad_id": 4, "campaign_id": 3, "windows": ([(day, 9, 8) for day in range(5)], "Asia/Kolkata")},
]


@pytest.fixture(params=["base", "delta"])
def index(request: pytest.FixtureRequest, tmp_path: Path) -> Index:
    """The ads in a base or as deltas."""
    return make_index(tmp_path, ADS, ()) if request.param == "base" else make_index(tmp_path, (), ADS)


def ids(index: Index, **request: Any) -> list[int]:
    """Return the ads that fit, sorted."""
    return sorted(int(hit["ad_id"]) for hit in index.search(request, 0)["hits"])


def test_wall_clocks_of_advertiser_and_user(index: Index) -> None:
    """The same instant is another hour for another zone, and both follow changes of the clock."""
    assert ids(index, at="2026-03-29T00:30:00", time_zone="Europe/Paris") == [3]
    assert ids(index, at="2026-03-29T01:30:00", time_zone="Europe/Paris") == [3], "2 o'clock does not exist"
    assert ids(index, at="2026-10-25T00:30:00", time_zone="Europe/Paris") == [1, 2, 3]
    assert ids(index, at="2026-10-25T01:30:00", time_zone="Europe/Paris") == [1, 2, 3], "2 o'clock comes twice"
    assert ids(index, at="2026-10-25T01:30:00", time_zone="America/New_York") == [1, 3]
    assert ids(index, at="2026-10-25T02:30:00", time_zone="UTC") == [2, 3]
    assert ids(index, at="2026-01-05T03:29:59") == [3]
    assert ids(index, at="2026-01-05T03:30:00") == [3, 4], "9 o'clock in Kolkata is half past"


def test_an_unknown_zone_runs_nothing_and_a_star_browses(index: Index) -> None:
    """Hours by the user's clock need to know it; "*" puts no condition on them, but none is lifted elsewhere."""
    assert ids(index, at="2026-01-06T12:00:00") == [3]
    assert ids(index, at="2026-01-06T12:00:00", time_zone="*") == [2, 3]
    for bad in ("Mars", "", 5, "../etc"):
        with pytest.raises(InvalidRequest, match="time_zone"):
            ids(index, time_zone=bad)


def test_the_evidence_is_the_local_time(index: Index) -> None:
    """An explanation shows the hours and what the clock of their zone says."""
    ad = index.explain({"at": "2026-01-05T12:00:00"}, 0, 4)["ad"]
    assert "Monday 17:30 (hour 17 of the week)" in ad["why"]
    assert "does not say the user's time zone" in index.explain({"at": "2026-01-05T12:00:00"}, 0, 2)["ad"]["why"]


def test_caps_per_user_and_campaign(index: Index) -> None:
    """A campaign that the user has seen as often as a cap allows is left out, at once after the cap changes."""
    at = "2026-10-25T00:30:00"
    base = {"at": at, "time_zone": "Europe/Paris"}
    caps = {"frequency_cap_day": 2, "frequency_cap_week": 5}
    index.apply_budgets([pb.BudgetState(campaign_id="1", version=2, **caps)])
    assert ids(index, **base) == [1, 2, 3]
    assert ids(index, **base, seen={"1": {"day": 1, "week": 4}, "2": {"day": 99}}) == [1, 2, 3]
    assert ids(index, **base, seen={"1": {"day": 2}}) == [3]
    assert ids(index, **base, seen={"1": {"day": 0, "week": 5}}) == [3]
    assert ids(index, **base, seen={"1": {"total": 1_000}}) == [1, 2, 3], "there is no cap in total"
    request = {**base, "seen": {"1": {"day": 2}, "2": {"day": 1}}}
    assert (
        "campaign_id 1: the user has seen it 2 times (day), its cap is 2" in index.explain(request, 0, 1)["ad"]["why"]
    )
    steps = {step["clause"]: step for step in index.explain(request, 0, 3)["ad"]["steps"]}
    assert steps["frequency"]["evidence"] == "campaign_id 2: below its frequency caps"
    assert [row["clause"] for row in index.explain(request, 0)["plan"]["layers"][-1]["clauses"]].count("frequency") == 1
    index.apply_budgets([pb.BudgetState(campaign_id="1", version=3, frequency_cap_day=3)])
    assert ids(index, **request) == [1, 2, 3]


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        ([], "seen: an object"),
        ({"1": 5}, "seen.1: an object of counts by day, week, total"),
        ({"1": {"month": 5}}, "seen.1: an object of counts by day, week, total"),
        ({"1": {"day": -1}}, "seen.1.day: a whole number"),
        ({"1": {"day": True}}, "seen.1.day: a whole number"),
        ({str(n): {"day": 1} for n in range(1_001)}, "at most 1000 campaigns"),
    ],
)
def test_what_was_seen_is_checked(index: Index, seen: Any, words: str) -> None:
    """Counts are bounded in number and are whole; the sentence names the campaign."""
    with pytest.raises(InvalidRequest, match=words):
        ids(index, seen=seen)
