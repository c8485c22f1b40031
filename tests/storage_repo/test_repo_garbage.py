"""Garbage collection: what must stay, what must go, and a file that does not grow without bound."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from repo_backends import ORIGIN, Backend, FakeClock

from storage_repo import ChangeFeedRepo, Limits, Repo, SnapshotTooOld

MakeRepo = Callable[..., Repo]
MakeFeedRepo = Callable[..., ChangeFeedRepo]
X = "control:x"


def put(repo: Repo, value: bytes | None, row: str = "1") -> int:
    """Commit one cell (None: a tombstone)."""
    transaction = repo.begin(ORIGIN)
    if value is None:
        transaction.delete("ad", row, X)
    else:
        transaction.put("ad", row, X, value)
    return transaction.commit()


def values(repo: Repo, row: str = "1") -> list[bytes | None]:
    """Return the cell's history, newest first."""
    return [version.value for version in repo.history("ad", row).get(X, [])]


def test_history_keeps_the_newest_versions_however_old(make_repo: MakeRepo, clock: FakeClock) -> None:
    """Beyond versions_kept, old versions go; those kept still name their writer."""
    repo = make_repo(versions_kept=3, max_transaction_age_s=10)
    stamps = [put(repo, b"%d" % n) for n in range(10)]
    assert repo.collect_garbage() == 0, "they are young"
    clock.advance(1000)
    assert repo.collect_garbage() == 7
    assert values(repo) == [b"9", b"8", b"7"]
    assert all(version.origin == ORIGIN for version in repo.history("ad", "1")[X])
    assert stamps[-1] <= repo.statistics()["low_watermark"] <= repo.snapshot().ts
    assert repo.collect_garbage() == 0


@pytest.mark.backends("embedded")
def test_transaction_records_go_with_their_versions(make_repo: MakeFeedRepo, clock: FakeClock) -> None:
    """A record stays as long as a version or a change refers to it; the watermark is the newest old commit."""
    repo = make_repo(versions_kept=3, max_transaction_age_s=10)
    for n in range(10):
        put(repo, b"%d" % n)
    repo.trim_changes(10)
    clock.advance(1000)
    assert repo.collect_garbage() == 7
    statistics = repo.statistics()
    assert (statistics["low_watermark"], statistics["transaction_records"]) == (10, 3)
    assert repo.snapshot(10).get("ad", "1") == {X: b"9"}, "the newest commit is not too old, however long ago"


def test_young_snapshots_stay_readable(make_repo: MakeRepo, clock: FakeClock) -> None:
    """Whatever was newest at any time within max_transaction_age_s can still be read exactly."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    stamps = []
    for n in range(40):
        stamps.append(put(repo, b"%d" % n))
        clock.advance(1)
        repo.collect_garbage()
        for age, ts in enumerate(reversed(stamps)):
            if age < 10:
                assert repo.snapshot(ts).get("ad", "1") == {X: b"%d" % (n - age)}
        assert len(values(repo)) <= 13


def test_versions_superseded_recently_stay_although_written_long_ago(make_repo: MakeRepo, clock: FakeClock) -> None:
    """Age counts from when a version was superseded: until then every snapshot may need it."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    put(repo, b"old")
    clock.advance(1000)
    snapshot = repo.snapshot()
    put(repo, b"new")
    repo.collect_garbage()
    assert snapshot.get("ad", "1") == {X: b"old"}


