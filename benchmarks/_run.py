"""The benchmarks by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import pipeline
from benchmarks._exceptions import UnknownBenchmark

BENCHMARKS: dict[str, Callable[[bool], dict[str, Any]]] = {"pipeline": pipeline.run}


def run_benchmark(name: str, quick: bool = False) -> dict[str, Any]:
    """Run a benchmark and return {"benchmark", "machine", "results", "notes"}.

    A result is {"case", "metric", "ours", "peer_name", "peer", "ratio"}; a ratio above 1 means that ours is better,
    null that there is no peer. `quick` takes small sizes: does it run, not how fast is it. Raises UnknownBenchmark,
    BenchmarkFailed.
    """
    if name not in BENCHMARKS:
        raise UnknownBenchmark(name, BENCHMARKS)
    return BENCHMARKS[name](quick)
