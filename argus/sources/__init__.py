"""External sources of values that are not in the ads DB, each behind a cache that bounds what it can break."""

from argus.sources._cache import CachedSource, CacheSettings, Source
from argus.sources.performance import PerformanceDb, PerformanceRow

__all__ = ["CacheSettings", "CachedSource", "PerformanceDb", "PerformanceRow", "Source"]