def test_pins_hold_the_watermark(make_repo: MakeRepo, clock: FakeClock) -> None:
    """A pinned snapshot stays readable until it is released or its time is over; renewing prolongs it."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    first, second, _ = (put(repo, b"%d" % n) for n in range(3))
    repo.pin("scan", second, ttl_s=100)
    clock.advance(90)
    repo.collect_garbage()
    assert repo.snapshot(second).get("ad", "1") == {X: b"1"}
    with pytest.raises(SnapshotTooOld):
        repo.snapshot(first)
    repo.pin("scan", second, ttl_s=100)
    clock.advance(90)
    assert repo.collect_garbage() == 0
    assert repo.snapshot(second).get("ad", "1") == {X: b"1"}
    clock.advance(11)
    assert repo.collect_garbage() == 1
    assert repo.statistics()["pins"] == 0
    with pytest.raises(SnapshotTooOld):
        repo.snapshot(second)

    ts = put(repo, b"3")
    repo.pin("other", ts, ttl_s=1e6)
    put(repo, b"4")
    clock.advance(1000)
    assert repo.collect_garbage() == 1
    assert repo.snapshot(ts).get("ad", "1") == {X: b"3"}
    repo.unpin("other")
    repo.unpin("never heard of")
    assert repo.collect_garbage() == 1


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("inf"), float("nan")])
def test_pins_need_an_end(repo: Repo, ttl_s: float) -> None:
    """A pin without a positive time to live is refused, and so is one in the future."""
    with pytest.raises(ValueError, match="positive number of seconds"):
        repo.pin("p", 0, ttl_s)
    with pytest.raises(ValueError, match=r"the newest \w+ is"):
        repo.pin("p", 1 << 62, 60)


def test_tombstones_go_when_nothing_is_left_to_hide(make_repo: MakeRepo, clock: FakeClock) -> None:
    """An old tombstone without older versions is removed; one with history stays as history."""
    repo = make_repo(versions_kept=3, max_transaction_age_s=10)
    put(repo, None, "never was")
    put(repo, b"1", "was")
    put(repo, None, "was")
    put(repo, None, "came")
    put(repo, b"1", "came")
    clock.advance(11)
    assert repo.collect_garbage() == 1
    assert (values(repo, "never was"), values(repo, "was"), values(repo, "came")) == ([], [None, b"1"], [b"1", None])


def test_deleted_cells_vanish_when_one_version_is_kept(make_repo: MakeRepo, clock: FakeClock) -> None:
    """With versions_kept=1 a deleted cell leaves nothing behind, and can be written again."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    for n in range(5):
        put(repo, b"1", f"{n}")
        put(repo, None, f"{n}")
    clock.advance(11)
    assert repo.collect_garbage() == 10
    assert [repo.history("ad", f"{n}") for n in range(5)] == [{}] * 5
    put(repo, b"2", "1")
    assert list(repo.snapshot().scan("ad")) == [("1", {X: b"2"})]


@pytest.mark.backends("embedded")
def test_deleted_cells_leave_no_records(make_repo: MakeFeedRepo, clock: FakeClock) -> None:
    """Tombstones that nothing is left behind go with their transactions' records, once their changes are trimmed."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    for n in range(5):
        put(repo, b"1", f"{n}")
        put(repo, None, f"{n}")
    repo.trim_changes(100)
    clock.advance(11)
    assert repo.collect_garbage() == 10
    statistics = repo.statistics()
    assert (statistics["cells"], statistics["history_versions"], statistics["transaction_records"]) == (0, 0, 0)


def test_conflicts_are_found_across_collection(make_repo: MakeRepo, clock: FakeClock) -> None:
    """A transaction that is still young enough to commit conflicts with a delete whatever was collected."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    put(repo, b"1")
    clock.advance(20)
    transaction = repo.begin(ORIGIN)
    transaction.put("ad", "1", X, b"2")
    deleted = put(repo, None)
    clock.advance(9)
    repo.collect_garbage()
    with pytest.raises(Exception, match=f"but {deleted} committed since"):
        transaction.commit()


def test_bounded_collection_makes_progress(make_repo: MakeRepo, clock: FakeClock) -> None:
    """Calls with max_cells go on where the last one stopped until everything is done."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    for _ in range(3):
        for row in range(20):
            put(repo, b"1", f"{row}")
    clock.advance(11)
    counts = [repo.collect_garbage(max_cells=7) for _ in range(12)]
    assert sum(counts) == 40
    assert max(counts) <= 8  # whole cells


def test_bounded_collection_is_not_stuck_on_live_cells(make_repo: MakeRepo, clock: FakeClock) -> None:
    """Cells that have nothing to give do not keep a bounded collection from those that have."""
    repo = make_repo(versions_kept=2, max_transaction_age_s=10)
    for _ in range(2):
        for row in range(20):
            put(repo, b"1", f"{row}")
    for n in range(5):
        put(repo, b"%d" % n, "last")
    clock.advance(11)
    assert sum(repo.collect_garbage(max_cells=7) for _ in range(4)) == 3


@pytest.mark.backends("embedded")
def test_changes_outlive_the_versions_they_tell_of(make_repo: MakeFeedRepo, clock: FakeClock) -> None:
    """A change that was not taken yet keeps its origin although all of its cells were collected."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    for n in range(5):
        put(repo, b"%d" % n)
    clock.advance(11)
    assert repo.collect_garbage() == 4
    assert [(change.commit_ts, change.origin) for change in repo.changes(0, 10)] == [(n, ORIGIN) for n in range(1, 6)]
    assert repo.trim_changes(5) == 5
    assert repo.statistics()["transaction_records"] == 1


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_wall_clock_jumps_change_nothing(make_repo: MakeRepo, clock: FakeClock, jump_s: int) -> None:
    """A wall clock set forward collects nothing young, one set back delays nothing; recorded times never go back."""
    repo = make_repo(versions_kept=1, max_transaction_age_s=10)
    first = put(repo, b"0")
    put(repo, b"1")
    clock.wall += jump_s * 1_000_000
    assert repo.collect_garbage() == 0
    put(repo, b"2")
    assert repo.snapshot(first).get("ad", "1") == {X: b"0"}
    times = [version.committed_at_us for version in repo.history("ad", "1")[X]]
    assert times == sorted(times, reverse=True)
    clock.advance(11)
    assert repo.collect_garbage() == 2


