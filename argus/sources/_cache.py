"""A bounded cache before an external source: what keeps a slow or dead source from slowing or breaking control data."""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from argus._exceptions import SourceBehind, SourceTimeout, SourceUnavailable

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)

_WORKERS = 2
"""Calls under way at once. A source that needs more per process is better served by larger batches."""


class Source(Protocol[K, V_co]):
    """An external source: values by key, each with a version that grows whenever the value changes."""

    def lookup(self, keys: Sequence[K], /) -> Mapping[K, tuple[int, V_co]]:
        """Return key -> (version, value) of those that exist. Whatever it raises counts as the source being down."""


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Bounds of one cached source; times in seconds."""

    capacity: int = 200_000
    ttl_s: float = 300.0
    """Versions tell of changes at once; this bounds how long a change goes unseen whose signal was lost."""
    timeout_s: float = 0.5
    """A control update waits no longer than this for a source, and then only once per `retry_after_s`."""
    max_stale_s: float = 6 * 3600.0
    """How old a value may get while the source is down."""
    retry_after_s: float = 2.0
    """A source that failed is left alone for so long."""


@dataclass(slots=True)
class _Entry(Generic[V]):
    version: int
    value: V | None
    at: float


_Call = tuple[list[K], "Future[Mapping[K, tuple[int, V]]]"]


class CachedSource(Generic[K, V]):
    """Least recently used values of a source, within bounds. Safe for threads; threads that miss one key share a call.

    An answer is never older than the version that the caller demands: a signal says "changed at version 7", and then
    version 6 is no answer, however fresh. If the source cannot do better the caller gets SourceUnavailable.
    """

    def __init__(
        self,
        name: str,
        source: Source[K, V],
        settings: CacheSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self._source = source
        self._settings = settings or CacheSettings()
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, _Entry[V]] = OrderedDict()
        self._in_flight: dict[K, Future[Mapping[K, tuple[int, V]]]] = {}
        self._calls: queue.SimpleQueue[_Call[K, V] | None] = queue.SimpleQueue()
        self._workers: list[threading.Thread] = []
        self._down_until = float("-inf")
        self._why = ""
        self._counts: Counter[str] = Counter()

    def lookup_many(self, wanted: Mapping[K, int], *, fresh: bool = False) -> dict[K, V | SourceUnavailable | None]:
        """Return key -> value (None: the source has none), or why there is no value, for key -> version demanded.

        `fresh` asks the source even for what is cached. Takes at most two time-outs, whatever the source does.
        """
        answers: dict[K, V | SourceUnavailable | None] = {}
        open_keys = dict(wanted)
        with self._lock:
            for key, version in wanted.items():
                entry = self._entries.get(key)
                if entry and not fresh and entry.version >= version and self._age(entry) <= self._settings.ttl_s:
                    answers[key] = entry.value
                    self._entries.move_to_end(key)
                    del open_keys[key]
            self._counts["hits"] += len(answers)
            self._counts["misses"] += len(open_keys)
        is_up = not open_keys or self._fetch(open_keys, answers)
        if is_up and open_keys:  # a call that we joined may have begun before the version that we demand
            is_up = self._fetch(open_keys, answers)
        for key, version in open_keys.items():
            answers[key] = self._fallback(key, version, is_up)
        return answers

    def statistics(self) -> dict[str, int]:
        """Return hits, misses (by key), calls, coalesced (keys that joined another thread's call), stale (old values
        served), unavailable, timeouts, failures, and entries kept."""
        with self._lock:
            names = ("hits", "misses", "calls", "coalesced", "stale", "unavailable", "timeouts", "failures")
            return {name: self._counts[name] for name in names} | {"entries": len(self._entries)}

    def close(self) -> None:
        """Stop the worker threads once their calls return; a call that hangs dies with the process."""
        for _ in self._workers:
            self._calls.put(None)
        self._workers.clear()

    def _fetch(self, open_keys: dict[K, int], answers: dict[K, V | SourceUnavailable | None]) -> bool:
        """Ask for keys, moving those answered; False if the source is down."""
        with self._lock:
            if self._clock() < self._down_until:
                return False
            joined = {key: self._in_flight[key] for key in open_keys if key in self._in_flight}
            own = [key for key in open_keys if key not in joined]
            futures = set(joined.values())
            self._counts["coalesced"] += len(joined)
            if own:
                call: Future[Mapping[K, tuple[int, V]]] = Future()
                futures.add(call)
                self._in_flight.update(dict.fromkeys(own, call))
                self._counts["calls"] += 1
                self._start_workers()
                self._calls.put((own, call))
        deadline = time.monotonic() + self._settings.timeout_s
        for future in futures:
            try:
                found = future.result(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                error = SourceTimeout(f"source {self.name} gave no answer within {self._settings.timeout_s} s")
                self._failed("timeouts", error)
                return False
            except Exception as error:  # noqa: BLE001 - whatever a source raises means that it is down; counted
                self._failed("failures", error)
                return False
            for key, version in list(open_keys.items()):
                if key in found and found[key][0] >= version:
                    answers[key] = found[key][1]
                    del open_keys[key]
                elif joined.get(key, future) is future and key not in found and version <= 0:
                    answers[key] = None
                    del open_keys[key]
        return True

    def _start_workers(self) -> None:
        while len(self._workers) < _WORKERS:
            worker = threading.Thread(target=self._work, name=f"source-{self.name}", daemon=True)
            self._workers.append(worker)
            worker.start()

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            keys, future = call
            try:
                found = self._source.lookup(keys)
            except Exception as error:  # noqa: BLE001 - handed to the callers, who count it
                self._finish(keys, {})
                future.set_exception(error)
            else:
                self._finish(keys, found)
                future.set_result(found)

    def _finish(self, keys: Sequence[K], found: Mapping[K, tuple[int, V]]) -> None:
        """Keep what came, also for callers that have given up waiting."""
        with self._lock:
            now = self._clock()
            for key in keys:
                self._in_flight.pop(key, None)
            for key, (version, value) in found.items():
                known = self._entries.get(key)
                if known is None or version >= known.version:
                    self._entries[key] = _Entry(version, value, now)
                    self._entries.move_to_end(key)
            while len(self._entries) > self._settings.capacity:
                self._entries.popitem(last=False)

    def _failed(self, kind: str, error: Exception) -> None:
        with self._lock:
            self._counts[kind] += 1
            self._down_until = self._clock() + self._settings.retry_after_s
            self._why = str(error)

    def _fallback(self, key: K, version: int, is_up: bool) -> V | SourceUnavailable | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry and entry.version >= version and self._age(entry) <= self._settings.max_stale_s:
                self._counts["stale"] += 1
                return entry.value
            self._counts["unavailable"] += 1
            if not is_up:
                return SourceUnavailable(f"source {self.name} is down ({self._why}); the last values stay")
            return SourceBehind(
                f"source {self.name} has no version {version} of {key!r}; the last values stay: bring its data up to "
                "date and signal again"
            )

    def _age(self, entry: _Entry[V]) -> float:
        return self._clock() - entry.at
