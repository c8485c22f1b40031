"""Plans of updates and their matching with what became answerable, on data whose answer is known."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks._report import Report
from benchmarks._service import difference
from benchmarks._updates import Commit, Latencies, Planner, Update, match
from messaging.metrics import Histogram


@pytest.fixture
def ads_db(tmp_path: Path) -> Path:
    """Twenty ad groups of three ads; ad 10 * g + n belongs to group g."""
    path = tmp_path / "ads.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE ads (id, ad_group_id)")
        connection.execute("CREATE TABLE ad_groups (id, bid_micros)")
        connection.executemany("INSERT INTO ad_groups VALUES (?, 1000000)", [(g,) for g in range(1, 21)])
        ads = [(10 * g + n, g) for g in range(1, 21) for n in range(3)]
        connection.executemany("INSERT INTO ads VALUES (?, ?)", ads)
    return path


def test_every_update_changes_exactly_its_documents(ads_db: Path) -> None:
    """An update names the served ads of its row; no document is touched by two kinds; values always change."""
    served = {str(10 * g + n) for g in range(1, 21) for n in range(2)}
    updates = Planner(ads_db, served, seed=1, probes=2).steady(rate=100, seconds=5)
    kinds: dict[str, set[tuple[str, str]]] = {}
    last: dict[tuple[str, str, int], object] = {}
    for update in updates:
        group = update.key if update.table == "ad_groups" else update.key // 10
        wanted = {str(10 * group + n) for n in range(2)} if update.table == "ad_groups" else {str(update.key)}
        assert set(update.documents) == wanted
        for document in update.documents:
            kinds.setdefault(document, set()).add((update.table, update.column))
        entity = (update.table, update.column, update.key)
        assert last.get(entity) != update.value
        last[entity] = update.value
    assert len(updates) == 500 and updates[-1].at_s == pytest.approx(4.99)
    assert all(len(of) == 1 for of in kinds.values())


def test_probes_are_left_alone(ads_db: Path) -> None:
    """No plan touches an ad that is set aside."""
    served = {str(10 * g + n) for g in range(1, 21) for n in range(3)}
    planner = Planner(ads_db, served, seed=3, probes=2)
    touched = {d for u in [*planner.steady(200, 5), *planner.every_bid()] for d in u.documents}
    assert len(planner.probes) == 2 and touched.isdisjoint(map(str, planner.probes))


def test_latency_is_until_the_last_document() -> None:
    """An update counts from its commit until the last of its documents shows it, not something older."""
    updates = [Update(0.0, "ad_groups", "bid_micros", 1, 5, ("a", "b"))]
    commits = [Commit(1_000_000, 1_001_000)]
    applied = {"a": [(500_000, 1_002_000), (1_000_000, 1_005_000)], "b": [(1_000_000, 1_021_000)]}
    assert match(updates, commits, applied) == Latencies([20.0], 0)


def test_an_update_that_was_never_seen_is_counted() -> None:
    """Without a change of its own in one of the documents, an update has no latency and is said to be unmatched."""
    updates = [Update(0.0, "ads", "status", 1, "PAUSED", ("a",)), Update(2.0, "ads", "status", 1, "ACTIVE", ("a",))]
    commits = [Commit(1_000_000, 1_000_000), Commit(2_000_000, 2_000_000)]
    assert match(updates, commits, {"a": [(1_000_000, 1_010_000)]}) == Latencies([10.0], 1)
    assert match(updates, commits, {}, after_s=1.0) == Latencies([], 1)


def test_quantiles_are_values_that_occurred() -> None:
    """Nearest rank; nothing is interpolated, and no value means no quantile."""
    found = Latencies([float(i) for i in range(100, 0, -1)])
    assert (found.quantile(0.0), found.quantile(0.5), found.quantile(0.99), found.quantile(1.0)) == (1, 51, 100, 100)
    assert Latencies().quantile(0.5) is None


def test_ratio_above_one_means_ours_is_better() -> None:
    """Less is better for times, more is better for rates; without a peer there is no ratio."""
    report = Report()
    report.add("c", "ms", 10.0, "peer", 20.0)
    report.add("c", "documents/s", 10.0, "peer", 20.0, more_is_better=True)
    report.add("c", "ms", 10.0, "peer", None)
    assert [row["ratio"] for row in report.results] == [2.0, 0.5, None]


def test_the_difference_of_histograms_is_what_came_between() -> None:
    """Counts from before the phase do not show in its quantiles."""
    before, after = Histogram(), Histogram()
    for value in (1_000.0, 1_000.0):
        before.add(value)
        after.add(value)
    after.add(50.0)
    (between,) = difference({"total": after}, {"total": before}).values()
    assert between.count == 1 and between.quantile(0.5) == pytest.approx(50.0, rel=0.05)
