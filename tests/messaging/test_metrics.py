"""Histograms against exact quantiles, and metrics files that survive restarts, threads and damage."""

from __future__ import annotations

import json
import math
import random
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.metrics import Histogram, StageMetrics, merged_counters, merged_histograms, read_metrics

values = st.lists(st.floats(1, 1e9), min_size=1, max_size=200)


def histogram_of(numbers: list[float]) -> Histogram:
    """Count numbers."""
    histogram = Histogram()
    for number in numbers:
        histogram.add(number)
    return histogram


def exact(numbers: list[float], q: float) -> float:
    """Return the quantile by sorting."""
    return sorted(numbers)[max(1, math.ceil(q * len(numbers))) - 1]


@given(values, st.floats(0, 1))
def test_quantiles_are_exact_within_five_percent(numbers: list[float], q: float) -> None:
    """Any quantile of any positive values is within 5 % of the sorted one."""
    found = histogram_of(numbers).quantile(q)
    assert found == pytest.approx(exact(numbers, q), rel=0.05)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99, 1.0])
def test_quantiles_of_a_latency_like_distribution(q: float) -> None:
    """On 20,000 log-normal values each percentile is within 5 %."""
    rng = random.Random(5)
    numbers = [rng.lognormvariate(9, 1.5) for _ in range(20_000)]
    assert histogram_of(numbers).quantile(q) == pytest.approx(exact(numbers, q), rel=0.05)


@given(values, values)
def test_merging_is_adding(left: list[float], right: list[float]) -> None:
    """Two histograms merged are the histogram of all their values."""
    merged = histogram_of(left)
    merged.merge(histogram_of(right))
    together = histogram_of(left + right)
    assert merged.buckets == together.buckets
    assert (merged.count, merged.maximum) == (together.count, together.maximum)
    assert merged.total == pytest.approx(together.total)


def test_an_empty_histogram_has_no_quantiles() -> None:
    """Nothing counted gives None, not 0."""
    assert Histogram().quantile(0.5) is None
    assert Histogram().summary() == {"count": 0, "mean": None, "p50": None, "p90": None, "p99": None, "max": None}


def test_values_below_one_count_as_one() -> None:
    """Zero and negative durations, which a clock step makes, do not spoil mean or quantiles."""
    summary = histogram_of([0, -5, 0.5]).summary()
    assert summary == {"count": 3, "mean": 1.0, "p50": 1.0, "p90": 1.0, "p99": 1.0, "max": 1.0}


def test_metrics_go_on_after_a_restart(tmp_path: Path) -> None:
    """A new process of the same name adds to the counts and histograms of the one before; gauges start afresh."""
    for _ in range(2):
        metrics = StageMetrics(tmp_path, "updater-0")
        metrics.count("updates:applied", 3)
        metrics.time("batch_us", 100)
        metrics.gauge("lag", 5)
        metrics.flush(force=True)
    (data,) = read_metrics(tmp_path)
    assert data["counters"] == {"updates:applied": 6}
    assert data["histograms"]["batch_us"].count == 2
    assert StageMetrics(tmp_path, "updater-0").gauges == {}


def test_processes_are_added_up_by_label(tmp_path: Path) -> None:
    """Counters and histograms named "prefix:label" are summed over processes; other names are not taken along."""
    for worker in range(3):
        metrics = StageMetrics(tmp_path, f"argus-{worker}")
        metrics.count("dropped:stale", worker + 1)
        metrics.count("dropped_else:stale", 100)
        metrics.time("latency:high", 1_000)
        metrics.flush(force=True)
    read = read_metrics(tmp_path)
    assert merged_counters(read, "dropped") == {"stale": 6}
    assert {k: h.count for k, h in merged_histograms(read, "latency").items()} == {"high": 3}


def test_a_flush_soon_after_another_is_put_off(tmp_path: Path) -> None:
    """Unforced flushes write at most once per half second, so that a beat costs nothing."""
    metrics = StageMetrics(tmp_path, "p")
    metrics.flush(force=True)
    metrics.count("a")
    metrics.flush()
    assert read_metrics(tmp_path)[0]["counters"] == {}
    metrics.flush(force=True)
    assert read_metrics(tmp_path)[0]["counters"] == {"a": 1}


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """While threads count and write all the time, every file read is whole and counts never go back."""
    metrics = StageMetrics(tmp_path, "p")
    metrics.flush(force=True)
    stop = threading.Event()
    failed: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                metrics.count("done")
                metrics.time("us", 5)
                metrics.flush(force=True)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        seen = 0
        for _ in range(200):
            data = json.loads((tmp_path / "p.json").read_text())
            assert data["counters"].get("done", 0) >= seen
            seen = data["counters"].get("done", 0)
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)
    assert not failed
    assert seen > 0
    metrics.flush(force=True)
    assert read_metrics(tmp_path)[0]["counters"]["done"] == metrics.counters["done"]


def test_a_write_that_dies_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process killed between writing and renaming leaves the last whole file, and the next one goes on from it."""
    metrics = StageMetrics(tmp_path, "p")
    metrics.count("done", 2)
    metrics.flush(force=True)

    def die(self: Path, target: Path) -> Path:
        raise SystemExit(f"killed before {target} was replaced")

    metrics.count("done", 5)
    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(SystemExit):
        metrics.flush(force=True)
    monkeypatch.undo()
    assert read_metrics(tmp_path)[0]["counters"] == {"done": 2}
    assert StageMetrics(tmp_path, "p").counters == {"done": 2}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"counters": {}}', '{"counters": {"a": "x"}, "histograms": {}}'])
def test_a_spoilt_file_stops_nobody(tmp_path: Path, text: str) -> None:
    """A file that a power failure emptied is left out by readers, and its process starts afresh and counts the loss."""
    (tmp_path / "p.json").write_text(text)
    assert read_metrics(tmp_path) == []
    metrics = StageMetrics(tmp_path, "p")
    metrics.flush(force=True)
    assert read_metrics(tmp_path)[0]["counters"] == {"metrics_lost:unreadable_file": 1}
