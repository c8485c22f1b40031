"""External sources: bounds of the cache, coalescing, time-outs, old values, and the performance database."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from argus import SourceBehind, SourceUnavailable
from argus.sources import CachedSource, CacheSettings, PerformanceDb, PerformanceRow


class Clock:
    """A clock that moves when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Fake:
    """A source with versions, that can be told to fail or to hang."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, str]] = {}
        self.calls: list[list[int]] = []
        self.error: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def lookup(self, keys: Sequence[int], /) -> Mapping[int, tuple[int, str]]:
        """Answer, fail, or wait for the gate."""
        self.calls.append(list(keys))
        self.entered.set()
        self.gate.wait(30)
        if self.error:
            raise self.error
        return {key: self.rows[key] for key in keys if key in self.rows}


_made: list[CachedSource[int, str]] = []


@pytest.fixture(autouse=True)
def _close_all() -> Iterator[None]:
    """Stop the workers of every cache that a test made."""
    yield
    while _made:
        _made.pop().close()


def make(**settings: float) -> tuple[Fake, Clock, CachedSource[int, str]]:
    """Return a source, its clock and the cache before it."""
    fake, clock = Fake(), Clock()
    fake.rows = {n: (1, f"v{n}") for n in range(10)}
    values = {"timeout_s": 10.0, "ttl_s": 60.0, "max_stale_s": 600.0, "retry_after_s": 5.0, **settings}
    capacity = int(values.pop("capacity", 100))
    cached: CachedSource[int, str] = CachedSource("fake", fake, CacheSettings(capacity=capacity, **values), clock)
    _made.append(cached)
    return fake, clock, cached


def test_a_batch_is_one_call_and_the_next_is_none() -> None:
    """All keys of a batch are asked at once; answers are kept until their time is over."""
    fake, clock, cached = make()
    assert cached.lookup_many({1: 0, 2: 0}) == {1: "v1", 2: "v2"}
    assert cached.lookup_many({1: 1, 2: 1}) == {1: "v1", 2: "v2"}
    assert fake.calls == [[1, 2]]
    clock.now = 61
    cached.lookup_many({1: 0})
    assert fake.calls == [[1, 2], [1]]
    assert cached.statistics()["hits"] == 2


def test_an_answer_is_never_older_than_demanded() -> None:
    """A newer version that a signal speaks of makes the cache ask again, and a source that lags is no answer."""
    fake, _, cached = make()
    cached.lookup_many({1: 1})
    fake.rows[1] = (2, "new")
    assert cached.lookup_many({1: 1}) == {1: "v1"}
    assert cached.lookup_many({1: 2}) == {1: "new"}
    lagging = cached.lookup_many({1: 3})[1]
    assert isinstance(lagging, SourceBehind)
    assert "has no version 3 of 1;" in str(lagging)


def test_fresh_asks_even_for_what_is_cached() -> None:
    """A refresh pulls again."""
    fake, _, cached = make()
    cached.lookup_many({1: 1})
    fake.rows[1] = (2, "new")
    assert cached.lookup_many({1: 1}, fresh=True) == {1: "new"}


def test_a_key_that_the_source_does_not_have_is_none_or_late() -> None:
    """Without a demanded version nothing is a fine answer; with one, the source is behind."""
    _, _, cached = make()
    answers = cached.lookup_many({77: 0, 78: 1})
    assert answers[77] is None
    assert isinstance(answers[78], SourceBehind)


def test_the_cache_is_bounded() -> None:
    """The least recently used keys go first."""
    fake, _, cached = make(capacity=2)
    for key in (1, 2, 1, 3, 1, 2):
        cached.lookup_many({key: 0})
    assert fake.calls == [[1], [2], [3], [2]]
    assert cached.statistics()["entries"] == 2


def test_a_source_that_is_down_is_left_alone_and_old_values_serve() -> None:
    """One failure opens a pause without calls; old values serve within their limit, and then there are none."""
    fake, clock, cached = make()
    cached.lookup_many({1: 0})
    fake.error = OSError("no route")
    clock.now = 100
    assert cached.lookup_many({1: 1}) == {1: "v1"}
    assert cached.lookup_many({1: 1}) == {1: "v1"}
    assert len(fake.calls) == 2
    unknown = cached.lookup_many({2: 0})[2]
    assert isinstance(unknown, SourceUnavailable)
    assert "source fake is down (no route)" in str(unknown)
    clock.now = 700
    assert isinstance(cached.lookup_many({1: 1})[1], SourceUnavailable)
    fake.error = None
    clock.now = 710
    assert cached.lookup_many({1: 1}) == {1: "v1"}
    counts = cached.statistics()
    assert (counts["failures"], counts["stale"], counts["unavailable"]) == (2, 2, 2)


def test_a_source_that_hangs_costs_one_time_out() -> None:
    """The caller goes on after the time-out and does not ask again at once; the late answer is kept."""
    fake, clock, cached = make(timeout_s=0.05)
    fake.gate.clear()
    assert isinstance(cached.lookup_many({1: 0})[1], SourceUnavailable)
    assert isinstance(cached.lookup_many({1: 0})[1], SourceUnavailable)
    assert (len(fake.calls), cached.statistics()["timeouts"]) == (1, 1)
    fake.gate.set()
    while cached.statistics()["entries"] == 0:
        threading.Event().wait(0.001)
    clock.now = 10
    assert cached.lookup_many({1: 1}) == {1: "v1"}
    assert len(fake.calls) == 1


def test_threads_that_miss_the_same_key_share_a_call() -> None:
    """The second thread waits for the first one's call; only if that began too early for it does it ask itself."""
    fake, _, cached = make()
    fake.gate.clear()
    answers: dict[str, dict[int, str | SourceUnavailable | None]] = {}

    def ask(name: str, version: int) -> None:
        answers[name] = cached.lookup_many({1: version})

    first = threading.Thread(target=ask, args=("first", 0))
    first.start()
    assert fake.entered.wait(120)
    others = [threading.Thread(target=ask, args=(f"other{n}", 1)) for n in range(3)]
    for thread in others:
        thread.start()
    while cached.statistics()["coalesced"] < 3:
        threading.Event().wait(0.001)
    fake.gate.set()
    for thread in (first, *others):
        thread.join(120)
    assert list(answers.values()) == [{1: "v1"}] * 4
    assert fake.calls == [[1]]


