"""What a stage counts and times, kept over restarts: one JSON file per stage process, read by status and UI.

Histograms have logarithmic buckets of 5 % relative width, so quantiles are exact to that and merging is adding.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import structlog

_GROWTH = math.log(1.05)
_FLUSH_SECONDS = 0.5
"""A kill -9 loses at most this much of the counts; dead letters and drops are also records in the log."""


class Histogram:
    """Counts of positive values in logarithmic buckets."""

    __slots__ = ("buckets", "count", "maximum", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0
        self.maximum = 0.0

    def add(self, value: float) -> None:
        """Count one value; values below 1 count as 1."""
        value = max(value, 1.0)
        bucket = int(math.log(value) / _GROWTH)
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += value
        self.maximum = max(self.maximum, value)

    def quantile(self, q: float) -> float | None:
        """Return the value at quantile `q` (0..1) within 5 %, None when nothing was counted."""
        if self.count == 0:
            return None
        rank = max(1, math.ceil(q * self.count))
        for bucket in sorted(self.buckets):
            rank -= self.buckets[bucket]
            if rank <= 0:
                return min(self.maximum, math.exp((bucket + 0.5) * _GROWTH))
        return self.maximum

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts."""
        for bucket, count in other.buckets.items():
            self.buckets[bucket] = self.buckets.get(bucket, 0) + count
        self.count += other.count
        self.total += other.total
        self.maximum = max(self.maximum, other.maximum)

    def summary(self) -> dict[str, float | int | None]:
        """Return count, mean, p50, p90, p99 and max in the unit that was added."""
        return {
            "count": self.count,
            "mean": self.total / self.count if self.count else None,
            "p50": self.quantile(0.5),
            "p90": self.quantile(0.9),
            "p99": self.quantile(0.99),
            "max": self.maximum if self.count else None,
        }

    def to_json(self) -> dict[str, Any]:
        """Return a form for the metrics file."""
        return {
            "b": [[k, v] for k, v in self.buckets.items()],
            "n": self.count,
            "t": self.total,
            "m": self.maximum,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Histogram:
        """Read what `to_json` gave."""
        histogram = cls()
        histogram.buckets = {int(k): int(v) for k, v in data["b"]}
        histogram.count, histogram.total, histogram.maximum = int(data["n"]), float(data["t"]), float(data["m"])
        return histogram


class StageMetrics:
    """Counters and histograms of one stage process. Names are "metric" or "metric:label". Safe for threads."""

    def __init__(self, directory: Path, process: str) -> None:
        self._file = directory / f"{process}.json"
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._flushed = 0.0
        self.process = process
        self.counters: dict[str, int] = defaultdict(int)
        self.gauges: dict[str, float] = {}
        self.histograms: dict[str, Histogram] = defaultdict(Histogram)
        if (data := _read(self._file)) is not None:
            self.counters.update(data["counters"])
            self.histograms.update(data["histograms"])
        elif self._file.exists():
            self.counters["metrics_lost:unreadable_file"] += 1

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        with self._lock:
            self.counters[name] += amount

    def time(self, name: str, value: float) -> None:
        """Add one value to a histogram (microseconds by convention)."""
        with self._lock:
            self.histograms[name].add(value)

    def gauge(self, name: str, value: float) -> None:
        """Set a gauge."""
        with self._lock:
            self.gauges[name] = value

    def flush(self, *, force: bool = False) -> None:
        """Write the file (atomically) if the last write is old enough, or if forced. Safe for threads."""
        with self._writing:
            now = time.monotonic()
            if force or now - self._flushed >= _FLUSH_SECONDS:
                self._flushed = now
                self._write()

    def _write(self) -> None:
        with self._lock:
            data = {
                "process": self.process,
                "pid": os.getpid(),
                "at": time.time(),
                "cpu_seconds": sum(os.times()[:2]),
                "counters": dict(self.counters),
                "gauges": dict(self.gauges),
                "histograms": {k: h.to_json() for k, h in self.histograms.items()},
            }
        part = self._file.with_suffix(".part")
        part.write_text(json.dumps(data))
        part.replace(self._file)


def read_metrics(directory: Path) -> list[dict[str, Any]]:
    """Return every stage process's last written metrics, histograms as Histogram objects.

    A file that cannot be understood is left out, with a warning in the log.
    """
    return [data for file in sorted(directory.glob("*.json")) if (data := _read(file)) is not None]


def _read(file: Path) -> dict[str, Any] | None:
    """Return what a metrics file holds; None if there is none, or if a power failure or a person has spoilt it."""
    try:
        data: dict[str, Any] = json.loads(file.read_text())
        data["counters"] = {k: int(v) for k, v in data["counters"].items()}
        data["histograms"] = {k: Histogram.from_json(v) for k, v in data["histograms"].items()}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # counts must never stop a stage or a page
        structlog.get_logger().warning("metrics_unreadable", file=str(file), error=str(error))
        return None
    return data


def merged_counters(metrics: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, int]:
    """Return label -> sum over processes of the counters named "prefix:label"."""
    totals: dict[str, int] = defaultdict(int)
    for data in metrics:
        for name, value in data["counters"].items():
            if name.startswith(prefix + ":"):
                totals[name[len(prefix) + 1 :]] += value
    return dict(sorted(totals.items()))


def merged_histograms(metrics: Iterable[Mapping[str, Any]], prefix: str) -> dict[str, Histogram]:
    """Return label -> merged histogram of those named "prefix:label"."""
    merged: dict[str, Histogram] = defaultdict(Histogram)
    for data in metrics:
        for name, histogram in data["histograms"].items():
            if name.startswith(prefix + ":"):
                merged[name[len(prefix) + 1 :]].merge(histogram)
    return dict(sorted(merged.items()))
