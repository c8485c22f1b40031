"""The stages' metrics files as Prometheus text, with lag and liveness as gauges."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from debug_ui.backends import Backends
from debug_ui.health import pipeline_status
from messaging.metrics import Histogram, merged_histograms, read_metrics

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper bounds around the target of 25 ms (p50) and 100 ms (p99)."""


class _PipelineCollector(Collector):
    def __init__(self, backends: Backends) -> None:
        self._backends = backends

    def collect(self) -> Iterable[Metric]:
        files = read_metrics(self._backends.home.metrics)
        events = CounterMetricFamily("adsindex_events", "What stages counted.", labels=["process", "event", "label"])
        gauges = GaugeMetricFamily("adsindex_gauge", "What stages measured last.", labels=["process", "name"])
        for data in files:
            for name, value in data["counters"].items():
                event, _, label = name.partition(":")
                events.add_metric([data["process"], event, label], value)
            for name, value in data["gauges"].items():
                gauges.add_metric([data["process"], name], value)
        yield events
        yield gauges
        latency = HistogramMetricFamily(
            "adsindex_latency_seconds",
            "From commit at the source to answerable by search (part total), and its parts.",
            labels=["lane", "part"],
        )
        for label, histogram in merged_histograms(files, "latency").items():
            lane, _, part = label.partition(":")
            latency.add_metric([lane, part], buckets=cumulative(histogram), sum_value=histogram.total / 1e6)
        yield latency
        status = pipeline_status(self._backends)
        lag = GaugeMetricFamily("adsindex_lag", "What waits before a stage.", labels=["place", "group"])
        for entry in status.lags:
            lag.add_metric([entry.place, entry.group], entry.waiting)
        yield lag
        up = GaugeMetricFamily("adsindex_process_up", "1 if the process lives.", labels=["process"])
        restarts = CounterMetricFamily("adsindex_process_restarts", "Restarts by the supervisor.", labels=["process"])
        for stage in status.stages:
            up.add_metric([stage.process], float(stage.alive))
            restarts.add_metric([stage.process], stage.restarts)
        yield up
        yield restarts
        if status.documents is not None:
            yield GaugeMetricFamily("adsindex_documents", "Documents that serving answers from.", status.documents)
        if status.base is not None and status.base.age_s is not None:
            yield GaugeMetricFamily("adsindex_base_age_seconds", "Age of the base index.", status.base.age_s)


def cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """Return cumulative counts by upper bound in seconds, of a histogram of microseconds with 5 % wide buckets."""
    counts = dict.fromkeys(BOUNDS_S, 0)
    for bucket, count in histogram.buckets.items():
        seconds = 1.05 ** (bucket + 0.5) / 1e6
        for bound in BOUNDS_S:
            if seconds <= bound:
                counts[bound] += count
    return [*((str(bound), float(count)) for bound, count in counts.items()), ("+Inf", float(histogram.count))]


def prometheus_text(backends: Backends) -> bytes:
    """Return everything in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_PipelineCollector(backends))
    return generate_latest(registry)