@pytest.mark.backends("embedded")
def test_reboot_neither_hastens_nor_forgets_collection(backend: Backend) -> None:
    """After a reboot the steady clock begins anew: earlier commits count as old once the machine is up long enough."""
    clock = FakeClock()
    limits = Limits(versions_kept=1, max_transaction_age_s=10)
    repo = backend.open(limits, clock)
    put(repo, b"0")
    put(repo, b"1")
    repo.pin("p", 1, 15)
    repo.close()
    rebooted = FakeClock(wall=clock.wall + 5_000_000, steady=5_000_000, boot=b"boot-2")
    repo = backend.open(limits, rebooted)
    assert repo.collect_garbage() == 0
    rebooted.advance(2)
    put(repo, b"2")
    rebooted.advance(4)
    assert repo.collect_garbage() == 0, "pinned"
    assert repo.snapshot(1).get("ad", "1") == {X: b"0"}
    rebooted.advance(4.5)
    assert repo.collect_garbage() == 1, "the pin is over; version 1 was superseded less than 10 s ago"
    rebooted.advance(2)
    assert repo.collect_garbage() == 1
    repo.close()


@pytest.mark.backends("embedded")
def test_hot_cells_are_trimmed_by_their_writers(make_repo: MakeFeedRepo, clock: FakeClock) -> None:
    """Once the watermark has passed, overwriting a cell drops its dead versions without any sweep."""
    repo = make_repo(versions_kept=3, max_transaction_age_s=10)
    for n in range(100):
        put(repo, b"%d" % n)
    clock.advance(11)
    repo.collect_garbage(max_cells=0)  # only the watermark
    assert repo.statistics()["history_versions"] == 99
    for n in range(20):
        put(repo, b"new %d" % n)
    assert repo.statistics()["history_versions"] < 40
    assert values(repo)[:3] == [b"new 19", b"new 18", b"new 17"]


@pytest.mark.backends("embedded")
def test_trimming_writers_keep_the_history(make_repo: MakeFeedRepo, clock: FakeClock) -> None:
    """The trim of an overwrite leaves exactly the newest versions even if all of them are old."""
    repo = make_repo(versions_kept=3, max_transaction_age_s=10)
    trimmed = 0
    for n in range(50):
        put(repo, b"%d" % n)
        found = values(repo)
        assert found == [b"%d" % m for m in range(n, n - len(found), -1)]
        assert len(found) >= min(n + 1, 3)
        trimmed += len(found) == 3 and n > 2
        clock.advance(11)
        repo.collect_garbage(max_cells=0)  # only the watermark
    assert trimmed > 1


@pytest.mark.backends("embedded")
def test_file_does_not_grow_under_overwrites(make_repo: MakeFeedRepo, clock: FakeClock) -> None:
    """Overwriting the same cells for ever, with trimming and collection, reaches a steady file size."""
    repo = make_repo(versions_kept=3, max_transaction_age_s=10)
    sizes = []
    for n in range(60):
        batch = [repo.begin(ORIGIN) for _ in range(50)]
        for row, transaction in enumerate(batch):
            for column in range(10):
                transaction.put("ad", f"{row}", f"control:{column}", b"%05d" % n * 20)
        last = [outcome for outcome in repo.commit_many(batch) if isinstance(outcome, int)]
        assert len(last) == 50
        clock.advance(3)
        repo.trim_changes(last[0])
        repo.collect_garbage()
        sizes.append(repo.statistics()["file_bytes"])
    assert sizes[-1] <= sizes[29] * 1.1, sizes
    statistics = repo.statistics()
    assert statistics["history_versions"] <= 500 * 6
    assert statistics["transaction_records"] <= 50 * 7


def test_collection_leaves_snapshots_exact(make_repo: MakeRepo, clock: FakeClock) -> None:
    """Every snapshot at or above the watermark reads the same before and after a collection."""
    repo = make_repo(versions_kept=2, max_transaction_age_s=10)
    stamps = [repo.snapshot().ts]
    for n in range(60):
        stamps.append(put(repo, None if n % 7 == 3 else b"%d" % n, f"{n % 5}"))
        clock.advance(1)
    before = {ts: dict(repo.snapshot(ts).scan("ad")) for ts in stamps}
    assert repo.collect_garbage() > 0
    low = repo.statistics()["low_watermark"]
    assert stamps[50] <= low < stamps[51]
    assert {ts: dict(repo.snapshot(ts).scan("ad")) for ts in stamps if ts >= low} == {
        ts: rows for ts, rows in before.items() if ts >= low
    }
