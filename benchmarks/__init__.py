"""How fast, and against whom? Ratios in one run on one machine, each against what a user could pick instead."""

from benchmarks._exceptions import BenchmarkError, BenchmarkFailed, UnknownBenchmark
from benchmarks._report import markdown_benchmark, render_benchmark
from benchmarks._run import BENCHMARKS, run_benchmark

__all__ = [
    "BENCHMARKS",
    "BenchmarkError",
    "BenchmarkFailed",
    "UnknownBenchmark",
    "markdown_benchmark",
    "render_benchmark",
    "run_benchmark",
]
