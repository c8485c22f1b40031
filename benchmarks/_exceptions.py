"""Errors of the benchmarks.

BenchmarkError                catch this to treat every refusal of a benchmark alike
├── UnknownBenchmark          no such benchmark; names those there are
└── BenchmarkFailed           something went wrong that makes figures worthless: a stage died, a peer failed, never idle
"""

from __future__ import annotations

from collections.abc import Iterable

from catalog.portable import Portable


class BenchmarkError(Portable):
    """Base of all errors of the benchmarks."""


class UnknownBenchmark(BenchmarkError):
    """Raised for a name that no benchmark has."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        self.name = name
        super().__init__(f"there is no benchmark {name[:40]!r}; there are: {', '.join(known)}")


class BenchmarkFailed(BenchmarkError):
    """Raised when a benchmark cannot give figures that mean anything; says which part failed and where to look."""