def test_joining_a_call_that_began_too_early_asks_again() -> None:
    """A call under way may have read an older version than a later signal demands."""
    fake, _, cached = make()
    fake.gate.clear()
    old = dict(fake.rows)
    answers: dict[str, dict[int, str | SourceUnavailable | None]] = {}
    first = threading.Thread(target=lambda: answers.update(first=cached.lookup_many({1: 0})))
    first.start()
    assert fake.entered.wait(120)
    second = threading.Thread(target=lambda: answers.update(second=cached.lookup_many({1: 2})))
    second.start()
    while cached.statistics()["coalesced"] < 1:
        threading.Event().wait(0.001)
    original = fake.lookup

    def stale_then_new(keys: Sequence[int], /) -> Mapping[int, tuple[int, str]]:
        fake.rows = {**old, 1: (2, "new")}
        return original(keys)

    fake.lookup = stale_then_new  # type: ignore[method-assign]
    fake.gate.set()
    first.join(120)
    second.join(120)
    assert answers == {"first": {1: "v1"}, "second": {1: "new"}}


def row(ad_id: int, clicks: int = 1) -> PerformanceRow:
    """Return some performance."""
    return PerformanceRow(ad_id, 100, clicks, 1, 0, 5)


def test_upsert_reports_only_what_changed(tmp_path: Path) -> None:
    """The same rows again change nothing; a changed row gets a higher version."""
    database = PerformanceDb(tmp_path / "performance.db")
    first = database.upsert([row(1), row(2)])
    assert sorted(first) == [1, 2]
    assert database.upsert([row(1), row(2)]) == {}
    second = database.upsert([row(1), row(2, clicks=9), row(3)])
    assert sorted(second) == [2, 3]
    assert second[2] > first[2]
    assert database.lookup([1, 2, 99]) == {1: (first[1], row(1)), 2: (second[2], row(2, clicks=9))}
    database.close()


def test_unannounced_changes_survive_until_announced(tmp_path: Path) -> None:
    """Whoever dies between upsert and signal finds again what to signal; a newer change needs a signal of its own."""
    path = tmp_path / "performance.db"
    database = PerformanceDb(path)
    versions = database.upsert([row(1), row(2)])
    database.close()
    database = PerformanceDb(path)
    assert database.unannounced() == versions
    newer = database.upsert([row(2, clicks=7)])
    database.announced(versions)
    assert database.unannounced() == newer
    database.announced(newer)
    assert database.unannounced() == {}
    database.close()


def test_lookups_of_many_ads_and_from_many_threads(tmp_path: Path) -> None:
    """More keys than SQLite takes in one statement, by several threads beside a writer."""
    database = PerformanceDb(tmp_path / "performance.db")
    database.upsert([row(n) for n in range(3_000)])
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(database.lookup(range(3_000))))) for _ in range(4)]
    for thread in threads:
        thread.start()
    database.upsert([row(1, clicks=2)])
    for thread in threads:
        thread.join(120)
    assert found == [3_000] * 4
    database.close()


def test_a_broken_database_is_an_unavailable_source(tmp_path: Path) -> None:
    """The file is opened at first use, and what is wrong with it is told as the source being away."""
    path = tmp_path / "performance.db"
    path.write_bytes(b"this is no database" * 100)
    database = PerformanceDb(path)
    with pytest.raises(SourceUnavailable, match="cannot read the performance database"):
        database.lookup([1])
